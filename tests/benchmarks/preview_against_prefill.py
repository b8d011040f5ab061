"""What a preview of five ratios costs over one plain pass of the same text by the same llama.cpp.

A plain pass is llama_decode without an eval callback, with the logits of the second half of the chunk: what a
perplexity needs. The preview runs the original and five keep-sets: one by one 6 is the least, and what is above is the
masks, the copies of the logits and the meters. At once, in one graph, every weight is read once for all six. All in
seconds of processor time.
"""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
from bench import Sizes, arguments, processor_timed, report, take_turns, write_moe
from calibrate_against_prefill import PlainPrefill
from gguf import GGMLQuantizationType as Kind

from ggufreap.architecture.layout import bind
from ggufreap.container import open_gguf
from ggufreap.corpus import Corpus
from ggufreap.engine.session import LlamaSession
from ggufreap.evaluation import compare_passes, compare_with, of_engine, together
from ggufreap.evaluation.scores import Reference, compare, targets_of
from ggufreap.options.engine import EngineSettings
from ggufreap.planning import count_to_keep, select
from ggufreap.saliency import random_scores

RATIOS = ("0.1", "0.2", "0.3", "0.4", "0.5")


def measure(path: Path, settings: EngineSettings, rounds: int) -> dict[str, list[float]]:
    layout = bind(open_gguf(path))
    scores = random_scores(len(layout.trunk), layout.n_expert, 0)
    keeps = [
        {block.index: kept for block, kept in zip(layout.trunk, chosen, strict=True)}
        for chosen in (select(scores, count_to_keep(layout, ratio), layout.n_group) for ratio in RATIOS)
    ]
    with (
        LlamaSession(path, layout.nodes, settings) as engine,
        LlamaSession(path, layout.nodes, settings, together=1 + len(keeps)) as wide,
        ThreadPoolExecutor(settings.n_threads) as pool,
    ):
        print(f"texts at once: {wide.n_together}")
        at_once = together(wide, [None, *keeps])
        plain = PlainPrefill(engine, settings)
        chunk = np.random.default_rng(0).integers(0, engine.n_vocab, settings.n_ctx).astype(np.int32)
        domains = {"random": Corpus(chunk[None], "random tokens")}
        original = of_engine(engine)
        reference = Reference.of(original(chunk))
        candidates = [of_engine(engine, keep) for keep in keeps]
        half = settings.n_ctx - settings.n_ctx // 2
        contestants = {
            "plain pass": lambda: processor_timed(lambda: plain.run(chunk, half)),
            "plain pass, all logits": lambda: processor_timed(lambda: plain.run(chunk, settings.n_ctx)),
            "masked pass": lambda: processor_timed(lambda: candidates[1](chunk)),
            "meters of one candidate": lambda: processor_timed(
                lambda: compare(reference, reference.logits, targets_of(chunk), pool.map)
            ),
            "preview of 5 ratios": lambda: processor_timed(
                lambda: compare_with(original, candidates, domains, pool.map)
            ),
            "preview at once": lambda: processor_timed(lambda: compare_passes(at_once, len(keeps), domains, pool.map)),
        }
        take_turns(contestants, 1)  # the first touch of every page belongs to nobody
        seconds = take_turns(contestants, rounds)
        plain.close()
    return seconds


def main() -> None:
    parser = arguments(__doc__, rounds=7)
    parser.add_argument("--model", type=Path, help="an existing MoE model instead of a random one")
    parser.add_argument("--blocks", type=int, default=12, help="of the random model (12)")
    parser.add_argument("--experts", type=int, default=64, help="of the random model (64)")
    parser.add_argument("--vocabulary", type=int, default=151_936, help="of the random model (151,936)")
    parser.add_argument("-c", type=int, default=512, help="tokens per chunk (512)")
    parser.add_argument("-np", type=int, default=6, help="texts at once (6)")
    parser.add_argument("-t", type=int, default=1, help="threads (1)")
    options = parser.parse_args()
    settings = EngineSettings(options.c, options.c, options.t, n_gpu_layers=0, n_together=options.np)
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        path = options.model
        if path is None:
            path = Path(folder, "model.gguf")
            sizes = Sizes(options.blocks, options.experts, n_ff=768, n_vocab=options.vocabulary)
            write_moe(path, sizes, (Kind.Q4_K, Kind.Q8_0))
        seconds = measure(path, settings, options.rounds)
    plain, every, masked, meters, preview, at_once = map(median, seconds.values())
    plain_passes = {"plain pass": plain, "plain pass, all logits": every}
    previews = {"preview": preview, "at once": at_once}
    figures = {f"{one} / {other}": previews[one] / plain_passes[other] for one in previews for other in plain_passes}
    report(seconds, {**figures, "masked / plain pass": masked / plain, "meters / plain pass": meters / plain})


if __name__ == "__main__":
    main()
