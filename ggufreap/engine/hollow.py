"""Lets llama.cpp map a model without reading it.

llama.cpp reads a file whole when it maps it (src/llama-mmap.cpp, MAP_POPULATE). So it is given a hollow copy, the
header and then nothing (a hole, which takes no room on disk), and the real file is mapped over that afterwards: its
pages come when they are computed with. Only on POSIX systems; elsewhere llama.cpp loads the file itself.
"""

import ctypes
import mmap
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from ggufreap.activity import temporary
from ggufreap.container import GgufFile
from ggufreap.errors import EngineError, OutputError

SUPPORTED = os.name == "posix"
MAP_FIXED = 0x10  # on Linux and macOS alike
DONTNEED = 4  # MADV_DONTNEED, on both as well
FETCH, DROP = "POSIX_FADV_WILLNEED", "POSIX_FADV_DONTNEED"
_FAILED = ctypes.c_void_p(-1).value


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    libc.mmap.argtypes, libc.mmap.restype = (
        [pointer, size, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64],
        pointer,
    )
    libc.madvise.argtypes, libc.madvise.restype = [pointer, size, ctypes.c_int], ctypes.c_int
    return libc


@contextmanager
def hollow(source: GgufFile, folder: Path) -> Iterator[Path]:
    """The first shard of a hollow copy of `source`, inside `folder`; the model itself on Windows.

    What a killed run left there gives way. Raises OutputError where it cannot be made.
    """
    if not SUPPORTED:
        yield source.path
        return
    inside = folder / "hollow"
    with temporary(inside):
        try:
            _make(source, inside)
            yield inside / source.path.name
        finally:
            shutil.rmtree(inside, ignore_errors=True)


def _make(source: GgufFile, folder: Path) -> None:
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for header in source.headers:
            nbytes = header.path.stat().st_size
            start = min((record.offset for record in header.tensors), default=nbytes)
            with header.path.open("rb") as file, (folder / header.path.name).open("wb") as copy:
                copy.write(file.read(start))
                copy.truncate(nbytes)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror}; free some space or choose another -o") from None


class Weights:
    """The weights of `source`, which are put where llama.cpp mapped `copy`, the hollow one."""

    def __init__(self, source: GgufFile, copy: Path) -> None:
        self._source, self._copy = source, copy
        self._bases: dict[int, int] = {}  # shard -> where its first byte would lie
        self._spans: dict[int, tuple[int, int]] = {}  # shard -> what of it is mapped

    def put(self, addresses: Mapping[str, int]) -> None:
        """`addresses` by weight of the data that graphs read: all are known to lie in the real file afterwards.

        Raises EngineError where llama.cpp did not map its file, or not as one piece.
        """
        if not SUPPORTED:
            return
        for shard, header in enumerate(self._source.headers):
            seen = [(addresses[record.name], record) for record in header.tensors if record.name in addresses]
            if not seen:
                continue
            first = _down(min(record.offset for _, record in seen))
            last = max(record.offset + record.nbytes for _, record in seen)
            bases = {address - record.offset for address, record in seen}
            base, span = self._bases.get(shard, min(bases)), self._spans.get(shard, (first, last))
            if bases != {base} or base % mmap.PAGESIZE or first < span[0] or last > span[1]:
                raise EngineError(
                    f"llama.cpp did not map {header.path} as it lies, so it cannot be computed block by block; "
                    "use --blockwise off"
                )
            if shard not in self._bases:
                self._bases[shard], self._spans[shard] = base, span
                self._map(shard)

    def _map(self, shard: int) -> None:
        first, last = self._spans[shard]
        path = self._source.headers[shard].path
        with path.open("rb") as file:
            flags = mmap.MAP_SHARED | MAP_FIXED
            at = self._bases[shard] + first
            address = _libc().mmap(at, last - first, mmap.PROT_READ, flags, file.fileno(), first)
        if address == _FAILED:
            raise EngineError(f"cannot map {path}: {os.strerror(ctypes.get_errno())}; use --blockwise off")
        _advise(self._copy.with_name(path.name), 0, 0, DROP)  # else its zeros take the place of weights

    def wanted(self, blocks: Collection[int]) -> None:
        """Begin to read the weights of these blocks."""
        for shard, start, nbytes in _ranges(self._source, blocks):
            _advise(self._source.headers[shard].path, start, nbytes, FETCH)

    def done(self, blocks: Collection[int]) -> None:
        """Give back the memory of the weights of these blocks."""
        for shard, start, nbytes in _ranges(self._source, blocks):
            if shard in self._bases:
                first = max(_down(start + mmap.PAGESIZE - 1), self._spans[shard][0])
                last = min(_down(start + nbytes), self._spans[shard][1])
                _libc().madvise(self._bases[shard] + first, max(0, last - first), DONTNEED)
            _advise(self._source.headers[shard].path, start, nbytes, DROP)


def _advise(path: Path, start: int, nbytes: int, advice: str) -> None:
    """Tell the page cache what will be done with a part of a file; 0 bytes: with all behind `start`."""
    if hasattr(os, advice):  # macOS has none
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), start, nbytes, getattr(os, advice))


def _down(offset: int) -> int:
    return offset // mmap.PAGESIZE * mmap.PAGESIZE


def block_of(name: str) -> int | None:
    """The block that a tensor belongs to, None for those of the whole model."""
    part = name.split(".", 2)
    return int(part[1]) if part[0] == "blk" and len(part) == 3 and part[1].isdecimal() else None


def _ranges(source: GgufFile, blocks: Collection[int]) -> list[tuple[int, int, int]]:
    """(shard, offset, bytes) of the weights of these blocks, neighbours joined."""
    mine = sorted(
        (record.shard, record.offset, record.nbytes) for record in source.tensors if block_of(record.name) in blocks
    )
    joined: list[tuple[int, int, int]] = []
    for shard, start, nbytes in mine:
        if joined and joined[-1][0] == shard and start - sum(joined[-1][1:]) < mmap.PAGESIZE:
            joined[-1] = shard, joined[-1][1], start + nbytes - joined[-1][1]
        else:
            joined.append((shard, start, nbytes))
    return joined
