"""What choosing experts by an importance matrix alone costs against calibrating on the very same text.

    python tests/benchmarks/quality_from_imatrix.py MODEL.gguf FOLDER [--ratio 0.25 0.5]

FOLDER holds `<domain>.calib.txt` and `<domain>.eval.txt`, as for quality.py. Each text gives statistics and importance
matrix in one pass: "balanced" is as many chunks of every domain, "mixed" the file mixed.calib.txt where there is one.
"""

import argparse
from pathlib import Path

import numpy as np
from quality import divergence, log_probabilities

from ggufreap import corpus, imatrix
from ggufreap.architecture.layout import bind
from ggufreap.container import open_gguf
from ggufreap.engine.importance import ImportanceSums
from ggufreap.engine.session import LlamaSession
from ggufreap.observation import ExpertStatistics, observables
from ggufreap.options.engine import EngineSettings
from ggufreap.planning import count_to_keep, select
from ggufreap.saliency import METHODS, imatrix_scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ratio", nargs="+", default=["0.25", "0.5"])
    parser.add_argument("-c", "--ctx-size", type=int, default=256)
    parser.add_argument("-t", "--threads", type=int, default=0)
    parser.add_argument("--calibration-chunks", type=int, default=24, help="per domain")
    parser.add_argument("--mixed-chunks", type=int, default=120)
    parser.add_argument("--chunks", type=int, default=6, help="held-out chunks per domain")
    options = parser.parse_args()
    file = open_gguf(options.model)
    layout = bind(file)
    names = sorted(path.name.removesuffix(".eval.txt") for path in options.folder.glob("*.eval.txt"))
    settings = EngineSettings(options.ctx_size, options.ctx_size, options.threads)
    with LlamaSession(file.path, layout.nodes, settings) as engine:

        def chunks(name: str, count: int) -> np.ndarray:
            text = corpus.read_text(str(options.folder / name))
            return corpus.from_text(engine, text, options.ctx_size, name).chunks[:count]

        texts = {"balanced": [chunks(f"{name}.calib.txt", options.calibration_chunks) for name in names]}
        if (options.folder / "mixed.calib.txt").exists():
            texts["mixed"] = [chunks("mixed.calib.txt", options.mixed_chunks)]
        held_out = {name: chunks(f"{name}.eval.txt", options.chunks) for name in names}
        reference = {name: [log_probabilities(engine.logits(chunk)) for chunk in held_out[name]] for name in names}
        print(
            "| text | ratio | method | mean | worst | "
            + " | ".join(names)
            + " |\n|---"
            + "|---" * (len(names) + 4)
            + "|"
        )
        for title, parts in texts.items():
            sums = ImportanceSums()
            blocks, used = [block.index for block in layout.trunk], [block.n_used for block in layout.trunk]
            statistics = ExpertStatistics.empty(blocks, used, layout.n_expert)
            for chunk in np.concatenate(parts):
                statistics = statistics.observe(engine.route(chunk, sums, observables()), len(chunk))
            matrix = imatrix.of_sums(sums, title, statistics.n_chunks, options.ctx_size)
            scores = {
                "reap": METHODS["reap"].score(statistics),
                "imatrix": imatrix_scores(matrix, file, layout),
                "counts": imatrix.expert_statistics(matrix, layout).counts.astype(np.float64),
            }
            for ratio in options.ratio:
                n_keep = count_to_keep(layout, ratio)
                for method, values in scores.items():
                    chosen = select(values, n_keep, layout.n_group)
                    keep = {block.index: kept for block, kept in zip(layout.trunk, chosen, strict=True)}
                    losses = []
                    for name in names:
                        found = [log_probabilities(engine.logits(chunk, keep)) for chunk in held_out[name]]
                        pairs = zip(reference[name], found, strict=True)
                        losses.append(np.mean([divergence(*pair) for pair in pairs]))
                    row = [f"{loss:.4f}" for loss in (np.mean(losses), max(losses), *losses)]
                    print(f"| {title} | {ratio} | `{method}` | " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
