"""Hidden states that wait on disk between two pieces of a model."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ggufreap.engine.graph import Piece
from ggufreap.errors import OutputError
from ggufreap.files import create, private_folder, sync


def hidden_path(out: Path) -> Path:
    """The folder where hidden states wait during a calibration of `out`; whoever calibrates has it by kept_folder."""
    return out.with_name(out.name + ".hidden")


def spill_path(folder: Path, block: int) -> Path:
    """Where the hidden states behind a block wait."""
    return folder / f"{block}.hidden"


def clear(folder: Path, but: int = -1) -> None:
    """Remove the hidden states behind all blocks but one."""
    for path in folder.glob("*.hidden"):
        if path != spill_path(folder, but):
            path.unlink(missing_ok=True)


@contextmanager
def reading(folder: Path, through: int) -> Iterator[BinaryIO | None]:
    """What waits behind the block `through`; nothing where that is before the first."""
    if through < 0:
        yield None
        return
    with spill_path(folder, through).open("rb") as file:
        yield file


@contextmanager
def writing(folder: Path, piece: Piece) -> Iterator[BinaryIO | None]:
    """Where a piece leaves its hidden states: whole and on disk at the end of the block, or not there.

    Raises OutputError.
    """
    if piece.ends:
        yield None
        return
    path = spill_path(folder, piece.last)
    try:
        with private_folder(folder) as private:
            with create(private / path.name) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            (private / path.name).replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; free some space or choose another -o") from error
    sync(folder)
