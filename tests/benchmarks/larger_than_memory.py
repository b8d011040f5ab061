"""What calibration reads and holds when the model is larger than the memory it may use, page cache included.

    python tests/benchmarks/larger_than_memory.py model.gguf --limit 6G --chunks 8 [--blockwise fit] [--dir DIR]

Runs `calibrate` on random tokens in a control group of its own, which takes root and Linux. `real_shape.py` writes the
model.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from ggufreap.container import open_gguf

CHUNK = 512
# cgroups(7), version 1 and 2: folder, limit.
GROUPS = ((Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"), (Path("/sys/fs/cgroup"), "memory.max"))


def grouped(limit: str | None) -> Path:
    """A group whose processes may use `limit` bytes together, where there is one."""
    folder, name = next(group for group in GROUPS if (group[0] / "cgroup.procs").exists())
    group = folder / f"ggufreap-{os.getpid()}"
    group.mkdir()
    if limit is not None:
        (group / name).write_text(limit)
    return group


def field(path: Path, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+)", path.read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


def measure(command: list[str], limit: str | None) -> dict[str, object]:
    """What the processes of `command` read from disk and wrote, the time they took, and the most that one of them held
    beside pages of files."""
    group = grouped(limit)
    started = time.monotonic()
    child = subprocess.Popen(
        command,
        preexec_fn=lambda: (group / "cgroup.procs").write_text(str(os.getpid())),
        stdout=subprocess.DEVNULL,
    )
    own = 0
    while True:
        for pid in (group / "cgroup.procs").read_text().split():
            with suppress(OSError):  # it has just ended
                own = max(own, 1024 * field(Path("/proc") / pid / "status", "RssAnon"))
        ended, status, usage = os.wait4(child.pid, os.WNOHANG)  # of all that it waited for, too
        if ended:
            break
        time.sleep(0.2)
    seconds = time.monotonic() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    group.rmdir()
    return {
        "exit code": child.returncode,
        "seconds": round(seconds, 1),
        "processor seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "read": 512 * usage.ru_inblock,
        "written": 512 * usage.ru_oublock,
        "own memory": own,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--limit", default="6G", metavar="BYTES")
    parser.add_argument("--chunks", type=int, default=8, metavar="N")
    parser.add_argument("--blockwise", default="fit", metavar="HOW")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="where statistics and hidden states go")
    options = parser.parse_args()
    source = open_gguf(options.model)
    n_vocab = source.by_name["token_embd.weight"].shape[0]  # as in numpy
    for path in source.paths:  # else what lies in the page cache already would not be read
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        ids = Path(folder) / "ids.npy"
        np.save(ids, np.random.default_rng(1).integers(0, n_vocab, (options.chunks, CHUNK)).astype(np.int32))
        command = [sys.executable, "-m", "ggufreap", "calibrate", str(options.model), "--tokens", str(ids)]
        found = measure([*command, "--blockwise", options.blockwise, "-o", f"{folder}/S.npz"], options.limit)
    read = int(str(found["read"]))
    print(f"{read / source.nbytes:.2f} of the file read, {int(str(found['own memory'])) / 1e6:,.0f} MB of own memory")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
