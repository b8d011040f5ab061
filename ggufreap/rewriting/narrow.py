"""Narrower experts as parts of a file: rows of gate and up byte for byte, columns of down encoded anew.

A neuron is a row of gate and up, whole blocks of their types, so these stay as they are. It is a column of down, which
runs across blocks: down is read, cut or replaced, and encoded again, one expert at a time.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Kind

from ggufreap.architecture.width import Along, along, expert_width, is_shared, resized
from ggufreap.container import (
    Computed,
    GgufFile,
    OutputTensor,
    Piece,
    TensorRecord,
    Value,
    block_size,
    is_quantized,
    nbytes_of,
    type_name,
)
from ggufreap.engine.encoding import check_readable, decode_rows, encode_rows, needs_importance
from ggufreap.errors import UnsupportedModel
from ggufreap.model import Model
from ggufreap.narrowing import Ids, Narrowing, check_narrowing
from ggufreap.planning import PruningPlan
from ggufreap.rewriting.metadata import Widths

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

# What llama-quantize takes for a type whose blocks the rows do not fill (src/llama-quant.cpp, tensor_type_fallback).
_FALLBACK: Mapping[int, int] = MappingProxyType(
    dict.fromkeys(
        (Kind.IQ1_S, Kind.IQ1_M, Kind.IQ2_XXS, Kind.IQ2_XS, Kind.IQ2_S, Kind.IQ3_XXS, Kind.IQ3_S, Kind.IQ4_XS),
        Kind.IQ4_NL,
    )
    | dict.fromkeys((Kind.Q2_K, Kind.Q3_K, Kind.TQ1_0, Kind.TQ2_0), Kind.Q4_0)
    | {Kind.Q4_K: Kind.Q5_0, Kind.Q5_K: Kind.Q5_1, Kind.Q6_K: Kind.Q8_0}
)


@dataclass(frozen=True)
class Narrow:
    """How experts get narrower.

    `intermediate`: the file is to be quantised next, so down is F16 where it was quantised. `importance`: tensor of
    down -> mean squares of the inputs that stay, `[n_keep, width]`, for the quantiser.
    """

    narrowing: Narrowing
    intermediate: bool = False
    importance: Mapping[str, Floats] = field(default_factory=dict)


def down_type(kind: int, width: int, intermediate: bool = False) -> int:
    """The type that down gets when its rows become `width` long."""
    if not is_quantized(kind):
        return kind
    if intermediate:
        return int(Kind.F16)
    if width % block_size(kind):
        kind = _FALLBACK.get(kind, kind)
    return int(Kind.F16 if width % block_size(kind) else kind)


class Narrower:
    """The tensors of one model with narrower experts.

    Raises UnsupportedModel where the architecture stands in the way, InfeasiblePlan where the narrowing does not fit.
    """

    def __init__(self, model: Model, plan: PruningPlan, asked: Narrow) -> None:
        file, layout = model.file, model.layout
        self._file, self._layout, self._plan, self._asked = file, layout, plan, asked
        self._narrowing = narrowing = asked.narrowing
        down = file.by_name[f"blk.{layout.blocks[0].index}.ffn_down_exps.weight"]
        check_narrowing(narrowing, plan, expert_width(file, layout), down.shape[1])
        self._resized = resized(file, layout, narrowing.width)

    def said(self, n_block: int) -> Widths:
        """What the file says of widths; arrays of one entry per block are cut to `n_block`."""
        values: dict[str, Value] = {}
        for key, value in self._resized.values.items():
            values[key] = list(value[:n_block]) if isinstance(value, list) else value
        return Widths(self._narrowing, values)

    def output(self, record: TensorRecord) -> OutputTensor | None:
        """A tensor as it will be; None for one that narrower experts do not change."""
        if is_shared(record.name) and self._resized.shared:
            return self._filled(record)
        place = along(record.name)
        if place is None or self._narrowing.n_removed == 0:
            return None
        return self._columns(record) if place is Along.COLUMNS else self._rows(record, place)

    def notes(self, tensors: Iterable[OutputTensor]) -> tuple[str, ...]:
        """What is to be known of `tensors`, those of the whole file: types that changed, and what was filled up."""
        changed = Counter(
            (self._file.by_name[tensor.name].type, tensor.type)
            for tensor in tensors
            if along(tensor.name) is Along.COLUMNS and self._file.by_name[tensor.name].type != tensor.type
        )
        why = "until it is quantised" if self._asked.intermediate else f"rows of {self._narrowing.width} do not fit"
        notes = [
            f"ffn_down_exps of {count} blocks: {type_name(new)} for {type_name(old)}, {why}"
            for (old, new), count in changed.items()
        ]
        if self._resized.shared:
            notes.append(
                f"the shared experts are filled up with zeros to {self._resized.shared} neurons, which computes the "
                "same: llama.cpp wants a multiple of the routed experts' width"
            )
        return tuple(notes)

    def _rows(self, record: TensorRecord, place: Along) -> OutputTensor:
        file, width = self._file, self._narrowing.source_width
        slab = record.nbytes // record.shape[0]
        row = slab // record.shape[1]
        times = 2 if place is Along.HALVES else 1
        pieces = []
        for expert, ids in self._experts(record):
            rows = np.concatenate([ids + half * width for half in range(times)])
            pieces.append(
                Computed(self._path(record), len(rows) * row, partial(_take_rows, file, record, expert, rows, row))
            )
        shape = (self._plan.n_keep, times * self._narrowing.width, *record.shape[2:])
        return OutputTensor(record.name, shape, record.type, tuple(pieces))

    def _columns(self, record: TensorRecord) -> OutputTensor:
        width = self._narrowing.width
        check_readable(record.type)
        kind = down_type(record.type, width, self._asked.intermediate)
        importance = self._asked.importance.get(record.name)
        if importance is None and is_quantized(kind) and needs_importance(kind):
            raise UnsupportedModel(
                f"{record.name} is {type_name(kind)}, which cannot be encoded anew without an importance matrix; "
                "give one, or start from a model of another type"
            )
        shape = (self._plan.n_keep, record.shape[1], width)
        block, nbytes = self._layout.per_expert[record.name], nbytes_of(shape[1:], kind)
        pieces = [
            Computed(
                self._path(record),
                nbytes,
                partial(self._encoded, record, block, place, expert, kind, importance),
            )
            for place, expert in enumerate(self._plan.keep[block])
        ]
        return OutputTensor(record.name, shape, kind, tuple(pieces))

    def _encoded(
        self, record: TensorRecord, block: int, place: int, expert: int, kind: int, importance: Floats | None
    ) -> Bytes:
        values = wanted_down(self._file, record, self._narrowing, block, place, expert)
        return encode_rows(values, kind, None if importance is None else importance[place])

    def _filled(self, record: TensorRecord) -> OutputTensor:
        """A matrix of the shared expert with neurons of zeros behind its own; zero bytes are zeros in every type."""
        path, neurons, is_down = self._path(record), self._resized.shared, "ffn_down" in record.name
        shape = (record.shape[0], neurons) if is_down else (neurons, record.shape[1])
        nbytes = nbytes_of(shape, record.type)
        if is_down:
            longer = Computed(path, nbytes, partial(_with_longer_rows, self._file, record, nbytes // shape[0]))
            return OutputTensor(record.name, shape, record.type, (longer,))
        whole = Piece(path, record.offset, record.nbytes)
        behind = Computed(path, nbytes - record.nbytes, partial(_zeros, nbytes - record.nbytes))
        return OutputTensor(record.name, shape, record.type, (whole, behind))

    def _experts(self, record: TensorRecord) -> Iterable[tuple[int, Ids]]:
        block = self._layout.per_expert[record.name]
        return zip(self._plan.keep[block], self._narrowing.neurons[block], strict=True)

    def _path(self, record: TensorRecord) -> Path:
        return self._file.headers[record.shard].path


def wanted_down(
    file: GgufFile, record: TensorRecord, narrowing: Narrowing, block: int, place: int, expert: int
) -> Floats:
    """What down of one expert, the `place`-th that stays, has to be: `[n_embd, width]`."""
    if block in narrowing.downs:
        return np.asarray(narrowing.downs[block][place], np.float32)
    slab = record.nbytes // record.shape[0]
    values = decode_rows(file.map(record, expert * slab, slab), record.type, record.shape[-1])
    return values[:, narrowing.neurons[block][place]]


def _take_rows(file: GgufFile, record: TensorRecord, expert: int, rows: Ids, row: int) -> Bytes:
    slab = record.nbytes // record.shape[0]
    return np.asarray(file.map(record, expert * slab, slab).reshape(-1, row)[rows])


def _zeros(nbytes: int) -> Bytes:
    return np.zeros(nbytes, np.uint8)


def _with_longer_rows(file: GgufFile, record: TensorRecord, row: int) -> Bytes:
    before = file.map(record).reshape(record.shape[0], -1)
    after = np.zeros((record.shape[0], row), np.uint8)
    after[:, : before.shape[1]] = before
    return after
