"""What every step of the work takes on one model: time, memory of its own, and what it reads from disk and writes.

    python tests/benchmarks/every_step.py model.gguf --dir DIR [--chunks N] [--type Q4_K_S] [--limit 6G]

Commands as a user types them, in a control group, which takes root and Linux. `real_shape.py` writes the model; DIR
needs room for the pruned file and the quantised one. The page cache is as the step before left it.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from calibrate_against_imatrix import write_text
from larger_than_memory import CHUNK, measure


def steps(model: Path, folder: Path, chunks: int, kind: str) -> dict[str, list[str]]:
    """Name -> arguments of the command; each but the first takes what those before it made."""
    text, held_out = folder / "text.txt", folder / "held-out.txt"
    write_text(text, 2 * CHUNK * chunks, seed=0)
    write_text(held_out, 2 * CHUNK * chunks, seed=1)
    stats, plan, pruned = f"{folder}/S.npz", f"{folder}/P.json", f"{folder}/pruned.gguf"
    matrix, to = f"{folder}/sliced.gguf", ["--type", kind]
    read = ["-c", str(CHUNK), "--chunks", str(chunks)]
    calibrate = ["calibrate", str(model), "-f", str(text), *read]
    of_model = [str(model), "--stats", stats]
    return {
        "inspect": ["inspect", str(model)],
        "calibrate, one chunk at a time": [*calibrate, "-np", "1", "-o", stats],
        "calibrate, chunks at once": [*calibrate, "-o", f"{folder}/at-once.npz"],
        "calibrate --blockwise": [*calibrate, "--blockwise", "1", "-o", f"{folder}/blockwise.npz"],
        "plan": ["plan", *of_model, "--ratio", "0.25", "-o", plan],
        "preview of five ratios": ["preview", *of_model, "--ratios", "0.1,0.2,0.3,0.4,0.5", "-f", str(held_out), *read],
        "apply": ["apply", str(model), "--plan", plan, "-o", pruned],
        "verify": ["verify", str(model), pruned, "--plan", plan],
        "imatrix": ["imatrix", f"{folder}/S.imatrix.gguf", "--model", str(model), "--plan", plan, "-o", matrix],
        "quantize": ["quantize", pruned, *to, "--imatrix", matrix, "--allow-requantize", "-o", f"{folder}/q.gguf"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--dir", type=Path, required=True, metavar="DIR")
    parser.add_argument("--chunks", type=int, default=2, metavar="N")
    parser.add_argument("--type", default="Q4_K_S")
    parser.add_argument("--limit", metavar="BYTES", help="memory of each step, page cache included (no limit)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        for name, command in steps(options.model, Path(folder), options.chunks, options.type).items():
            figures = measure([sys.executable, "-m", "ggufreap", *command], options.limit)
            print(json.dumps({"step": name, **figures}), flush=True)
            if figures["exit code"]:
                sys.exit(f"{name} failed")


if __name__ == "__main__":
    main()
