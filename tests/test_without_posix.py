"""A system without what POSIX alone has, such as Windows: as far as that can be tried without one.

The names that Windows does not have are taken from the modules `os` and `signal`, and the modules that it does not have
cannot be imported. What the standard library itself does otherwise there stays as it is here.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_gguf

import ggufreap

# Those that need them for themselves are imported before they are gone.
CRIPPLED = """
import asyncio, ctypes, multiprocessing, shutil, socket, subprocess, tempfile, zipfile
import gguf, jinja2, msgspec, numpy, rich.console, rich.table, tqdm
import os, signal, sys

for name in ("fcntl", "grp", "pwd", "resource", "termios", "tty", "pty", "syslog"):
    sys.modules[name] = None
for name in (
    "copy_file_range", "fork", "getegid", "geteuid", "getgid", "getloadavg", "getuid", "killpg", "mkfifo", "pathconf",
    "posix_fadvise", "posix_fallocate", "pread", "preadv", "pwrite", "pwritev", "sched_getaffinity", "sendfile",
    "setsid", "sysconf", "uname", "O_NOFOLLOW", "POSIX_FADV_DONTNEED", "POSIX_FADV_RANDOM", "POSIX_FADV_WILLNEED",
):
    vars(os).pop(name, None)
for name in (
    "SIGBUS", "SIGCHLD", "SIGHUP", "SIGQUIT", "SIGSTOP", "SIGUSR1", "alarm", "pthread_sigmask", "setitimer",
    "sigpending", "sigtimedwait", "sigwait",
):
    vars(signal).pop(name, None)
os.name = "other"  # of "nt" pathlib makes paths that this system cannot have
"""
RUN = """
import json
from ggufreap import cli

for words in json.loads(sys.argv[1]):
    try:
        code = cli.main(words)
    except SystemExit as stopped:
        code = stopped.code
    if code:
        raise SystemExit(f"{words[0]}: {code}")
"""


def crippled(folder: Path, *commands: list[str]) -> subprocess.CompletedProcess[str]:
    """What becomes of command lines, one after the other in one process that runs in `folder`.

    Its temporary files lie where no other program looks: without locks it seems dead to those that have them.
    """
    path = os.pathsep.join([str(Path(ggufreap.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", CRIPPLED + RUN, json.dumps(commands)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(folder.parent)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("without-posix")
    tiny_gguf.qwen3moe(folder / "m.gguf", n_embd=64, n_ff=64)
    (folder / "t.txt").write_text("the quick brown fox jumps over lazy hens " * 60)
    return folder


def test_what_only_reads_works(folder: Path) -> None:
    plan = ["plan", "m.gguf", "--method", "weight_norm", "--ratio", "0.25", "-o", "P.json"]
    done = crippled(
        folder,
        ["--help"],
        ["prune", "--help"],
        ["inspect", "m.gguf"],
        plan,
        ["apply", "m.gguf", "--plan", "P.json", "-o", "pruned.gguf", "--dry-run"],
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name for path in folder.iterdir()} == {"m.gguf", "t.txt", "P.json"}, "no lock is left"
    (folder / "P.json").unlink()


@pytest.mark.native
def test_the_whole_job_works(folder: Path) -> None:
    prune = ["prune", "m.gguf", "--ratio", "0.25", "-f", "t.txt", "-o", "out", "-c", "64", "-ub", "64", "-t", "1"]
    done = crippled(folder, [*prune, "--quant", "Q8_0"])
    assert done.returncode == 0, done.stderr
    assert (folder / "out" / "m-RANK-AVERAGE-0.25-Q8_0.gguf").exists()
    assert not [path for path in (folder / "out").iterdir() if path.name.startswith(".")]
