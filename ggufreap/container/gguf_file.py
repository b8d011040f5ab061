"""A GGUF model as one thing, whether it lies in one file or in a split set.

Names and rules of split sets: src/llama.cpp (llama_split_path) and src/llama-model-loader.cpp (llama_model_loader).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ggufreap.container import identity
from ggufreap.container.header import Header, TensorRecord, read_header
from ggufreap.container.values import MetadataEntry
from ggufreap.errors import FormatError, InputError

SPLIT_NAME = re.compile(r"(?P<prefix>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")


def split_path(prefix: Path, index: int, count: int) -> Path:
    """The file of shard `index` (from 0) of `count`, as llama.cpp names it."""
    return prefix.with_name(f"{prefix.name}-{index + 1:05d}-of-{count:05d}.gguf")


def shards_of(path: Path) -> list[Path]:
    """The files of the split set that `path` is any shard of, by its name alone; else `path` itself."""
    match = SPLIT_NAME.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    shards = (split_path(path.with_name(match["prefix"]), index, count) for index in range(count))
    return [shard for shard in shards if shard.exists()] or [path]


@dataclass(frozen=True)
class GgufFile:
    """An opened model: its headers, not its data.

    `path` is the first shard; `metadata` is the first shard's, since llama.cpp reads no other.
    """

    path: Path
    headers: tuple[Header, ...]

    @property
    def metadata(self) -> dict[str, MetadataEntry]:
        """Key -> entry, in file order."""
        return self.headers[0].metadata

    @property
    def paths(self) -> list[Path]:
        """The files it lies in."""
        return [header.path for header in self.headers]

    @property
    def alignment(self) -> int:
        """The alignment of tensor data in bytes."""
        return self.headers[0].alignment

    @cached_property
    def tensors(self) -> tuple[TensorRecord, ...]:
        """All tensors, shard by shard in file order."""
        return tuple(record for header in self.headers for record in header.tensors)

    @cached_property
    def by_name(self) -> dict[str, TensorRecord]:
        """Name -> tensor."""
        return {record.name: record for record in self.tensors}

    @property
    def nbytes(self) -> int:
        """The bytes on disk, all shards together."""
        return sum(header.path.stat().st_size for header in self.headers)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a metadata key, or `default`."""
        entry = self.metadata.get(key)
        return default if entry is None else entry.value

    def map(self, record: TensorRecord, start: int = 0, nbytes: int | None = None) -> npt.NDArray[np.uint8]:
        """Bytes `start` to `start + nbytes` of a tensor, memory-mapped read-only; freed with the last reference."""
        length = record.nbytes - start if nbytes is None else nbytes
        if length == 0:  # an empty mapping is an error to the operating system
            return np.empty(0, np.uint8)
        path = self.headers[record.shard].path
        return np.memmap(path, np.uint8, "r", offset=record.offset + start, shape=(length,))

    @cached_property
    def fingerprint(self) -> str:
        """What tells its weights apart (ggufreap.container.identity)."""
        return identity.fingerprint(self.headers)

    @cached_property
    def structure(self) -> str:
        """What all conversions of one model share."""
        return identity.structure(self.headers)

    @property
    def types(self) -> str:
        """How many tensors are of which type."""
        return identity.types(self.headers)


def open_gguf(path: str | Path) -> GgufFile:
    """Open one GGUF file, or the whole split set that `path` is any shard of.

    Raises InputError when a file cannot be read and FormatError when a header or the set contradicts itself.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a directory; name the .gguf file (any shard of a split set)")
    header = read_header(path)
    count = _number(header, "split.count")
    if count <= 1:
        return GgufFile(path, (header,))
    headers = _read_set(path, count)
    _check_set(headers)
    return GgufFile(headers[0].path, tuple(headers))


def _number(header: Header, key: str) -> int:
    entry = header.metadata.get(key)
    if entry is None:
        return 0
    if not isinstance(entry.value, int):
        raise FormatError(f"{header.path}: {key} is not an integer; the split set is damaged")
    return entry.value


def _read_set(path: Path, count: int) -> list[Header]:
    match = SPLIT_NAME.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        raise FormatError(
            f"{path}: split.count is {count} but the name does not end in -0000N-of-{count:05d}.gguf; "
            "llama.cpp finds shards by name, give the file its own name back"
        )
    paths = [split_path(path.with_name(match["prefix"]), index, count) for index in range(count)]
    missing = [shard.name for shard in paths if not shard.exists()]
    if missing:
        raise InputError(f"{path}: {len(missing)} of {count} shards missing, first {missing[0]}; put them beside it")
    return [read_header(shard, index) for index, shard in enumerate(paths)]


def _check_set(headers: Sequence[Header]) -> None:
    for index, header in enumerate(headers):
        numbers = _number(header, "split.no"), _number(header, "split.count")
        if numbers != (index, len(headers)):
            raise FormatError(
                f"{header.path}: split.no {numbers[0]} of split.count {numbers[1]}, its name says {index} of "
                f"{len(headers)}; the set is mixed up"
            )
    names = [record.name for header in headers for record in header.tensors]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise FormatError(f"{headers[0].path}: tensor {twice!r} stands in two shards; the set is mixed up")
    total = _number(headers[0], "split.tensors.count")
    if total != len(names):
        raise FormatError(
            f"{headers[0].path}: split.tensors.count is {total}, the shards hold {len(names)}; the set is mixed up"
        )
