"""Runs a verb in a child, so that whatever native code does to it, the user gets one line and an exit code.

llama.cpp is C++ on a stranger's file: it can touch memory that is not there, give itself up, or be killed for want of
memory. This process imports nothing that could die. It passes signals on, waits, and clears up after the dead.
"""

import os
import shutil
import signal
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ggufreap import activity
from ggufreap.activity import LOADING, Activity
from ggufreap.files import private_folder
from ggufreap.files.locks import left_by_the_dead
from ggufreap.interrupts import STOPS
from ggufreap.process import Child, Ending, last_words

INTERRUPTED = 130
_CLEAR_LINE = "\r\x1b[K"  # a progress bar of the dead
# What to try, where the verb has that flag.
_OTHER_WAYS = {"repack": "--no-repack", "n_gpu_layers": "-ngl 0", "n_ubatch": "a smaller -ub"}
# Threads of libgomp wait for each other by spinning, 300,000 times where there is a core for each (its manual): beside
# another program that has the core, that is most of what they do (tests/benchmarks/busy_cores.py).
_SPINNING, _SPINS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"), "1000"
_OF_SERVER = "RPC"  # in what ggml-rpc.cpp says when it gives up
_LESS_MEMORY = {"n_together": "a smaller -np", "n_ubatch": "a smaller -ub", "n_ctx": "a smaller -c"}


def can_supervise() -> bool:
    """Whether this system has what it takes; Windows has other signals."""
    return os.name == "posix"


def supervise(arguments: Sequence[str], flags: Collection[str], program: str = "ggufreap", patient: bool = True) -> int:
    """Run the command line with `arguments` in a child; returns its exit code, 1 with one line where it died.

    `flags`: the fields of EngineSettings that the verb has flags for; `program`: the module, or the path of a script,
    to run; `patient`: its threads sleep where they would spin, unless the environment says how they wait.
    """
    with private_folder() as folder:
        notes = folder / "activity.json"
        # What the child leaves in its temporary folder goes with the folder.
        variables = {activity.VARIABLE: str(notes), "TMPDIR": str(folder)}
        if patient and not any(name in os.environ for name in _SPINNING):
            variables[_SPINNING[0]] = _SPINS
        ending, stopped = _run(program, arguments, variables)
        last = activity.read(notes)
    if stopped and ending.signal in {number.name for number in STOPS}:
        return INTERRUPTED  # it had said so, and was told twice
    if ending.code >= 0 and not last.assertion:
        return ending.code
    _remove(last.temporary)
    start = _CLEAR_LINE if sys.stderr.isatty() else ""
    sys.stderr.write(f"{start}ggufreap: {_explained(ending, last, flags)}\n")
    return 1


def _run(program: str, arguments: Sequence[str], variables: dict[str, str]) -> tuple[Ending, bool]:
    """How the child ended, and whether it was told to stop."""
    stopped = False
    with (
        _waiting_for_signals() as signals,
        Child(
            program, *arguments, stdin=None, stdout=None, stderr=None, variables=variables, interruptible=True
        ) as child,
    ):
        while child.poll() is None:
            number = signal.sigwait(signals)
            if number != signal.SIGCHLD:
                stopped = True
                child.send_signal(number)
        return child.ending(), stopped


@contextmanager
def _waiting_for_signals() -> Iterator[set[signal.Signals]]:
    """Hold back the signals that stop, to pass them on, and that of a child's end.

    A child inherits that, so that none can hit it before it is able to answer (see ggufreap.interrupts). What the one
    who started us wants to be ignored, stays ignored.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    heard = {number for number in STOPS if signal.getsignal(number) is not signal.SIG_IGN} | {signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, heard)
    try:
        yield heard
    finally:
        while signal.sigpending() & heard:  # meant for a child that is gone
            signal.sigwait(heard)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _explained(ending: Ending, last: Activity, flags: Collection[str]) -> str:
    what, path, _ = last.doing[-1] if last.doing else ("starting", "", "")
    kept = next((kept for *_, kept in reversed(last.doing) if kept and os.path.exists(kept)), None)
    cause = f"llama.cpp stopped: {last.assertion}" if last.assertion else f"the process {last_words(ending)}"
    parts = [f"while {what} {path}".rstrip() + f", {cause}"]
    if kept:
        parts.append(f"what was done so far is in {kept}, the same command goes on from there")
    if _OF_SERVER in last.assertion:
        parts.append("see that the servers of --rpc still run, and start the same command again")
    elif last.assertion and what == LOADING:  # it is about the file, and no flag helps
        parts.append("see that the file is whole, or convert it again")
    else:
        parts.append(_advice(ending, flags))
    return "; ".join(filter(None, parts))


def _advice(ending: Ending, flags: Collection[str]) -> str:
    if ending.signal == "SIGBUS":
        return "the file changed or was cut while it was read: see that it is whole"
    if ending.signal == "SIGKILL":
        return " ".join(["free some memory", _try("or", _LESS_MEMORY, flags)]).strip()
    return _try("", _OTHER_WAYS, flags)


def _try(before: str, ways: dict[str, str], flags: Collection[str]) -> str:
    names = [name for flag, name in ways.items() if flag in flags]
    return f"{before} try {' or '.join(names)}".strip() if names else ""


def _remove(paths: Sequence[str]) -> None:
    for path in map(Path, paths):
        with suppress(OSError):
            if path.is_dir():
                shutil.rmtree(path)
            else:  # a lock, and perhaps somebody else's by now
                left_by_the_dead(path, remove=True)
