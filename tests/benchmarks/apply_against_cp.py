"""How fast `apply` writes a pruned file, against `cp` of a file of exactly that size.

`apply` returns when the data is on disk, so `cp` is followed by `sync FILE`; `cp` alone, which returns with the data in
memory, is shown as well. Before each turn the target is gone, the disk is idle, and both sources are either out of the
page cache (cold, a model that was just downloaded or not used for a while) or wholly in it (warm).
"""

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

from bench import Sizes, arguments, child, report, take_turns, write_moe
from gguf import GGMLQuantizationType as Kind

from ggufreap import verbs
from ggufreap.options.target import Target
from ggufreap.planning import save_plan

# Slabs of 1.2 MB (gate and up, Q4_K) and 2.2 MB (down, Q8_0); 18 blocks of 64 experts are 5.7 GB, 69 are 22 GB.
SIZES = Sizes(n_block=18, n_expert=64, n_ff=1024)


def settle(path: Path, target: Path, warm: bool) -> None:
    """Remove `target`, wait for the disk, and put `path` wholly into the page cache or out of it."""
    target.unlink(missing_ok=True)
    os.sync()
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED if warm else os.POSIX_FADV_DONTNEED)
        buffer = bytearray(16 << 20)
        while warm and file.readinto(buffer):
            pass


def measure(folder: Path, sizes: Sizes, warm: bool, rounds: int) -> tuple[dict[str, list[float]], float, int]:
    """Seconds of each contestant, the peak memory of apply in MB and the bytes written."""
    model, plan, pruned, copy = (folder / name for name in ("model.gguf", "plan.json", "pruned.gguf", "copy.gguf"))
    # In a process of its own, since a child's peak memory counts that of the process which started it.
    builder = multiprocessing.Process(target=write_moe, args=(model, sizes, (Kind.Q4_K, Kind.Q8_0)))
    builder.start()
    builder.join()
    save_plan(plan, verbs.plan(model, Target(ratio="0.25", method="random")))
    apply = [sys.executable, "-m", "ggufreap", "apply", model, "--plan", plan, "-o"]
    child([*apply, pruned])  # what cp copies
    memory = []

    def run_apply() -> float:
        target = folder / "again.gguf"
        settle(model, target, warm)
        seconds, peak = child([*apply, target])
        target.unlink()
        memory.append(peak)
        return seconds

    def run_cp(*then: str | Path) -> Callable[[], float]:
        def run() -> float:
            settle(pruned, copy, warm)
            seconds = sum(child(command)[0] for command in (["cp", pruned, copy], then) if command)
            copy.unlink()
            return seconds

        return run

    contestants = {"apply": run_apply, "cp, then sync": run_cp("sync", copy), "cp alone": run_cp()}
    seconds = take_turns(contestants, rounds)
    return seconds, max(memory), pruned.stat().st_size


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--cache", choices=("cold", "warm"), default="cold", help="state of the sources (cold)")
    parser.add_argument("--blocks", type=int, default=SIZES.n_block, help=f"of the model ({SIZES.n_block})")
    options = parser.parse_args()
    sizes = replace(SIZES, n_block=options.blocks)
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        seconds, memory, nbytes = measure(Path(folder), sizes, options.cache == "warm", options.rounds)
    apply, synced, alone = map(median, seconds.values())
    report(
        seconds,
        {
            "throughput / cp and sync": synced / apply,
            "throughput / cp alone": alone / apply,
            "apply MB/s": nbytes / 1e6 / apply,
            "apply peak MB": memory,
        },
    )


if __name__ == "__main__":
    main()
