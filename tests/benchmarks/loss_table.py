"""Measures what types and missing experts cost the trained model, and prints the table that the search for a size uses.

    python tests/benchmarks/loss_table.py MODEL.gguf FOLDER > ggufreap/fitting/losses.toml

FOLDER holds `<domain>.calib.txt` and `<domain>.eval.txt`. Every figure is the mean KLD over the domains of the model
with one class of tensors in one type, everything else as it was, against the model itself; quantised with the
importance matrix of the calibration texts. The files of a class lie in a temporary folder until they were measured.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from ggufreap import HeldOut, calibrate, preview, quantize
from ggufreap.container import open_gguf
from ggufreap.judging import Exam, compare_files
from ggufreap.options.data import Request
from ggufreap.options.engine import EngineSettings
from ggufreap.options.quantisation import Quantiser
from ggufreap.options.target import DEFAULT_METHOD
from ggufreap.sizing import TYPES
from ggufreap.sizing.classes import REST, ROUTED

EXPERT_TYPES = (
    *("Q8_0", "Q6_K", "Q5_K", "Q5_0", "Q4_K", "IQ4_NL", "IQ4_XS", "IQ3_S", "Q3_K", "IQ3_XXS"),
    *("Q2_K", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"),
)
REST_MIXES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "IQ3_XXS", "Q2_K")
RATIOS = ("0.0625", "0.125", "0.1875", "0.25", "0.3125", "0.375", "0.5", "0.625", "0.75")
WHOLE, PRUNING = "whole", "pruning"
OTHERS = ".=F16"  # everything stays as it is, but what was named before
CALIBRATION_LETTERS = 50_000  # of every domain
CHUNKS, CTX = 4, 256


def domains(folder: Path) -> list[str]:
    """The names of the domains whose texts lie there."""
    return sorted(path.name.removesuffix(".eval.txt") for path in folder.glob("*.eval.txt"))


def calibration(folder: Path) -> Request:
    """The text to calibrate on, a domain each."""
    texts = {name: (folder / f"{name}.calib.txt").read_text(encoding="utf-8") for name in domains(folder)}
    return Request(text={name: text[:CALIBRATION_LETTERS] for name, text in texts.items()})


def held_out(folder: Path, chunks: int = CHUNKS) -> HeldOut:
    """The text to judge by."""
    return HeldOut(tuple(f"{name}={folder / name}.eval.txt" for name in domains(folder)), chunks, CTX)


def requests() -> dict[str, dict[str, tuple[str, tuple[str, ...]]]]:
    """Table -> type -> what the quantiser is asked for, and the types of some tensors."""
    routed = tuple(f"{pattern}=F16" for pattern in ROUTED.values())
    classes = {
        name: {kind: ("Q8_0", (f"{pattern}={kind}", OTHERS)) for kind in EXPERT_TYPES}
        for name, pattern in ROUTED.items()
    }
    return {**classes, REST: {kind: (kind, routed) for kind in REST_MIXES}, WHOLE: {kind: (kind, ()) for kind in TYPES}}


def quantiser(types: tuple[str, ...], imatrix: Path, n_threads: int) -> Quantiser:
    """What the quantiser is told beside the type."""
    embedding = "F16" if OTHERS in types else None
    return Quantiser(imatrix, types, token_embedding_type=embedding, n_threads=n_threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-t", "--threads", type=int, default=1)
    options = parser.parse_args()
    settings = EngineSettings(CTX, CTX, options.threads)
    source, exam = open_gguf(options.model), Exam.of(held_out(options.folder), settings)
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        stats, matrix = Path(folder, "S.npz"), Path(folder, "S.imatrix.gguf")
        calibrate(options.model, stats, calibration(options.folder), imatrix_out=matrix, settings=settings)
        told = preview(
            options.model,
            held_out(options.folder),
            stats=stats,
            ratios=RATIOS,
            methods=(DEFAULT_METHOD,),
            settings=settings,
        )
        found[PRUNING] = {each.plan.ratio: each.comparison.mean.kld for each in told.candidates}
        print(PRUNING, found[PRUNING], file=sys.stderr, flush=True)
        for table, wanted in requests().items():
            paths = {kind: Path(folder, f"{kind}.gguf") for kind in wanted}
            for kind, (asked, types) in wanted.items():
                quantize(options.model, paths[kind], asked, quantiser(types, matrix, options.threads))
            compared = compare_files(source, list(map(open_gguf, paths.values())), exam).files
            found[table] = {kind: each.mean.kld for kind, each in zip(wanted, compared, strict=True)}
            print(table, found[table], file=sys.stderr, flush=True)
            for path in paths.values():
                path.unlink()
    domains_read = f"{CHUNKS} chunks of {CTX} tokens of each of {len(exam.texts)} domains"
    print(f"# Mean KLD in nats on held-out text of {options.model.name}, {domains_read}; made by")
    print("# tests/benchmarks/loss_table.py.")
    for table, row in found.items():
        print(f"\n[{table}]")
        for kind, kld in row.items():
            print(f'"{kind}" = {kld:.5f}')


if __name__ == "__main__":
    main()
