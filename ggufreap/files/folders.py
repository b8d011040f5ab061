"""Folders: those that users name, and private ones for what a run makes and nobody else shall see.

A private folder lies beside what is made in it, so that a finished file is only renamed; its name cannot be foreseen
and nobody else may write in it, so no link can be planted there. It holds a lock, its owner's: what a killed run left
is known by that, and cleared when the next run works in the same place.
"""

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ggufreap.activity import temporary
from ggufreap.errors import OutputError
from ggufreap.files.locks import Busy, Lock, left_by_the_dead
from ggufreap.showing import place

OWNER = "owner.json"
_NAME = re.compile(r"\.ggufreap-(\d+)-\w{8}")  # with the process that made it
_LOCK = re.compile(r"\.ggufreap-[0-9a-f]{16}\.lock")  # of an output


@contextmanager
def private_folder(beside: Path | None = None) -> Iterator[Path]:
    """A new folder in `beside`, by default in the system's folder for temporary files; it is removed with all in it.

    What dead runs left in the same place is removed first. Raises OutputError where none can be made.
    """
    parent = Path(tempfile.gettempdir()) if beside is None else beside
    if not parent.is_dir():
        raise OutputError(f"the folder {parent} does not exist; make it or choose another one")
    clear(parent)
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".ggufreap-{os.getpid()}-", dir=parent))
    except OSError as error:
        other = "set TMPDIR to another folder" if beside is None else "choose another -o"
        raise OutputError(f"cannot write in {place(parent)}: {error.strerror}; free some space or {other}") from error
    with temporary(folder):
        lock = None
        try:
            with suppress(OSError):  # a full disk: whatever is to be written here will meet it and say so
                lock = Lock(folder / OWNER)
            yield folder
        finally:
            if lock is not None:
                lock.close()
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def kept_folder(path: Path) -> Iterator[None]:
    """The folder `path`, in which only this run works: with something in it at the end, it waits for a later run.

    It is known by the lock in it, which tells whose it is. Raises OutputError where it cannot be made, another run
    works in it, or what lies there was made by nobody who locks.
    """
    if os.path.lexists(path) and not _is_kept(path):
        raise OutputError(f"{path} is there already, and no run made it; move it away or choose another -o")
    make_folder(path)
    try:
        lock = Lock(path / OWNER)
    except Busy as busy:
        raise OutputError(f"{path} is in use by {busy.owner or 'another run'}; wait for it") from None
    except OSError as error:
        raise OutputError(f"cannot write in {path}: {error.strerror}; free some space or choose another -o") from error
    try:
        yield
    finally:
        clear(path)
        if any(each.name != OWNER for each in path.iterdir()):
            lock.close()
        else:
            lock.release()
            with suppress(OSError):  # somebody put something there
                path.rmdir()


def remove_kept(path: Path) -> None:
    """Remove a folder that `kept_folder` made, with all that waits in it, unless a run works there."""
    if _is_kept(path) and left_by_the_dead(path / OWNER):
        shutil.rmtree(path, ignore_errors=True)


def _is_kept(path: Path) -> bool:
    """Whether a folder has a lock, or nothing: its maker died before."""
    with suppress(OSError):
        return _is_own(path) and ((path / OWNER).is_file() or not any(path.iterdir()))
    return False


def clear(parent: Path) -> None:
    """Remove the private folders and locks in `parent` whose owners are gone, and nothing else."""
    with suppress(OSError):
        for path in parent.iterdir():
            if (name := _NAME.fullmatch(path.name)) and _is_own(path):
                if left_by_the_dead(path / OWNER) or _never_owned(path, int(name[1])):
                    shutil.rmtree(path, ignore_errors=True)
            elif _LOCK.fullmatch(path.name):
                left_by_the_dead(path, remove=True)


def _never_owned(folder: Path, maker: int) -> bool:
    """Whether the process `maker` died before it could say in the folder whose it is."""
    if os.name != "posix":  # where there are no locks either
        return False
    try:
        os.kill(maker, 0)
    except ProcessLookupError:
        return all(each.name == OWNER and not each.stat().st_size for each in folder.iterdir())
    except OSError:
        return False
    return False


def lock_of(path: Path) -> Path:
    """Where the lock of an output lies; its name does not grow with the output's, and is the same for any spelling."""
    import hashlib  # not at the start, where --help would wait for it

    name = hashlib.sha256(os.fsencode(path.name.casefold())).hexdigest()[:16]
    return path.with_name(f".ggufreap-{name}.lock")


def _is_own(folder: Path) -> bool:
    status = folder.lstat()
    return stat.S_ISDIR(status.st_mode) and (not hasattr(os, "getuid") or status.st_uid == os.getuid())


def sync(path: Path) -> None:
    """Put a file, or the renames in a folder, on disk."""
    if path.is_dir() and os.name != "posix":  # a rename is durable once its folder is, but not every system opens one
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(path: Path, parents: bool = False) -> None:
    """Make a folder that may be there already; raises OutputError."""
    try:
        path.mkdir(parents=parents, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {path}: {error.strerror}; choose another -o") from error


def check_folder(path: Path) -> None:
    """Raise OutputError unless the folder `path` can be written in, or can be made."""
    there = next(each for each in (path, *path.absolute().parents) if os.path.lexists(each))
    if not there.is_dir():
        raise OutputError(f"{there} is no folder; choose another one for {path}")
    if not os.access(there, os.W_OK):
        raise OutputError(f"the folder {place(there)} is not writable; choose another one for {path}")


def check_space(folder: Path, needed: int) -> None:
    """Raise OutputError unless `needed` bytes are free where `folder` is, or will be."""
    _check_free(folder, needed, "the output", "choose another -o")


def check_temporary_space(needed: int, what: str) -> None:
    """Raise OutputError unless `needed` bytes are free in the system's folder for temporary files."""
    _check_free(Path(tempfile.gettempdir()), needed, what, "set TMPDIR to a folder with room")


def _check_free(folder: Path, needed: int, what: str, other: str) -> None:
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise OutputError(f"{what} needs {needed:,} bytes and {place(folder)} has {free:,} free; free some or {other}")
