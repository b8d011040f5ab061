"""Whose a file is: what a run may write, and what it must leave alone.

The rule, for every verb that writes:

- An output is never one of the run's inputs, nor another of its outputs, by whatever name or link.
- One run at a time works on an output; a second one is told who does.
- A file that the run did not make is neither replaced nor removed. Two exceptions, both lose nothing: a file that has
  the very bytes that were to be written, and one that is known to come from the very work that is done again (the
  statistics of the same model, text and settings; the pruned file of the same plan).
- `force` lifts the last of these, and no other.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from ggufreap.activity import temporary
from ggufreap.errors import OutputError
from ggufreap.files.folders import clear, kept_folder, lock_of
from ggufreap.files.locks import Busy, Lock
from ggufreap.showing import place

_LOG = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")
_Key = tuple[str, str]  # the folder as it really is, and the name as file systems compare names


@dataclass
class _Run:
    """What one verb, with the verbs that it calls, has claimed, was given, and has made."""

    force: bool
    locks: ExitStack
    claimed: dict[_Key, Path] = field(default_factory=dict)
    inputs: list[Path] = field(default_factory=list)
    made: set[_Key] = field(default_factory=set)


_run: ContextVar[_Run | None] = ContextVar("run", default=None)


@contextmanager
def writing(force: bool = False) -> Iterator[None]:
    """A run that writes: what is claimed in the block is its own until the end. Inside another, it is part of it."""
    if _run.get() is not None:
        yield
        return
    with ExitStack() as locks:
        token = _run.set(run := _Run(force, locks))
        locks.callback(_clear_up, run)
        try:
            yield
        finally:
            _run.reset(token)


def _clear_up(run: _Run) -> None:
    """Remove what dead runs left beside the outputs, also where all was there already and nothing was written."""
    for folder in {path.parent for path in run.claimed.values()}:
        clear(folder)


def written_by(verb: Callable[P, R]) -> Callable[P, R]:
    """A verb that writes; its parameter `force`, or that of a value among its parameters, is that of `writing`."""

    @wraps(verb)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        told = (kwargs.get("force"), *(getattr(value, "force", False) for value in (*args, *kwargs.values())))
        with writing(any(each is True for each in told)):
            return verb(*args, **kwargs)

    return run


def claim(*outputs: Path, inputs: Iterable[str | Path | None] = ()) -> None:
    """Make sure that `outputs` can be written and are nobody else's, before long work; to be called while `writing`.

    Raises OutputError where one cannot be made, is an input of this run, another of its outputs, or worked on by
    another run.
    """
    run = _current()
    run.inputs += [Path(each) for each in inputs if each]
    for path in outputs:
        key = _key(path)
        if (other := run.claimed.get(key)) is None:
            _check(path, run.inputs)
            run.claimed[key] = path
            _lock(path, run)
        elif sum(_key(each) == key for each in outputs) > 1:
            raise OutputError(f"{path} and {other} are one file, and two are to be written; name different ones")


def check_free(path: Path, ours: bool = False) -> None:
    """Raise OutputError where a file lies at `path` that may not be replaced: neither `ours`, nor made by this run."""
    run = _current()
    if os.path.lexists(path) and not (run.force or _key(path) in run.made or ours):
        raise OutputError(
            f"{path} is there already and is not of this very work; choose another -o, move it away, "
            "or replace it with --force"
        )


def forced() -> bool:
    """Whether this run may replace what is not its own."""
    run = _run.get()
    return run is not None and run.force


def created(path: Path) -> None:
    """Note that this run made the file at `path`, which was not there before."""
    _current().made.add(_key(path))


def discard(path: Path) -> None:
    """Remove a file if this run made it; else it stays."""
    if _key(path) in _current().made:
        path.unlink(missing_ok=True)


def work_in(path: Path) -> None:
    """Have the folder `path` as kept_folder does, until this run ends; called before anything in it is claimed."""
    _current().locks.enter_context(kept_folder(path))  # it outlives the locks in it, which are given up in reverse


def _current() -> _Run:
    run = _run.get()
    assert run is not None, "nothing is claimed or replaced but while writing()"
    return run


def _key(path: Path) -> _Key:
    return os.path.realpath(path.parent), path.name.casefold()


def _check(path: Path, inputs: Iterable[Path]) -> None:
    if not path.parent.is_dir():
        raise OutputError(f"the folder {path.parent} does not exist; make it or choose another -o")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"the folder {place(path.parent)} is not writable; choose another -o")
    longest = os.pathconf(path.parent, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
    if (length := len(os.fsencode(path.name))) > longest:
        raise OutputError(
            f"the name {path.name} has {length} bytes, {longest} are possible in {place(path.parent)}; "
            "choose a shorter one with -o"
        )
    if path.is_dir():
        raise OutputError(f"{path} is a directory; name a file with -o")
    if str(path) == "-":
        raise OutputError("nothing is written to standard output; name a file with -o")
    if path.exists() and not path.is_file():
        raise OutputError(f"{path} is no file on disk; name one with -o")
    if path.exists() and any(os.path.exists(source) and path.samefile(source) for source in inputs):
        raise OutputError(f"{path} is the input itself; inputs are never changed, choose another -o")


def _lock(path: Path, run: _Run) -> None:
    """Hold the lock of an output until the run ends."""
    run.locks.enter_context(temporary(where := lock_of(path)))
    try:
        lock = Lock(where)
    except Busy as busy:
        who = busy.owner or "another run"
        raise OutputError(f"{path} is being written by {who}; wait for it, or choose another -o") from None
    except OSError as error:
        raise OutputError(f"cannot lock {path}: {error.strerror}; choose another -o") from error
    run.locks.callback(lock.release)
    if lock.before:
        _LOG.warning("%s: %s died while it worked on it; its lock was taken over", path, lock.before)
    if lock.sure is False:
        _LOG.debug("%s: this file system knows no locks", path)
