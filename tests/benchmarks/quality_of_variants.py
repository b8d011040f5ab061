"""What requantising costs on top of pruning, with and without the sliced importance matrix: KLD on held-out text.

    python tests/benchmarks/quality_of_variants.py MODEL.gguf FOLDER [--ratio 0.25] [--types Q4_K_M IQ4_XS]

FOLDER holds `<domain>.calib.txt` and `<domain>.eval.txt`, as for quality.py; the files are made in a temporary folder.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from quality import divergence, log_probabilities

from ggufreap import Output, Quantisation, Target, corpus, prune, quantize
from ggufreap.architecture.layout import bind
from ggufreap.container import open_gguf
from ggufreap.engine.session import LlamaSession
from ggufreap.options.engine import EngineSettings


def scored(path: Path, chunks: dict[str, np.ndarray], settings: EngineSettings) -> dict[str, list[np.ndarray]]:
    """Log-probabilities of every held-out chunk, per domain."""
    file = open_gguf(path)
    with LlamaSession(file.path, bind(file).nodes, settings) as engine:
        return {name: [log_probabilities(engine.logits(chunk)) for chunk in rows] for name, rows in chunks.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ratio", default="0.25")
    parser.add_argument("--types", nargs="+", default=["Q4_K_M", "IQ4_XS", "IQ3_XXS", "Q2_K"])
    parser.add_argument("-c", "--ctx-size", type=int, default=256)
    parser.add_argument("--calibration-chunks", type=int, default=48, help="per domain")
    parser.add_argument("--chunks", type=int, default=16, help="held-out chunks per domain")
    options = parser.parse_args()
    settings = EngineSettings(options.ctx_size, options.ctx_size)
    file = open_gguf(options.model)
    names = sorted(path.name.removesuffix(".eval.txt") for path in options.folder.glob("*.eval.txt"))
    with LlamaSession(file.path, bind(file).nodes, settings) as engine:

        def chunks(name: str, count: int) -> np.ndarray:
            text = corpus.read_text(str(options.folder / name))
            return corpus.from_text(engine, text, options.ctx_size, name).chunks[:count]

        calibration = [chunks(f"{name}.calib.txt", options.calibration_chunks) for name in names]
        held_out = {name: chunks(f"{name}.eval.txt", options.chunks) for name in names}
    reference = scored(options.model, held_out, settings)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        np.save(work / "ids.npy", np.concatenate(calibration))
        made = prune(
            options.model,
            work / "ids.npy",
            target=Target(ratio=options.ratio, method="reap"),
            quantisation=Quantisation(tuple(options.types), keep_intermediate=True),
            output=Output(work, verify=False),
            settings=settings,
        )
        exact = made.script.files[0].path
        candidates = {"pruned, types of the original": exact}
        for name, variant in zip(options.types, made.quantized, strict=True):
            candidates[f"{name}, sliced importance matrix"] = variant.paths[0]
            try:
                candidates[f"{name}, none"] = quantize(exact, work / f"{name}-none.gguf", name).paths[0]
            except Exception as error:
                print(f"{name} without importance matrix: {error}")
        print(f"\nratio {options.ratio}: mean KLD in nats to the unpruned model\n| variant | MB | mean | worst |")
        print("|---|---|---|---|")
        for title, path in candidates.items():
            found = scored(path, held_out, settings)
            losses = [
                np.mean([divergence(*pair) for pair in zip(reference[name], found[name], strict=True)])
                for name in names
            ]
            print(f"| {title} | {path.stat().st_size / 1e6:.1f} | {np.mean(losses):.4f} | {max(losses):.4f} |")


if __name__ == "__main__":
    main()
