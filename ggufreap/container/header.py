"""Reads the header of one GGUF file, and trusts nothing in it.

llama.cpp aborts or misreads on several inconsistencies, so every rule of ggml/src/gguf.cpp (gguf_init_from_reader) is
checked here first. Nothing of the tensor data is touched.
"""

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path

from gguf.constants import GGML_QUANT_SIZES, GGUFValueType

from ggufreap.container.values import SCALAR_FORMATS, U32, U64, MetadataEntry
from ggufreap.decoding.signatures import HEAD, what_is
from ggufreap.errors import FormatError, InputError
from ggufreap.showing import excerpt

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_NAME = 64  # GGML_MAX_NAME, with its final NUL
MAX_DIMS = 4

# A type that llama.cpp knows before the gguf package does: QK2_0 and block_q2_0 in ggml/src/ggml-common.h.
_TYPES: dict[int, tuple[str, int, int]] = {42: ("Q2_0", 64, 18)} | {
    int(kind): (kind.name, block, size) for kind, (block, size) in GGML_QUANT_SIZES.items()
}


def type_name(kind: int) -> str:
    """The name of a ggml type id, such as `Q4_K`."""
    return _TYPES[kind][0]


def bits_per_weight(kind: int) -> float:
    """The bits that one weight takes in a ggml type."""
    _, block, size = _TYPES[kind]
    return 8 * size / block


def block_size(kind: int) -> int:
    """How many weights of a row a ggml type packs at a time."""
    return _TYPES[kind][1]


def is_quantized(kind: int) -> bool:
    """Whether a ggml type packs several weights into one block."""
    return _TYPES[kind][1] > 1


@dataclass(frozen=True)
class TensorRecord:
    """Where a tensor lies. `shape` is in numpy order: the reverse of ggml's `ne`, experts on axis 0."""

    name: str
    shape: tuple[int, ...]
    type: int
    shard: int
    offset: int
    nbytes: int

    @property
    def n_elements(self) -> int:
        """The number of weights."""
        return prod(self.shape)


@dataclass(frozen=True)
class Header:
    """One file's header; `data_start` is where tensor data begins, in bytes from the start of the file."""

    path: Path
    version: int
    alignment: int
    metadata: dict[str, MetadataEntry]
    tensors: tuple[TensorRecord, ...]
    data_start: int


def nbytes_of(shape: tuple[int, ...], kind: int) -> int:
    """The bytes a tensor of `shape` (numpy order) takes in ggml type `kind`."""
    _, block, size = _TYPES[kind]
    return prod(shape) // block * size


def read_header(path: Path, shard: int = 0) -> Header:
    """Parse the header of `path`; raises InputError or FormatError with one line that says what is wrong."""
    try:
        with path.open("rb") as file:
            if path.stat().st_size < 24:
                raise FormatError(f"{path} is not a GGUF file: it has {path.stat().st_size} bytes, a header needs 24")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Parser(path, data, shard).header()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


