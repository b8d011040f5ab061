"""What must hold of narrower experts without running them: rows byte for byte, and down as the solution has it.

Down is encoded anew. In F32, F16 and BF16 it has to be exactly what encoding the solution gives; in other types, of
which the quantiser may have been guided by an importance matrix, it may lie twice as far off as encoding without one
does. Columns of another neuron or expert lie farther off than any type rounds.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ggufreap.architecture.width import Along, Resized, along, is_shared, resized
from ggufreap.container import GgufFile, TensorRecord, is_quantized, type_name
from ggufreap.engine.encoding import Floats, decode_rows, encode_rows, needs_importance
from ggufreap.model import Model
from ggufreap.narrowing import Narrowing
from ggufreap.planning import PruningPlan
from ggufreap.progress import Bar
from ggufreap.rewriting.narrow import down_type, wanted_down

TIMES_ROUNDING = 2


@dataclass(frozen=True)
class NarrowLaw:
    """What `narrowing` of what `plan` leaves makes of the tensors of `model`.

    `rounding`: block -> how far down lies off the solution at most, relative to it, of those that were compared.
    """

    model: Model
    plan: PruningPlan
    narrowing: Narrowing
    rounding: dict[int, float] = field(default_factory=dict)

    @cached_property
    def resized(self) -> Resized:
        """What the file says of widths."""
        return resized(self.model.file, self.model.layout, self.narrowing.width)

    def concerns(self, name: str) -> bool:
        """Whether a tensor changes."""
        return bool(self.narrowing.n_removed and along(name)) or bool(self.resized.shared and is_shared(name))

    def difference(self, pruned: GgufFile, record: TensorRecord, bar: Bar) -> str | None:
        """What is wrong with a tensor of the pruned file, which exists in the source; None if nothing is."""
        before = self.model.file.by_name[record.name]
        if is_shared(record.name):
            found = self._of_shared(pruned, record, before)
        elif (place := along(record.name)) is Along.COLUMNS:
            found = self._of_columns(pruned, record, before)
        else:
            found = self._of_rows(pruned, record, before, 2 if place is Along.HALVES else 1)
        bar.update(record.nbytes)
        return found

    def _of_rows(self, pruned: GgufFile, record: TensorRecord, before: TensorRecord, times: int) -> str | None:
        n_keep, width, wide = self.plan.n_keep, self.narrowing.width, self.narrowing.source_width
        shape = (n_keep, times * width, *before.shape[2:])
        if (record.type, record.shape) != (before.type, shape):
            return "has another type or shape than rows of the source have"
        block = self.model.layout.per_expert[record.name]
        old_slab, new_slab = before.nbytes // before.shape[0], record.nbytes // n_keep
        for place, expert in enumerate(self.plan.keep[block]):
            old = self.model.file.map(before, expert * old_slab, old_slab).reshape(times, wide, -1)
            new = pruned.map(record, place * new_slab, new_slab).reshape(times, width, -1)
            if not np.array_equal(old[:, self.narrowing.neurons[block][place]], new):
                return f"differs from rows of expert {expert} of the source"
        return None

    def _of_columns(self, pruned: GgufFile, record: TensorRecord, before: TensorRecord) -> str | None:
        width, n_keep = self.narrowing.width, self.plan.n_keep
        known = {down_type(before.type, width, intermediate) for intermediate in (False, True)}
        if record.type not in known or record.shape != (n_keep, before.shape[1], width):
            return f"is {type_name(record.type)} {list(record.shape)}, which narrowing does not make of it"
        block, slab = self.model.layout.per_expert[record.name], record.nbytes // n_keep
        for place, expert in enumerate(self.plan.keep[block]):
            wanted = wanted_down(self.model.file, before, self.narrowing, block, place, expert)
            data = pruned.map(record, place * slab, slab)
            found, again = decode_rows(data, record.type, width), _again(wanted, record.type)
            if not is_quantized(record.type):
                if not np.array_equal(found, again):
                    return f"is not the columns that the narrowing has for expert {expert}"
                continue
            off, allowed = _distance(found, wanted), TIMES_ROUNDING * _distance(again, wanted)
            if not off <= allowed:
                return f"lies {off:.1e} off the columns of the narrowing for expert {expert}, {allowed:.0e} is rounding"
            self.rounding[block] = max(self.rounding.get(block, 0.0), off)
        return None

    def _of_shared(self, pruned: GgufFile, record: TensorRecord, before: TensorRecord) -> str | None:
        is_down, neurons = "ffn_down" in record.name, self.resized.shared
        shape = (before.shape[0], neurons) if is_down else (neurons, before.shape[1])
        if (record.type, record.shape) != (before.type, shape):
            return "has another type or shape than the source's with zeros behind"
        rows = before.shape[0] if is_down else 1
        old, new = self.model.file.map(before).reshape(rows, -1), pruned.map(record).reshape(rows, -1)
        if not np.array_equal(old, new[:, : old.shape[1]]) or new[:, old.shape[1] :].any():
            return "is not the source's with zeros behind"
        return None


def _again(wanted: Floats, kind: int) -> Floats:
    importance = np.ones(wanted.shape[1], np.float32) if is_quantized(kind) and needs_importance(kind) else None
    return decode_rows(encode_rows(wanted, kind, importance), kind, wanted.shape[1])


def _distance(found: Floats, wanted: Floats) -> float:
    return float(np.linalg.norm(found - wanted) / max(float(np.linalg.norm(wanted)), 1e-30))
