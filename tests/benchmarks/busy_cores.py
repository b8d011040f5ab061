"""What it costs calibration that its threads wait by spinning, on quiet cores and beside other programs.

llama.cpp's threads meet after every operation; libgomp lets those that are early spin before they sleep. Beside other
programs the one that is waited for does not run, while the others burn the core that it needs. OMP_WAIT_POLICY and
GOMP_SPINCOUNT decide on that, and are read when libgomp is loaded.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from bench import Sizes, arguments, write_moe
from gguf import GGMLQuantizationType as Kind

WAYS: dict[str, dict[str, str]] = {
    "default": {},
    "active": {"OMP_WAIT_POLICY": "active"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "1,000 spins": {"GOMP_SPINCOUNT": "1000"},
    "10,000 spins": {"GOMP_SPINCOUNT": "10000"},
    "100,000 spins": {"GOMP_SPINCOUNT": "100000"},
}
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
SIZES = Sizes(n_block=4, n_expert=32, n_ff=256, n_embd=768, n_used=4, n_vocab=1024, n_head=12)


def spin() -> None:
    while True:
        pass


def calibrated(model: Path, tokens: Path, variables: dict[str, str]) -> tuple[float, float]:
    """Seconds of wall clock and of all cores that one calibration takes, its start included."""
    out = model.with_name("S.npz")
    command = [sys.executable, "-m", "ggufreap", "calibrate", model, "--tokens", tokens, "-o", out, "--no-imatrix"]
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES} | variables
    start = time.perf_counter()
    process = subprocess.Popen(
        [*command, "-c", "256", "-ub", "256"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr
    said = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(said)
    out.unlink()
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime


def measure(model: Path, tokens: Path, n_busy: int, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Both times of every way in every round, in turn, beside `n_busy` loops."""
    loops = [multiprocessing.Process(target=spin, daemon=True) for _ in range(n_busy)]
    for loop in loops:
        loop.start()
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    try:
        for _ in range(rounds):
            for name, variables in WAYS.items():
                taken[name].append(calibrated(model, tokens, variables))
    finally:
        for loop in loops:
            loop.kill()
            loop.join()
    return taken


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--chunks", type=int, default=24, help="chunks of 256 tokens (24)")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, os.cpu_count() or 1], help="loops beside it (0 N)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        model, tokens = Path(folder) / "model.gguf", Path(folder) / "ids.npy"
        write_moe(model, SIZES, (Kind.Q8_0, Kind.Q8_0))
        ids = np.random.default_rng(0).integers(0, SIZES.n_vocab, (options.chunks, 256)).astype(np.int32)
        np.save(tokens, ids)
        calibrated(model, tokens, {})  # the machine is known, the file in memory
        print(f"{'busy loops':>10}  {'':14} {'wall s':>7} {'CPU s':>7}   wall s of every round")
        for n_busy in options.busy:
            for name, taken in measure(model, tokens, n_busy, options.rounds).items():
                walls, cores = zip(*taken, strict=True)
                every = " ".join(f"{wall:.1f}" for wall in walls)
                print(f"{n_busy:10}  {name:14} {median(walls):7.2f} {median(cores):7.2f}   {every}", flush=True)


if __name__ == "__main__":
    main()
