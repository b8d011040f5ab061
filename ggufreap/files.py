"""Small files that appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ggufreap.activity import temporary
from ggufreap.errors import OutputError

PARTIAL = ".partial"


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write beside `path`, sync, rename; raises OutputError, and then nothing partial is left behind."""
    partial = path.with_name(path.name + PARTIAL)
    with temporary(partial):
        try:
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}; free some space or choose another -o") from error
        finally:
            partial.unlink(missing_ok=True)


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


def check_space(folder: Path, needed: int) -> None:
    """Raise OutputError unless `needed` bytes are free where `folder` is, or will be."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise OutputError(
            f"the output needs {needed:,} bytes and {folder} has {free:,} free; free some or choose another -o"
        )


def check_output(path: Path, *inputs: str | Path | None) -> None:
    """Raise OutputError unless `path` can be made and is none of `inputs`: asked before long work, not after it."""
    if path.is_dir():
        raise OutputError(f"{path} is a directory; name a file with -o")
    if not path.parent.is_dir():
        raise OutputError(f"the folder {path.parent} does not exist; make it or choose another -o")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"the folder {path.parent} is not writable; choose another -o")
    if path.exists() and any(path.samefile(source) for source in inputs if source and os.path.exists(source)):
        raise OutputError(f"{path} is the input itself; inputs are never changed, choose another -o")
