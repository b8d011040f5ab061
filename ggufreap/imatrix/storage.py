"""Importance matrices on disk, in both of llama.cpp's formats."""

import struct
from pathlib import Path

from ggufreap.container.header import MAGIC
from ggufreap.decoding.signatures import HEAD, what_is
from ggufreap.errors import FormatError, InputError, OutputError
from ggufreap.files import replacing
from ggufreap.imatrix.dat_format import read_dat, write_dat
from ggufreap.imatrix.gguf_format import read_gguf, write_gguf
from ggufreap.imatrix.matrix import Imatrix


def load(path: str | Path) -> Imatrix:
    """Read a GGUF importance matrix or a legacy `.dat`, told apart by content: names lie.

    Raises InputError for a file that is neither or cannot be read, FormatError for a damaged one. Never takes more
    memory than the file has bytes, whatever it claims.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(HEAD)
        legacy, other = not start.startswith(MAGIC), what_is(start)
        if legacy and other:
            raise FormatError(f"{path} is {other}, not an importance matrix; make one with llama-imatrix")
        return (read_dat if legacy else read_gguf)(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def save(path: str | Path, imatrix: Imatrix, legacy: bool = False) -> None:
    """Write `imatrix` as llama-imatrix would, whole or not at all; raises OutputError.

    `legacy` loses the counts of the experts and all data sets but the last; only programs of before July 2025 need it.
    """
    path = Path(path)
    if not imatrix.entries:
        raise OutputError(f"cannot write {path}: an importance matrix without entries; llama.cpp reads none such")
    with replacing(path) as file:
        try:
            (write_dat if legacy else write_gguf)(file, path, imatrix)
        except struct.error as error:
            raise OutputError(
                f"cannot write {path}: a count or chunk size is beyond 32 bits, which the format has; merge less data"
            ) from error
