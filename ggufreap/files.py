"""Small files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ggufreap.errors import OutputError

PARTIAL = ".partial"


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write beside `path`, sync, rename; raises OutputError, and then nothing partial is left behind."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; free some space or choose another -o") from None
    finally:
        partial.unlink(missing_ok=True)


def check_folder(path: Path) -> None:
    """Raise OutputError unless `path` can be made: asked before long work, not after it."""
    if path.is_dir():
        raise OutputError(f"{path} is a directory; name a file with -o")
    if not path.parent.is_dir():
        raise OutputError(f"the folder {path.parent} does not exist; make it or choose another -o")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"the folder {path.parent} is not writable; choose another -o")
