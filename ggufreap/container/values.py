"""GGUF metadata entries: verbatim bytes on one side, Python values on the other.

An entry keeps the exact bytes it was read from, so that what nobody changes is written back bit by bit, and decodes
them only when somebody asks: a vocabulary of 250,000 strings costs nothing until then.
Layout: ggml/src/gguf.cpp, gguf_init_from_reader and gguf_writer.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from gguf.constants import GGUFValueType

from ggufreap.errors import FormatError
from ggufreap.showing import excerpt

Scalar = int | float | bool | str
Value = Scalar | list[Scalar]

SCALAR_FORMATS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
}
U32 = struct.Struct("<I")
U64 = struct.Struct("<Q")


@dataclass(frozen=True)
class MetadataEntry:
    """One key and its value as it stands in the file.

    `raw` is the whole entry (key, type, value); `value_start` is where the payload begins in it, `count` the number
    of array items (1 for a scalar).
    """

    key: str
    type: GGUFValueType
    item_type: GGUFValueType
    count: int
    raw: bytes
    value_start: int

    @property
    def is_array(self) -> bool:
        """Whether the value is an array; `item_type` then tells of what."""
        return bool(self.type == GGUFValueType.ARRAY)

    @cached_property
    def value(self) -> Value:
        """The decoded value; raises FormatError when a string is not UTF-8."""
        if self.item_type == GGUFValueType.STRING:
            items: list[Scalar] = list(self._strings())
        else:
            code = SCALAR_FORMATS[self.item_type][1]
            items = list(struct.unpack_from(f"<{self.count}{code}", self.raw, self.value_start))
        return items if self.is_array else items[0]

    def string(self, index: int) -> str:
        """One item of an array of strings; raises FormatError when it is not UTF-8, decodes no other."""
        position, unpack = self.value_start, U64.unpack_from
        for _ in range(index):
            position += 8 + unpack(self.raw, position)[0]
        return self._text(position, unpack(self.raw, position)[0])

    @cached_property
    def nul_tails(self) -> list[int]:
        """The bytes from the first NUL on, of each string that has one: whoever copies C strings drops them."""
        if self.item_type != GGUFValueType.STRING:
            return []
        position, tails = self.value_start, []
        for _ in range(self.count):
            (length,) = U64.unpack_from(self.raw, position)
            end = position + 8 + length
            nul = self.raw.find(0, position + 8, end)
            if nul >= 0:
                tails.append(end - nul)
            position = end
        return tails

    def _strings(self) -> list[str]:
        position, strings = self.value_start, []
        for _ in range(self.count):
            (length,) = U64.unpack_from(self.raw, position)
            strings.append(self._text(position, length))
            position += 8 + length
        return strings

    def _text(self, position: int, length: int) -> str:
        try:
            return self.raw[position + 8 : position + 8 + length].decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"metadata key {excerpt(self.key)} holds a string that is not UTF-8") from error


def encode(key: str, value: Value, scalar_type: GGUFValueType) -> MetadataEntry:
    """Encode `value` under `key`; `scalar_type` is the type of the value, or of each item of a list."""
    items: Sequence[Scalar] = value if isinstance(value, list) else [value]
    if scalar_type == GGUFValueType.STRING:
        payload = b"".join(_string(str(item)) for item in items)
    else:
        payload = struct.pack(f"<{len(items)}{SCALAR_FORMATS[scalar_type][1]}", *items)
    head = _string(key)
    if isinstance(value, list):
        head += U32.pack(GGUFValueType.ARRAY) + U32.pack(scalar_type) + U64.pack(len(items))
        kind = GGUFValueType.ARRAY
    else:
        head += U32.pack(scalar_type)
        kind = scalar_type
    return MetadataEntry(key, kind, scalar_type, len(items), head + payload, len(head))


def _string(text: str) -> bytes:
    data = text.encode()
    return U64.pack(len(data)) + data
