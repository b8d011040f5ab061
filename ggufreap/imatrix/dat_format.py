"""The legacy `.dat` form of an importance matrix, byte for byte as llama-imatrix writes it.

i32 n_entries; per entry i32 length and name, i32 ncall, i32 nval, f32[nval], which are means times ncall; then, not in
the oldest files, i32 chunks, i32 length and the data set's name. All little-endian. Writer: save_imatrix_legacy in
tools/imatrix/imatrix.cpp; reader: common_imatrix_load_legacy in common/imatrix-loader.cpp.
"""

import os
from pathlib import Path
from struct import Struct
from typing import BinaryIO

import numpy as np

from ggufreap.errors import FormatError, OutputError
from ggufreap.imatrix.matrix import DEFAULT_CHUNK, Imatrix, ImatrixEntry, Sums, check_sums
from ggufreap.showing import EXCERPT, excerpt, shown

I32 = Struct("<i")
SMALLEST_ENTRY = 17  # three numbers, a name of one byte, one value


def read_dat(path: Path) -> Imatrix:
    """Read a legacy file; the result is `per_chunk`, with one count per weight, also where it has experts."""
    with path.open("rb") as file:
        reader = _Reader(path, file)
        n_entries = reader.number("the number of entries") if reader.left >= I32.size else 0
        if not 1 <= n_entries <= reader.left // SMALLEST_ENTRY:
            raise FormatError(
                f"{path} is no importance matrix: neither a GGUF nor a .dat, which would hold {n_entries} entries in "
                f"its {reader.left} bytes; make one with llama-imatrix"
            )
        entries: dict[str, ImatrixEntry] = {}
        for index in range(n_entries):
            name, entry = reader.entry(index)
            if name in entries:
                raise FormatError(
                    f"{path}: {shown(name, EXCERPT)} stands twice, names must be unique; the file is damaged"
                )
            entries[name] = entry
        chunks, datasets = reader.trailer()
    return Imatrix(entries, datasets, chunks, per_chunk=True)


class _Reader:
    """Takes no more than the file has."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.left = os.fstat(file.fileno()).st_size

    def take(self, nbytes: int, what: str) -> bytes:
        if not 0 <= nbytes <= self.left:
            raise FormatError(
                f"{self.path}: {what} takes {nbytes} bytes, {self.left} are left; it is truncated or damaged, "
                "download or make it again"
            )
        self.left -= nbytes
        return self.file.read(nbytes)

    def number(self, what: str) -> int:
        return int(I32.unpack(self.take(I32.size, what))[0])

    def entry(self, index: int) -> tuple[str, ImatrixEntry]:
        what = f"entry {index + 1}"
        try:
            name = self.take(self.number(f"{what}'s name length"), f"{what}'s name").decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"{self.path}: {what}'s name is not UTF-8; the file is damaged") from error
        n_call, n_values = self.number(f"{excerpt(name)}'s chunks"), self.number(f"{excerpt(name)}'s size")
        if n_call < 0 or n_values < 1:
            raise FormatError(
                f"{self.path}: {excerpt(name)} has {n_values} values of {n_call} chunks, an entry has one or more; "
                "the file is damaged"
            )
        sums = np.frombuffer(self.take(4 * n_values, shown(name, EXCERPT)), "<f4")
        check_sums(self.path, shown(name, EXCERPT), sums)
        return name, ImatrixEntry.of(sums, [max(n_call, 1)])  # llama-quantize takes the values of no chunk for means

    def trailer(self) -> tuple[int, tuple[str, ...]]:
        """Chunks and data set, as far as the file tells them."""
        chunks = self.number("the number of chunks") if self.left else 0
        length = self.number("the data set's name length") if self.left else 0
        text = self.take(length, "the data set's name").split(b"\0")[0].decode(errors="surrogateescape")
        if self.left or chunks < 0:
            raise FormatError(
                f"{self.path}: it tells of {chunks} chunks and has {self.left} bytes after its end; the file is damaged"
            )
        return chunks, (text,) if text else ()


def write_dat(file: BinaryIO, path: Path, imatrix: Imatrix) -> None:
    """Write `imatrix` to the open `file` that will be `path`, with the last of its data sets.

    A weight without any count is left out; an expert without one gets a mean of 1, and no reader can tell.
    """
    stored = [(name, entry) for name, entry in sorted(imatrix.entries.items()) if entry.counts.any()]
    if not stored:
        raise OutputError(f"cannot write {path}: no weight has any data; a .dat holds one or more")
    file.write(I32.pack(len(stored)))
    for name, entry in stored:
        raw = name.encode()
        # Rounded up, so that few rows are not none.
        n_call = -(-int(entry.counts.max()) // (1 if imatrix.per_chunk else imatrix.chunk_size or DEFAULT_CHUNK))
        file.write(I32.pack(len(raw)) + raw + I32.pack(n_call) + I32.pack(entry.in_sum2.size))
        file.write(_times_chunks(entry, n_call, imatrix.per_chunk).astype("<f4", copy=False).tobytes())
    dataset = imatrix.datasets[-1].encode(errors="surrogateescape") if imatrix.datasets else b""
    file.write(I32.pack(imatrix.chunk_count) + I32.pack(len(dataset)) + dataset)


def _times_chunks(entry: ImatrixEntry, n_call: int, per_chunk: bool) -> Sums:
    """Mean times chunks in float32, rounded where llama-imatrix rounds; what is that already keeps its bits."""
    if per_chunk and (entry.counts == n_call).all():
        return entry.in_sum2
    counts = entry.counts.astype(np.float32)[:, None]
    means = np.where(counts > 0, entry.in_sum2 / np.maximum(counts, 1), np.float32(1))
    return means * np.float32(n_call)
