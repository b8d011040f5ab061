"""Lays out GGUF files before a byte is written, then streams them into place.

Tensor data is never held: an output tensor is a list of byte ranges of other files, which the kernel copies. A file
appears under its final name only when it is whole and on disk.
"""

import errno
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from gguf.constants import GGUFValueType

from ggufreap.container.gguf_file import SPLIT_KEYS, split_path
from ggufreap.container.header import MAGIC, pad
from ggufreap.container.values import U32, U64, MetadataEntry, encode
from ggufreap.errors import OutputError
from ggufreap.files import PARTIAL, check_output
from ggufreap.progress import Bar

CHUNK = 64 << 20  # bytes per kernel copy: large enough to be cheap, small enough for a live progress bar
BUFFER = 4 << 20  # bytes held when the kernel cannot copy between the two file systems
_NO_KERNEL_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}


@dataclass(frozen=True)
class Piece:
    """A byte range of an existing file."""

    path: Path
    offset: int
    nbytes: int


@dataclass(frozen=True)
class OutputTensor:
    """A tensor to be written; `shape` in numpy order, the data is `pieces` one after the other."""

    name: str
    shape: tuple[int, ...]
    type: int
    pieces: tuple[Piece, ...]

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
    """Raise OutputError when the files would overwrite their own source or other `inputs`, or not fit on the disk."""
    sources = {piece.path for file in files for tensor in file.tensors for piece in tensor.pieces}
    for file in files:
        check_output(file.path, *sources, *inputs)
    folder = files[0].path.parent
    needed, free = sum(file.nbytes for file in files), shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"the output needs {needed:,} bytes and {folder} has {free:,} free; free some or choose another -o"
        )


def write(files: Sequence[OutputFile], bar: Bar) -> None:
    """Write `files`, all or none: each beside its target first, synced, then renamed.

    `bar` is told of every byte. Raises OutputError; whatever happens, nothing partial is left behind.
    """
    check_target(files)
    partial = [file.path.with_name(file.path.name + PARTIAL) for file in files]
    try:
        for file, path in zip(files, partial, strict=True):
            _write_one(file, path, bar)
        for file, path in zip(files, partial, strict=True):
            path.replace(file.path)
    except OSError as error:
        raise OutputError(f"cannot write {files[0].path}: {error.strerror}; nothing was left behind") from None
    finally:
        for path in partial:
            path.unlink(missing_ok=True)
    _sync(files[0].path.parent)


def _write_one(file: OutputFile, path: Path, bar: Bar) -> None:
    handles: dict[Path, int] = {}
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666)
    try:
        _write_all(target, file.header)
        bar.update(len(file.header))
        for tensor in file.tensors:
            for piece in tensor.pieces:
                if piece.path not in handles:
                    handles[piece.path] = os.open(piece.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
                _copy(handles[piece.path], target, piece, bar)
            padding = tensor.padded(file.alignment) - tensor.nbytes
            _write_all(target, bytes(padding))
            bar.update(padding)
        os.fsync(target)
    finally:
        for handle in (target, *handles.values()):
            os.close(handle)


def _copy(source: int, target: int, piece: Piece, bar: Bar) -> None:
    done = 0
    while done < piece.nbytes:
        copied = _copy_some(source, target, piece.offset + done, min(CHUNK, piece.nbytes - done))
        if copied == 0:
            raise OSError(errno.EIO, f"{piece.path} became shorter while it was read")
        done += copied
        bar.update(copied)


def _copy_some(source: int, target: int, offset: int, length: int) -> int:
    if hasattr(os, "copy_file_range"):
        try:
            return os.copy_file_range(source, target, length, offset)
        except OSError as error:
            if error.errno not in _NO_KERNEL_COPY:
                raise
    os.lseek(source, offset, os.SEEK_SET)
    data = os.read(source, min(length, BUFFER))
    _write_all(target, data)
    return len(data)


def _write_all(target: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]


def _sync(folder: Path) -> None:
    if os.name == "posix":  # a rename is durable once its folder is
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
