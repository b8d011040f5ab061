"""Lays out GGUF files before a byte is written, then streams them into place.

Tensor data is never held: an output tensor is a list of byte ranges of other files, which pass through one buffer, and
of parts that are computed one at a time when their turn comes. A file appears under its final name only when it is
whole and on disk.
"""

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import FileIO
from itertools import chain
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf.constants import GGUFValueType

from ggufreap.activity import doing
from ggufreap.container.gguf_file import SPLIT_KEYS, split_path
from ggufreap.container.header import MAGIC, pad
from ggufreap.container.sink import Sink
from ggufreap.container.values import U32, U64, MetadataEntry, encode
from ggufreap.errors import OutputError
from ggufreap.files import check_free, check_space, claim, create, private_folder, publish, writing
from ggufreap.progress import Bar

# The slabs of kept experts lie scattered, which defeats the kernel's own read-ahead: so the next ones are announced.
# copy_file_range and sendfile go page by page there and took 1.5 times as long as cp; nor could a file system share the
# blocks, since slabs do not begin where blocks do.
STEP = 4 << 20
AHEAD = 64 << 20


@dataclass(frozen=True)
class Piece:
    """A byte range of an existing file."""

    path: Path
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Computed:
    """`nbytes` that `compute` gives when they are written, from the file at `path` if from any; never held together."""

    path: Path | None
    nbytes: int
    compute: Callable[[], npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class OutputTensor:
    """A tensor to be written; `shape` in numpy order, the data is `pieces` one after the other."""

    name: str
    shape: tuple[int, ...]
    type: int
    pieces: tuple[Piece | Computed, ...]

    @property
    def n_elements(self) -> int:
        """The number of weights."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes of its data, without padding."""
        return sum(piece.nbytes for piece in self.pieces)

    def padded(self, alignment: int) -> int:
        """The bytes it takes in the file."""
        return pad(self.nbytes, alignment)


@dataclass(frozen=True)
class OutputFile:
    """One file to be written: its finished header and the tensors that follow it."""

    path: Path
    header: bytes
    tensors: tuple[OutputTensor, ...]
    alignment: int

    @property
    def nbytes(self) -> int:
        """The exact size it will have on disk."""
        return len(self.header) + sum(tensor.padded(self.alignment) for tensor in self.tensors)

    def is_at(self, path: Path) -> bool:
        """Whether the file at `path` was written for the same: it has the same header and size."""
        try:
            with path.open("rb") as file:
                return path.stat().st_size == self.nbytes and file.read(len(self.header)) == self.header
        except OSError:
            return False


def lay_out(
    target: Path, metadata: Sequence[MetadataEntry], groups: Sequence[Sequence[OutputTensor]], alignment: int
) -> tuple[OutputFile, ...]:
    """One file at `target` for one group of tensors, or a split set named after it for several.

    Split metadata as tools/gguf-split writes it: all keys in the first shard, `split.*` in every one.
    """
    kept = [entry for entry in metadata if entry.key not in SPLIT_KEYS]
    if len(groups) == 1:
        return (OutputFile(target, _header(kept, groups[0], alignment), tuple(groups[0]), alignment),)
    prefix, total = target.with_name(target.name.removesuffix(".gguf")), sum(map(len, groups))
    aligned = [entry for entry in kept if entry.key == "general.alignment"]
    files = []
    for index, group in enumerate(groups):
        values = (index, len(groups), total)
        types = (GGUFValueType.UINT16, GGUFValueType.UINT16, GGUFValueType.INT32)
        split = [encode(key, value, kind) for key, value, kind in zip(SPLIT_KEYS, values, types, strict=True)]
        header = _header((kept if index == 0 else aligned) + split, group, alignment)
        files.append(OutputFile(split_path(prefix, index, len(groups)), header, tuple(group), alignment))
    return tuple(files)


def _header(metadata: Sequence[MetadataEntry], tensors: Sequence[OutputTensor], alignment: int) -> bytes:
    parts = [MAGIC, U32.pack(3), U64.pack(len(tensors)), U64.pack(len(metadata))]
    parts += [entry.raw for entry in metadata]
    offset = 0
    for tensor in tensors:
        name = tensor.name.encode()
        parts += [U64.pack(len(name)), name, U32.pack(len(tensor.shape))]
        parts += [U64.pack(length) for length in reversed(tensor.shape)]
        parts += [U32.pack(tensor.type), U64.pack(offset)]
        offset += tensor.padded(alignment)
    header = b"".join(parts)
    return header.ljust(pad(len(header), alignment), b"\0")


def check_target(files: Sequence[OutputFile], *inputs: str | Path | None) -> None:
    """Claim the files; raises OutputError when one is their own source or another of the `inputs`, is not of this work
    and must not be replaced, or does not fit on the disk.
    """
    pieces = (piece for file in files for tensor in file.tensors for piece in tensor.pieces)
    sources = {piece.path for piece in pieces if piece.path}
    claim(*(file.path for file in files), inputs=(*sources, *inputs))
    for file in files:
        check_free(file.path, file.is_at(file.path))
    check_space(files[0].path.parent, sum(file.nbytes for file in files))


def write(files: Sequence[OutputFile], bar: Bar) -> None:
    """Write `files`, all or none: each in a private folder first, synced, then renamed.

    `bar` is told of every byte. Raises OutputError; whatever happens, nothing partial is left behind.
    """
    with writing():
        check_target(files)
        with doing("writing", files[0].path), private_folder(files[0].path.parent) as folder:
            hidden = {folder / file.path.name: file for file in files}
            try:
                for path, file in hidden.items():
                    _write_one(file, path, bar)
            except OSError as error:
                raise OutputError(f"cannot write {files[0].path}: {error.strerror}; nothing was left behind") from error
            places = {file.path: file for file in files}
            publish({path: file.path for path, file in hidden.items()}, lambda path: places[path].is_at(path))


def _write_one(file: OutputFile, path: Path, bar: Bar) -> None:
    with ExitStack() as stack:
        sources = {
            source: stack.enter_context(source.open("rb", buffering=0))
            for source in {each.path for tensor in file.tensors for each in tensor.pieces if isinstance(each, Piece)}
        }
        target = stack.enter_context(create(path)).fileno()
        sink = stack.enter_context(Sink(target, file.nbytes))
        sink.write(file.header)
        bar.update(len(file.header))
        parts = [[*_parts(tensor)] for tensor in file.tensors]
        announced = _announce(sources, [*chain.from_iterable(parts)])
        for tensor, own in zip(file.tensors, parts, strict=True):
            for part in own:
                next(announced)
                _pass_on(part, sources, sink)
                bar.update(part.nbytes)
            padding = tensor.padded(file.alignment) - tensor.nbytes
            sink.write(bytes(padding))
            bar.update(padding)


def _parts(tensor: OutputTensor) -> Iterator[Piece | Computed]:
    """Its pieces, those of files cut to steps."""
    for piece in tensor.pieces:
        if isinstance(piece, Computed):
            yield piece
            continue
        for start in range(0, piece.nbytes, STEP):
            yield Piece(piece.path, piece.offset + start, min(STEP, piece.nbytes - start))


def _pass_on(part: Piece | Computed, sources: Mapping[Path, FileIO], sink: Sink) -> None:
    if isinstance(part, Computed):
        sink.write(_computed(part))
        return
    source, left = sources[part.path], part.nbytes
    source.seek(part.offset)
    while left:
        count = source.readinto(sink.room()[:left])
        if not count:
            raise OSError(errno.EIO, f"{part.path} became shorter while it was read")
        sink.filled(count)
        left -= count


def _announce(sources: Mapping[Path, FileIO], parts: Sequence[Piece | Computed]) -> Iterator[None]:
    """Before each of the parts is read, tell the kernel of those that come next, AHEAD bytes of them."""
    announced = ahead = 0
    for part in parts:
        while announced < len(parts) and ahead < AHEAD:
            following = parts[announced]
            if hasattr(os, "posix_fadvise") and isinstance(following, Piece):
                handle = sources[following.path].fileno()
                os.posix_fadvise(handle, following.offset, following.nbytes, os.POSIX_FADV_WILLNEED)
            announced += 1
            ahead += following.nbytes
        ahead -= part.nbytes
        yield


def _computed(part: Computed) -> memoryview:
    data = np.ascontiguousarray(part.compute()).view(np.uint8).ravel()
    if data.nbytes != part.nbytes:
        raise AssertionError(f"{data.nbytes} bytes were computed where {part.nbytes} were announced")
    return memoryview(data)  # type: ignore[arg-type]  # an array is a Buffer
