"""What this process is doing, noted in a small file for the supervisor that would have to explain its death.

Without a supervisor nothing is noted.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

LOADING = "loading"
VARIABLE = "GGUFREAP_ACTIVITY"  # tells a child where to note; the supervisor's own mark


@dataclass
class Activity:
    """What a process was doing, innermost last: what, on which file, and where unfinished work waits if it was saved.

    `temporary`: files and folders that it would have removed; `assertion`: the one with which llama.cpp gave up.
    """

    doing: list[tuple[str, str, str]] = field(default_factory=list)
    temporary: list[str] = field(default_factory=list)
    assertion: str = ""


_path: Path | None = None
_doing: dict[int, tuple[str, str, str]] = {}
_temporary: list[str] = []
_numbers = count()


def adopt() -> bool:
    """Whether a supervisor started this process; from now on it is told. Processes started from here are not asked."""
    global _path
    told = os.environ.pop(VARIABLE, None)
    _path = Path(told) if told else None
    return _path is not None


def begin(what: str, path: str | Path, kept: Path | None = None) -> int:
    """Note that work on a file begins; returns its number, for `end`. Unfinished work is saved at `kept`."""
    number = next(_numbers)
    _doing[number] = (what, str(path), str(kept.absolute()) if kept else "")
    _note()
    return number


def end(number: int) -> None:
    """Note that work is done; a second time does nothing."""
    _doing.pop(number, None)
    _note()


@contextmanager
def doing(what: str, path: str | Path, kept: Path | None = None) -> Iterator[None]:
    """Work on a file for as long as the block runs."""
    number = begin(what, path, kept)
    try:
        yield
    finally:
        end(number)


@contextmanager
def temporary(*paths: str | Path) -> Iterator[None]:
    """Files or folders that the block makes, and removes or renames before it ends."""
    names = [str(Path(path).absolute()) for path in paths]
    _temporary.extend(names)
    _note()
    try:
        yield
    finally:
        for name in names:
            _temporary.remove(name)
        _note()


def gave_up(assertion: str) -> bool:
    """Note with which assertion llama.cpp gives up; whether somebody will tell the user."""
    _note(assertion)
    return _path is not None


def read(path: Path) -> Activity:
    """What a process that ended was doing."""
    with suppress(OSError, ValueError, TypeError):
        return Activity(**json.loads(path.read_bytes()))
    return Activity()


def _note(assertion: str = "") -> None:
    if _path is None:
        return
    noted = {"doing": list(_doing.values()), "temporary": _temporary, "assertion": assertion}
    fresh = _path.with_name(_path.name + ".new")
    with suppress(OSError):  # a full disk: the work itself will meet it and say so
        fresh.write_text(json.dumps(noted))
        fresh.replace(_path)
