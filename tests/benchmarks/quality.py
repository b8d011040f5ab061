"""What every saliency method costs on a trained model, per domain: KLD of the virtually pruned model on held-out text.

    python tests/benchmarks/quality.py MODEL.gguf FOLDER [--ratio 0.25 0.5]

FOLDER holds `<domain>.calib.txt` and `<domain>.eval.txt`. Nothing is written: the experts are masked in the router.
"""

import argparse
from pathlib import Path

import numpy as np

from ggufreap import corpus
from ggufreap.architecture.layout import MoeLayout, bind
from ggufreap.container import open_gguf
from ggufreap.engine.session import LlamaSession
from ggufreap.observation import ExpertStatistics, observables
from ggufreap.options.engine import EngineSettings
from ggufreap.planning import count_to_keep, select
from ggufreap.saliency import METHODS, random_scores, weight_norms


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Of the second half of a chunk, as llama-perplexity scores it."""
    scored = logits[len(logits) // 2 : -1].astype(np.float64)
    scored -= scored.max(axis=1, keepdims=True)
    return scored - np.log(np.exp(scored).sum(axis=1, keepdims=True))


def divergence(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Mean KLD over positions, in nats."""
    return float((np.exp(reference) * (reference - candidate)).sum(axis=1).mean())


def collected(engine: LlamaSession, layout: MoeLayout, chunks: np.ndarray) -> ExpertStatistics:
    blocks, used = [block.index for block in layout.trunk], [block.n_used for block in layout.trunk]
    statistics = ExpertStatistics.empty(blocks, used, layout.n_expert)
    for chunk in chunks:
        statistics = statistics.observe(engine.route(chunk, observables=observables()), len(chunk))
    return statistics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ratio", nargs="+", default=["0.25", "0.5"])
    parser.add_argument("-c", "--ctx-size", type=int, default=256)
    parser.add_argument("--calibration-chunks", type=int, default=48, help="per domain")
    parser.add_argument("--chunks", type=int, default=16, help="held-out chunks per domain")
    options = parser.parse_args()
    file = open_gguf(options.model)
    layout = bind(file)
    names = sorted(path.name.removesuffix(".eval.txt") for path in options.folder.glob("*.eval.txt"))
    with LlamaSession(file.path, layout.nodes, EngineSettings(options.ctx_size, options.ctx_size)) as engine:

        def chunks(name: str, count: int) -> np.ndarray:
            text = corpus.read_text(str(options.folder / name))
            return corpus.from_text(engine, text, options.ctx_size, name).chunks[:count]

        statistics = None
        for name in names:
            part = collected(engine, layout, chunks(f"{name}.calib.txt", options.calibration_chunks))
            statistics = part if statistics is None else statistics + part
        held_out = {name: chunks(f"{name}.eval.txt", options.chunks) for name in names}
        reference = {name: [log_probabilities(engine.logits(chunk)) for chunk in held_out[name]] for name in names}
        scores = {name: method.score(statistics) for name, method in METHODS.items()}
        scores["weight_norm"] = weight_norms(file, layout)
        scores["random"] = random_scores(len(layout.trunk), layout.n_expert, 0)
        for ratio in options.ratio:
            n_keep = count_to_keep(layout, ratio)
            print(f"\nratio {ratio}, keeps {n_keep} of {layout.n_expert}: mean KLD in nats")
            print("| method | mean | worst | " + " | ".join(names) + " |\n|---" + "|---" * (len(names) + 2) + "|")
            for method, values in scores.items():
                chosen = select(values, n_keep, layout.n_group)
                keep = {block.index: kept for block, kept in zip(layout.trunk, chosen, strict=True)}
                losses = []
                for name in names:
                    found = [log_probabilities(engine.logits(chunk, keep)) for chunk in held_out[name]]
                    losses.append(np.mean([divergence(*pair) for pair in zip(reference[name], found, strict=True)]))
                row = [f"{loss:.4f}" for loss in (np.mean(losses), max(losses), *losses)]
                print(f"| `{method}` | " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
