"""What blending domains costs each of them on a trained model: KLD of the virtually pruned model on held-out text.

    python tests/benchmarks/blends.py MODEL.gguf FOLDER [--ratio 0.25 0.5] [--method reap] [--skip 16]

FOLDER holds `<domain>.calib.txt` and `<domain>.eval.txt`. Nothing is written: the experts are masked in the router.
One column per choice: calibrated on one domain only, and on all of them blended in each way.
"""

import argparse
from functools import cache
from pathlib import Path

import numpy as np
from quality import divergence, log_probabilities

from ggufreap import corpus
from ggufreap.architecture.layout import bind
from ggufreap.blending import BLENDS, blend
from ggufreap.container import open_gguf
from ggufreap.coverage import measure
from ggufreap.engine.session import LlamaSession
from ggufreap.observation import DomainStatistics, load, observables
from ggufreap.options.engine import EngineSettings
from ggufreap.planning import count_to_keep, select
from ggufreap.saliency import METHODS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ratio", nargs="+", default=["0.25", "0.5"])
    parser.add_argument("--method", choices=METHODS, default="reap")
    parser.add_argument("--only", default="code", help="the domain that is calibrated on alone")
    parser.add_argument("-c", "--ctx-size", type=int, default=256)
    parser.add_argument("-t", "--threads", type=int, default=0)
    parser.add_argument("--calibration-chunks", type=int, default=48, help="per domain")
    parser.add_argument("--stats", type=Path, help="statistics of these domains that are there already")
    parser.add_argument("--chunks", type=int, default=16, help="held-out chunks per domain")
    parser.add_argument("--skip", type=int, default=0, help="held-out chunks to leave out before them")
    options = parser.parse_args()
    file = open_gguf(options.model)
    layout = bind(file)
    names = sorted(path.name.removesuffix(".eval.txt") for path in options.folder.glob("*.eval.txt"))
    settings = EngineSettings(options.ctx_size, options.ctx_size, options.threads)
    with LlamaSession(file.path, layout.nodes, settings) as engine:

        def chunks(name: str) -> np.ndarray:
            return corpus.from_text(engine, corpus.read_text(str(options.folder / name)), options.ctx_size, name).chunks

        def observed() -> DomainStatistics:
            used = [block.n_used for block in layout.trunk]
            statistics = DomainStatistics.empty(blocks, used, layout.n_expert, names)
            for name in names:
                for number, chunk in enumerate(chunks(f"{name}.calib.txt")[: options.calibration_chunks]):
                    batches = engine.route(chunk, observables=observables())
                    statistics = statistics.observe(name, number, batches, len(chunk))
            return statistics

        blocks = [block.index for block in layout.trunk]
        statistics = load(options.stats)[0] if options.stats else observed()
        statistics.check()
        held_out = {name: chunks(f"{name}.eval.txt")[options.skip :][: options.chunks] for name in names}
        reference = {name: [log_probabilities(engine.logits(chunk)) for chunk in held_out[name]] for name in names}
        scores = {f"{options.only} only": METHODS[options.method].score(statistics.of(options.only))}
        scores |= {how: blend(statistics, how, options.method) for how in BLENDS}

        @cache  # blends often choose the same
        def losses(chosen: tuple[tuple[int, ...], ...]) -> list[float]:
            keep = dict(zip(blocks, chosen, strict=True))

            def loss(chunk: np.ndarray, known: np.ndarray) -> float:
                return divergence(known, log_probabilities(engine.logits(chunk, keep)))

            return [float(np.mean(list(map(loss, held_out[name], reference[name])))) for name in names]

        for ratio in options.ratio:
            n_keep = count_to_keep(layout, ratio)
            columns = {}
            for label, values in scores.items():
                chosen = select(values, n_keep, layout.n_group)
                found, keep = losses(chosen), dict(zip(blocks, chosen, strict=True))
                retained = measure(statistics, keep, options.method, n_group=layout.n_group).domains
                columns[label] = [*found, np.mean(found), max(found), min(row.retained for row in retained)]
            print(f"\nratio {ratio}, {options.method}, keeps {n_keep} of {layout.n_expert}: mean KLD in nats")
            print("| domain | " + " | ".join(columns) + " |\n|---" + "|---" * len(columns) + "|")
            for row, name in enumerate((*names, "mean", "worst", "least retained")):
                print(
                    f"| {name} | " + " | ".join(f"{column[row]:.4f}" for column in columns.values()) + " |", flush=True
                )


if __name__ == "__main__":
    main()
