"""How wide a model's experts are, where that is written, and what else takes its width from there.

A neuron of an expert is a row of gate and up and a column of down. Fewer of them make another model of the same
architecture only where llama.cpp sizes nothing else by the same key; a shared expert that is n times as wide as a
routed one is filled up with zeros to the next n, which computes the same.
"""

import re
from dataclasses import dataclass
from enum import Enum
from math import lcm

from ggufreap.architecture.catalog import EXPERT_WIDTH, SharedWidth
from ggufreap.architecture.layout import BLOCK_TENSOR, MoeLayout
from ggufreap.container import GgufFile, TensorRecord
from ggufreap.container.header import block_size
from ggufreap.errors import InfeasiblePlan, UnsupportedModel

SHARED_COUNT, SHARED_WIDTH = "expert_shared_count", "expert_shared_feed_forward_length"
_DOWN = "blk.{}.ffn_down_exps.weight"  # whose rows are as long as an expert has neurons
_SHARED = re.compile(r"ffn_(gate|up|down)_shexp\.weight")
_DENSE = re.compile(r"ffn_(gate|up|down)\.weight")


class Along(Enum):
    """Where the neurons lie in a tensor of experts."""

    ROWS = "rows"
    """On axis 1: `[n_expert, n_ff, ...]`."""
    HALVES = "halves"
    """On axis 1 twice, those of gate and then those of up."""
    COLUMNS = "columns"
    """On the last axis: `[n_expert, n_embd, n_ff]`."""


_ALONG = (
    (re.compile(r"ffn_(gate|up)_exps\.(weight|bias)"), Along.ROWS),
    (re.compile(r"ffn_gate_up_exps\.(weight|bias)"), Along.HALVES),
    (re.compile(r"ffn_down_exps\.weight"), Along.COLUMNS),
)


def along(name: str) -> Along | None:
    """Where a tensor, by its name, holds the neurons of routed experts; None where it holds none."""
    match = BLOCK_TENSOR.fullmatch(name)
    return next((place for pattern, place in _ALONG if match and pattern.fullmatch(match[2])), None)


def is_shared(name: str) -> bool:
    """Whether a tensor, by its name, is a matrix of the shared expert."""
    match = BLOCK_TENSOR.fullmatch(name)
    return bool(match and _SHARED.fullmatch(match[2]))


@dataclass(frozen=True)
class Resized:
    """What a model says of itself once its experts are narrower.

    `values`: key without the architecture's prefix -> number, or array of one entry per block; `shared`: the neurons
    that its shared experts have then, 0 where they stay as they are.
    """

    values: dict[str, int | list[int]]
    shared: int = 0


def expert_widths(file: GgufFile, layout: MoeLayout) -> tuple[int, ...]:
    """All that there are, ascending: one but where blocks differ, none where no tensor is named as is usual."""
    downs = (file.by_name.get(_DOWN.format(block.index)) for block in layout.blocks)
    return tuple(sorted({down.shape[-1] for down in downs if down}))


def expert_width(file: GgufFile, layout: MoeLayout) -> int:
    """The neurons of every routed expert; raises UnsupportedModel, with the reason, where they cannot be fewer."""
    row = layout.architecture
    widths = {block.index: _down(file, block.index).shape[-1] for block in layout.blocks}
    width = widths[layout.blocks[0].index]
    reason = row.refuse_width
    if not row.proven:
        reason = "no table knows by which key llama.cpp sizes its experts"
    elif other := next((index for index in widths if widths[index] != width), None):
        reason = (
            f"experts of block {layout.blocks[0].index} are {width} neurons wide, those of block {other} "
            f"{widths[other]}; one width for all blocks is known here"
        )
    elif row.dense_as_wide and any(_matches(record, _DENSE) for record in file.tensors):
        reason = row.dense_as_wide
    elif (said := _said(file, layout)) - {0, width}:
        reason = f"{row.name}.{row.width_key} is {sorted(said)[-1]}, but its experts are {width} neurons wide"
    if reason:
        raise UnsupportedModel(f"{file.path}: {row.name} cannot have narrower experts: {reason}; remove experts only")
    return width


def resized(file: GgufFile, layout: MoeLayout, width: int) -> Resized:
    """What changes when every routed expert has `width` neurons.

    Raises UnsupportedModel as `expert_width`, InfeasiblePlan for a width that is none.
    """
    before, row = expert_width(file, layout), layout.architecture
    if not 1 <= width <= before:
        raise InfeasiblePlan(f"{width} of {before} neurons per expert cannot be kept; keep 1 to {before}")
    values = {row.width_key: _new_value(file, layout, row.width_key, before, width)}
    other = f"{row.name}.{EXPERT_WIDTH}"
    if row.width_key != EXPERT_WIDTH and file.get(other):  # no tensor is sized by it, but it should not lie
        values[EXPERT_WIDTH] = _new_value(file, layout, EXPERT_WIDTH, before, width)
    downs = [record for record in file.tensors if is_shared(record.name) and "ffn_down" in record.name]
    if width == before or not downs or row.shared_width is SharedWidth.OWN:
        return Resized(values)
    now, count = downs[0].shape[-1], max(1, int(file.get(f"{row.name}.{SHARED_COUNT}", 0)))
    if row.shared_width is not SharedWidth.COUNTED:
        if not file.get(f"{row.name}.{SHARED_WIDTH}"):
            values[SHARED_WIDTH] = now // count if row.shared_width is SharedWidth.FALLBACK_EACH else now
        return Resized(values)
    if now != count * before:
        raise UnsupportedModel(
            f"{file.path}: {row.name}.{SHARED_COUNT} is {count}, but its shared experts have {now} neurons where "
            f"routed ones have {before}; remove experts only"
        )
    count = _count(downs, now, width)
    return Resized(values | {SHARED_COUNT: count}, count * width)


def _count(downs: list[TensorRecord], now: int, width: int) -> int:
    """The least multiple of `width` that holds the shared experts and whole blocks of their types."""
    count, block = -(-now // width), lcm(*(block_size(record.type) for record in downs))
    while count * width % block:
        count += 1
    return count


def _said(file: GgufFile, layout: MoeLayout) -> set[int]:
    """What the key says of the MoE blocks; nothing where it is absent."""
    row = layout.architecture
    value = file.get(f"{row.name}.{row.width_key}", 0)
    if not isinstance(value, list):
        return {int(value)}
    return {int(value[block.index]) for block in layout.blocks if block.index < len(value)}


def _new_value(file: GgufFile, layout: MoeLayout, key: str, before: int, width: int) -> int | list[int]:
    """In an array every entry that says the old width says the new one; the others are of blocks without experts."""
    value = file.get(f"{layout.architecture.name}.{key}")
    if not isinstance(value, list):
        return width
    return [width if entry == before else int(entry) for entry in value]


def _down(file: GgufFile, block: int) -> TensorRecord:
    return file.by_name[_DOWN.format(block)]


def _matches(record: TensorRecord, pattern: re.Pattern[str]) -> bool:
    match = BLOCK_TENSOR.fullmatch(record.name)
    return bool(match and pattern.fullmatch(match[2]))
