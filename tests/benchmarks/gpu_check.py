"""Does a graphics card tell what the CPU tells, and how fast? Run by gpu_check.sh, which sets everything up.

On every model, the stages calibrate, preview, verify and eval run with the weights in four places: with the CPU alone,
all on the GPU, half of the blocks there, and the experts of half of the blocks left with the CPU. Statistics and
importance matrix are compared with the CPU's. Single experts may differ where a token chooses between two that are all
but equal, so the totals of blocks are what has to agree. Ends with 1 when a command fails, when they do not, or when a
placement that should have used a GPU did not.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bench import Sizes, write_moe
from gguf import GGMLQuantizationType as Kind

from ggufreap import imatrix, inspect
from ggufreap.corpus.standard_library import calibration_text, held_out_text
from ggufreap.demonstration import MODEL as DEMO_MODEL
from ggufreap.observation import load

CTX = 256
TOLERANCE = 0.01  # of a block's total: activations are rounded to 8 or 16 bits in other places on a GPU
STATISTICS = ("count", "sum_g", "sum_f", "sum_gf", "sum_gf2")


@dataclass(frozen=True)
class Told:
    """What a placement gave: seconds per verb, where the weights went, and the figures to compare."""

    seconds: dict[str, float]
    weights: str
    values: dict[str, np.ndarray]  # [n_block, n_expert]
    matrix: dict[str, np.ndarray]  # [n_mat, n_in], mean squares
    kld: float
    ppl: float


def placements(n_block: int) -> dict[str, tuple[str, ...]]:
    """Name -> flags."""
    half = str(n_block // 2)
    return {
        "CPU": ("-dev", "none", "-ngl", "0"),
        "GPU": ("-ngl", "all"),
        "split": ("-ngl", half),
        "n-cpu-moe": ("-ngl", "all", "--n-cpu-moe", half),
    }


def ggufreap(*arguments: str | Path) -> tuple[float, str, str]:
    """Seconds, standard output and standard error of a command that must not fail."""
    command = [sys.executable, "-m", "ggufreap", *map(str, arguments)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\nended with {done.returncode}: {done.stdout}{done.stderr}")
    return time.perf_counter() - start, done.stdout, done.stderr


def told_by(model: Path, folder: Path, flags: Sequence[str], chunks: int) -> Told:
    """Run all stages with the weights placed as `flags` say; plan and pruned file are made once, of the first."""
    folder.mkdir()
    stats, plan, pruned = folder / "S.npz", folder.parent / "P.json", folder.parent / "pruned.gguf"
    held_out = folder.parent / "held_out.txt"
    common = ("-c", CTX, "-ub", CTX, *flags)
    seconds = {}
    seconds["calibrate"], _, err = ggufreap(
        "calibrate", model, "-o", stats, "-f", folder.parent / "calibration.txt", "--chunks", chunks, *common
    )
    weights = next(line.partition(": ")[2] for line in err.splitlines() if line.startswith("weights of"))
    if not pruned.exists():
        ggufreap("plan", model, "--stats", stats, "--ratio", "0.25", "-o", plan)
        ggufreap("apply", model, "--plan", plan, "-o", pruned)
    judge = ("-f", held_out, "--chunks", max(1, chunks // 4), "--json", *common)
    seconds["preview"], out, _ = ggufreap("preview", model, "--stats", stats, "--ratios", "0.25", *judge)
    kld = json.loads(out)["candidates"][0]["mean"]["kld"]
    seconds["verify"], _, _ = ggufreap("verify", model, pruned, "--plan", plan, *flags)
    seconds["eval"], out, _ = ggufreap("eval", model, *judge)
    (figures,) = json.loads(out)["perplexity"].values()
    entries = imatrix.load(folder / "S.imatrix.gguf").entries
    matrix = {name: imatrix.means(entry) for name, entry in entries.items()}
    return Told(seconds, weights, load(stats)[0].total.values, matrix, kld, figures["value"])


def differences(found: Told, cpu: Told) -> dict[str, float]:
    """The largest relative differences from the CPU, of experts, of blocks, and of weights in the matrix."""
    experts = max(relative(found.values[name], cpu.values[name]) for name in STATISTICS)
    blocks = max(relative(found.values[name].sum(axis=1), cpu.values[name].sum(axis=1)) for name in STATISTICS)
    weights = max(relative(found.matrix[name].sum(), matrix.sum()) for name, matrix in cpu.matrix.items())
    return {"experts": experts, "blocks": blocks, "imatrix": weights, "ppl": relative(found.ppl, cpu.ppl)}


def relative(found: np.ndarray | float, expected: np.ndarray | float) -> float:
    """The largest |difference| over the larger of the two."""
    size = np.maximum(np.abs(found), np.abs(expected))
    return float((np.abs(np.subtract(found, expected)) / np.where(size > 0, size, 1)).max())


def check(model: Path, chunks: int, cpu_only: bool) -> bool:
    """Print what every placement gives on a model; whether all is as it should be."""
    print(f"\n{model.name}, {chunks} chunks of {CTX} tokens")
    good, cpu = True, None
    with tempfile.TemporaryDirectory(prefix="ggufreap-") as name:
        folder = Path(name)
        (folder / "calibration.txt").write_text(calibration_text(8 * CTX * chunks))
        (folder / "held_out.txt").write_text(held_out_text(8 * CTX * chunks))
        for which, flags in placements(inspect(model).n_block).items():
            told = told_by(model, folder / which, flags, chunks)
            cpu = cpu or told
            found = differences(told, cpu)
            print(f"{which:>9}  {told.weights}")
            print("           " + "  ".join(f"{verb} {seconds:.1f} s" for verb, seconds in told.seconds.items()))
            print("           " + "  ".join(f"{what} {value:.1e}" for what, value in found.items()), end="")
            print(f"  KLD {told.kld:.4f}  perplexity {told.ppl:.4f}")
            if found["blocks"] > TOLERANCE or found["imatrix"] > TOLERANCE:
                good = False
                print(f"           differs from the CPU by more than {TOLERANCE:.0%}")
            if (
                which != "CPU"
                and not cpu_only
                and all(part.split()[-1].startswith("CPU") for part in told.weights.split(", "))
            ):
                good = False
                print("           no weights went to a GPU")
    return good


def main() -> None:
    """Check the model that is given, or the embedded one, and a wide one of random weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=DEMO_MODEL, help="a trained model (the embedded one)")
    parser.add_argument("--chunks", type=int, default=64, help=f"of {CTX} tokens, for calibration (64)")
    parser.add_argument("--blocks", type=int, default=4, help="of the wide model (4)")
    parser.add_argument("--experts", type=int, default=64, help="of the wide model (64)")
    parser.add_argument("--cpu-only", action="store_true", help="placements may all end with the CPU")
    options = parser.parse_args()
    good = check(options.model, options.chunks, options.cpu_only)
    with tempfile.TemporaryDirectory(prefix="ggufreap-") as folder:
        wide = Path(folder) / "wide.gguf"
        sizes = Sizes(n_block=options.blocks, n_expert=options.experts, n_ff=768)
        write_moe(wide, sizes, (Kind.Q8_0, Kind.Q8_0), tokenizer=True)
        good &= check(wide, max(1, options.chunks // 4), options.cpu_only)
    sys.exit(0 if good else "not all is as it should be")


if __name__ == "__main__":
    main()
