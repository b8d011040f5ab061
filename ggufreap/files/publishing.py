"""Finished files get their names: first written privately, synced, then renamed; all of them or none."""

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ggufreap.errors import OutputError
from ggufreap.files.folders import private_folder, sync
from ggufreap.files.outputs import check_free, claim, created, writing
from ggufreap.interrupts import held

_BUFFER = 4 << 20


@contextmanager
def replacing(path: Path, own: bool = False) -> Iterator[BinaryIO]:
    """A file that appears at `path` once it is whole and on disk; nothing partial is ever seen or left.

    What lies at `path` is replaced only by `publish`'s rule; `own`: the caller knows it to be of this very work. Raises
    OutputError.
    """
    with writing():
        claim(path)
        with private_folder(path.parent) as folder:
            hidden = folder / path.name
            try:
                with create(hidden) as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                advice = "free some space or choose another -o"
                raise OutputError(f"cannot write {path}: {error.strerror}; {advice}") from error
            publish({hidden: path}, lambda _: own)


def create(path: Path) -> BinaryIO:
    """Open a new file for writing, never one that is there, nor what a link points at; raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags, 0o666), "wb")


def publish(files: Mapping[Path, Path], ours: Callable[[Path], bool] = lambda _: False) -> None:
    """Give finished, synced files (hidden path -> final path, in one folder) their names, the first one last.

    What lies there already stays where it has the same bytes, and is replaced where it is `ours` or the run may
    `force`. Raises OutputError for anything else, before anything is changed.
    """
    wanted = {hidden: final for hidden, final in files.items() if not same_bytes(hidden, final)}
    for final in wanted.values():
        check_free(final, ours(final))
    done: list[Path] = []
    try:
        with held():
            for hidden, final in reversed(wanted.items()):
                if os.path.lexists(final):
                    os.replace(hidden, final)
                else:
                    _link(hidden, final)
                    done.append(final)
                    created(final)
    except OSError as error:
        for final in done:
            final.unlink(missing_ok=True)
        raise OutputError(f"cannot write {final}: {error.strerror}; nothing was left behind") from error
    for folder in {final.parent for final in wanted.values()}:
        sync(folder)


def _link(hidden: Path, final: Path) -> None:
    """Rename, but never over a file that came there in the meantime; raises OSError."""
    try:
        os.link(hidden, final, follow_symlinks=False)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):  # a file system without links
        if os.path.lexists(final):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(final)) from None
        os.replace(hidden, final)
        return
    with suppress(OSError):
        hidden.unlink()


def same_bytes(one: Path, other: Path) -> bool:
    """Whether both are files with the same content."""
    try:
        with one.open("rb") as first, other.open("rb") as second:
            if os.fstat(first.fileno()).st_size != os.fstat(second.fileno()).st_size:
                return False
            while block := first.read(_BUFFER):
                if block != second.read(len(block)):
                    return False
            return True
    except OSError:
        return False