class _Parser:
    def __init__(self, path: Path, data: mmap.mmap, shard: int) -> None:
        self.path, self.data, self.shard = path, data, shard
        self.size = len(data)
        self.position = 4

    def header(self) -> Header:
        try:
            version, n_tensors, n_kv = self._preamble()
            metadata = self._metadata(n_kv)
            alignment = self._alignment(metadata)
            infos = [self._tensor_info() for _ in range(n_tensors)]
        except (struct.error, OverflowError):  # a length beyond the end, or beyond what an address can be
            self._fail("the header runs past the end of the file", "it is truncated or damaged; download it again")
        data_start = pad(self.position, alignment)
        return Header(self.path, version, alignment, metadata, self._place(infos, data_start, alignment), data_start)

    def _fail(self, fact: str, rule: str) -> None:
        raise FormatError(f"{self.path}: {fact}; {rule}")

    def _u32(self) -> int:
        (number,) = U32.unpack_from(self.data, self.position)
        self.position += 4
        return int(number)

    def _u64(self) -> int:
        (number,) = U64.unpack_from(self.data, self.position)
        self.position += 8
        return int(number)

    def _text(self, what: str) -> str:
        length = self._u64()
        if length > self.size - self.position:
            self._fail(f"{what} claims {length} bytes", "that is more than the file has; it is damaged")
        raw = self.data[self.position : self.position + length]
        self.position += length
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"{self.path}: {what} is not UTF-8; the header is damaged") from error

    def _preamble(self) -> tuple[int, int, int]:
        if self.data[:4] != MAGIC:
            kind = what_is(self.data[:HEAD])
            fact = f"it is {kind}" if kind else f"it starts with {self.data[:4]!r}"
            self._fail(fact, "a GGUF file starts with b'GGUF'; this is not one, give the .gguf file")
        version = self._u32()
        if version & 0xFFFF == 0:
            self._fail("it is big-endian", "only little-endian GGUF is read; convert it with gguf-convert-endian")
        if version not in VERSIONS:
            self._fail(
                f"it is GGUF version {version}", "versions 2 and 3 are read; convert it with a current llama.cpp"
            )
        counts = []
        # The smallest tensor info takes 24 bytes (empty name, no dimensions), the smallest entry 13.
        for what, smallest in (("tensors", 24), ("metadata entries", 13)):
            count = self._u64()
            if count > self.size // smallest:
                self._fail(f"it claims {count} {what}", f"its {self.size} bytes cannot hold them; it is damaged")
            counts.append(count)
        return version, counts[0], counts[1]

    def _metadata(self, n_kv: int) -> dict[str, MetadataEntry]:
        metadata: dict[str, MetadataEntry] = {}
        for index in range(n_kv):
            entry = self._entry(index)
            if entry.key in metadata:
                self._fail(f"metadata key {excerpt(entry.key)} stands twice", "keys must be unique; it is damaged")
            metadata[entry.key] = entry
        return metadata

    def _entry(self, index: int) -> MetadataEntry:
        start = self.position
        key = self._text(f"metadata key {index}")
        if not key:
            self._fail(f"metadata key {index} is empty", "keys need a name; it is damaged")
        kind = item = self._value_type(key)
        count = 1
        if kind == GGUFValueType.ARRAY:
            item, count = self._value_type(key), self._u64()
        value_start = self.position - start
        self._skip(key, item, count)
        raw = self.data[start : self.position]
        return MetadataEntry(key, kind, item, count, raw, value_start)

    def _value_type(self, key: str) -> GGUFValueType:
        number = self._u32()
        try:
            return GGUFValueType(number)
        except ValueError as error:
            raise FormatError(
                f"{self.path}: metadata key {excerpt(key)} has unknown type {number}; it is damaged"
            ) from error

    def _skip(self, key: str, item: GGUFValueType, count: int) -> None:
        if item == GGUFValueType.ARRAY:
            self._fail(f"metadata key {excerpt(key)} is an array of arrays", "llama.cpp does not read such a file")
        smallest = 8 if item == GGUFValueType.STRING else struct.calcsize(SCALAR_FORMATS[item])
        if count * smallest > self.size - self.position:
            self._fail(
                f"metadata key {excerpt(key)} claims {count} items", "that is more than the file has; it is damaged"
            )
        if item != GGUFValueType.STRING:
            self.position += count * smallest
            return
        # The one loop that runs a quarter of a million times: local names, no calls but unpack_from.
        data, position, unpack = self.data, self.position, U64.unpack_from
        for _ in range(count):
            position += 8 + unpack(data, position)[0]
        if position > self.size:
            self._fail(f"metadata key {excerpt(key)} runs past the end", "the file is truncated or damaged")
        self.position = position

    def _alignment(self, metadata: dict[str, MetadataEntry]) -> int:
        entry = metadata.get("general.alignment")
        if entry is None:
            return DEFAULT_ALIGNMENT
        if entry.type != GGUFValueType.UINT32:
            self._fail("general.alignment is not a u32", "llama.cpp refuses such a file")
        alignment = int(entry.value)  # type: ignore[arg-type]  # a u32 scalar, checked above
        if alignment == 0 or alignment & (alignment - 1):
            self._fail(f"general.alignment is {alignment}", "it must be a power of two")
        return alignment

    def _tensor_info(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._text("a tensor name")
        if len(name.encode()) >= MAX_NAME:
            self._fail(f"tensor name {name[:80]!r} is {len(name)} long", f"llama.cpp allows {MAX_NAME - 1}")
        n_dims = self._u32()
        if n_dims > MAX_DIMS:
            self._fail(f"tensor {name!r} has {n_dims} dimensions", f"ggml has at most {MAX_DIMS}; it is damaged")
        shape = tuple(self._u64() for _ in range(n_dims))[::-1]
        kind, offset = self._u32(), self._u64()
        if kind not in _TYPES:
            self._fail(f"tensor {name!r} has ggml type {kind}", "this version does not know it; upgrade gguf")
        if prod(shape) >= 2**63:
            self._fail(f"tensor {name!r} has shape {list(shape)}", "that is beyond 2^63 weights; it is damaged")
        if shape and shape[-1] % _TYPES[kind][1]:
            self._fail(
                f"tensor {name!r} has rows of {shape[-1]} weights",
                f"{type_name(kind)} packs {_TYPES[kind][1]} at a time; it is damaged",
            )
        return name, shape, kind, offset

    def _place(
        self, infos: list[tuple[str, tuple[int, ...], int, int]], data_start: int, alignment: int
    ) -> tuple[TensorRecord, ...]:
        records: list[TensorRecord] = []
        expected, names = 0, set()
        for name, shape, kind, offset in infos:
            if name in names:
                self._fail(f"tensor {name!r} stands twice", "names must be unique; it is damaged")
            names.add(name)
            if offset != expected:
                self._fail(f"tensor {name!r} starts at {offset}", f"the tensors before it end at {expected}")
            nbytes = nbytes_of(shape, kind)
            if data_start + offset + nbytes > self.size:
                self._fail(
                    f"tensor {name!r} needs the bytes up to {data_start + offset + nbytes}",
                    f"the file has {self.size}; it is truncated, download or copy it again",
                )
            records.append(TensorRecord(name, shape, kind, self.shard, data_start + offset, nbytes))
            expected += pad(nbytes, alignment)
        return tuple(records)


def pad(number: int, alignment: int) -> int:
    """`number` rounded up to a multiple of `alignment`."""
    return -(-number // alignment) * alignment
