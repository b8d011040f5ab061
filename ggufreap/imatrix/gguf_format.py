"""The GGUF form of an importance matrix, byte for byte as llama-imatrix writes it.

Two F32 tensors per weight: `<weight>.in_sum2`, ne [n_in, n_mat], and `<weight>.counts`, ne [1, n_mat]. Writer:
save_imatrix in tools/imatrix/imatrix.cpp; reader: common_imatrix_load in common/imatrix-loader.cpp.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from gguf.constants import GGMLQuantizationType, GGUFValueType

from ggufreap.container import GgufFile, OutputTensor, Piece, TensorRecord, encode, lay_out, open_gguf, type_name
from ggufreap.container.header import DEFAULT_ALIGNMENT, MAX_NAME
from ggufreap.errors import FormatError, InputError, OutputError
from ggufreap.imatrix.matrix import DEFAULT_CHUNK, Imatrix, ImatrixEntry, check_sums, in_tokens

SUMS, COUNTS = "in_sum2", "counts"
DATASETS, CHUNK_COUNT, CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
F32 = GGMLQuantizationType.F32
MAX_COUNT = 2**48


def read_gguf(path: Path) -> Imatrix:
    """Read a GGUF importance matrix; keys that older ones lack become empty or 0."""
    file = open_gguf(path)
    parts: dict[str, dict[str, TensorRecord]] = {}
    for record in file.tensors:
        name, _, part = record.name.rpartition(".")
        if name and part in (SUMS, COUNTS):
            parts.setdefault(name, {})[part] = record
    if not parts:
        raise InputError(
            f"{path} is a GGUF of {len(file.tensors)} tensors, none of them named *.{SUMS}: not an importance matrix; "
            "make one with llama-imatrix"
        )
    entries = {name: _entry(file, name, parts[name]) for name in sorted(parts)}
    datasets = file.get(DATASETS)
    names = tuple(map(str, datasets)) if isinstance(datasets, list) else ()
    return Imatrix(entries, names, _number(file, CHUNK_COUNT), _number(file, CHUNK_SIZE))


def _number(file: GgufFile, key: str) -> int:
    value = file.get(key, 0)
    if not isinstance(value, int) or not 0 <= value < 2**31:  # llama.cpp holds an i32
        raise FormatError(f"{file.path}: metadata key {key} is {value!r}, not a count; the file is damaged")
    return value


def _entry(file: GgufFile, name: str, parts: Mapping[str, TensorRecord]) -> ImatrixEntry:
    for part in (SUMS, COUNTS):
        if part not in parts:
            raise FormatError(f"{file.path}: {name} has no .{part}; an entry needs both, the file is damaged")
        if parts[part].type != F32:
            kind = type_name(parts[part].type)
            raise FormatError(f"{file.path}: {name}.{part} is {kind}, importance matrices are F32; make it again")
    sums, counts = (np.array(file.map(parts[part])).view("<f4") for part in (SUMS, COUNTS))
    if not counts.size or not sums.size or sums.size % counts.size:
        raise FormatError(
            f"{file.path}: {name} has {sums.size} sums and {counts.size} counts, every count needs as many sums; "
            "the file is damaged"
        )
    check_sums(file.path, name, sums)
    check_sums(file.path, f"{name}.{COUNTS}", counts)
    if counts.max() > MAX_COUNT:
        raise FormatError(f"{file.path}: {name} counts {counts.max():g} rows, no text has so many; it is damaged")
    return ImatrixEntry.of(sums, np.floor(counts.astype(np.float64) + 0.5))


def write_gguf(file: BinaryIO, path: Path, imatrix: Imatrix) -> None:
    """Write `imatrix` to the open `file` that will be `path`; the chunks of a `.dat` count as llama-imatrix's default.

    Counts are F32 in this format, so beyond 2^24 rows they are rounded, as llama-imatrix rounds them.
    """
    imatrix = in_tokens(imatrix, imatrix.chunk_size or DEFAULT_CHUNK)
    tensors: dict[str, npt.NDArray[Any]] = {}
    for name, entry in sorted(imatrix.entries.items()):
        tensors[f"{name}.{SUMS}"] = entry.in_sum2
        tensors[f"{name}.{COUNTS}"] = entry.counts[:, None]
    long = next((name for name in tensors if len(name.encode()) >= MAX_NAME), None)
    if long:
        raise OutputError(f"{long} is longer than the {MAX_NAME - 1} bytes that GGUF allows; save it as .dat instead")
    datasets: list[Any] = [text.encode(errors="surrogateescape").decode(errors="replace") for text in imatrix.datasets]
    metadata = [
        encode("general.type", "imatrix", GGUFValueType.STRING),
        encode(DATASETS, datasets, GGUFValueType.STRING),
        encode(CHUNK_COUNT, imatrix.chunk_count, GGUFValueType.UINT32),
        encode(CHUNK_SIZE, imatrix.chunk_size, GGUFValueType.UINT32),
    ]
    # The layout takes pieces of files; the header needs their sizes alone.
    placed = [
        OutputTensor(name, array.shape if len(array) > 1 else array.shape[1:], F32, (Piece(path, 0, 4 * array.size),))
        for name, array in tensors.items()
    ]
    file.write(lay_out(path, metadata, [placed], DEFAULT_ALIGNMENT)[0].header)
    for tensor, array in zip(placed, tensors.values(), strict=True):
        file.write(array.astype("<f4", copy=False).tobytes())
        file.write(bytes(tensor.padded(DEFAULT_ALIGNMENT) - tensor.nbytes))
