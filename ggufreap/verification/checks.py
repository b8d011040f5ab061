"""What must hold of a pruned file without running it: header, metadata and every byte."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ggufreap.architecture.layout import BLOCK_TENSOR, MoeLayout, bind
from ggufreap.architecture.width import Along, along, expert_width
from ggufreap.container import GgufFile, MetadataEntry, TensorRecord, open_gguf
from ggufreap.container.header import pad
from ggufreap.errors import FormatError, InfeasiblePlan, UnsupportedModel
from ggufreap.model import Model
from ggufreap.planning import PruningPlan
from ggufreap.progress import Bar, Progress
from ggufreap.rewriting.metadata import EXPERTS_BEFORE, NARROWING, SOURCE, WIDTH_BEFORE
from ggufreap.verification.narrow import NarrowLaw

COMPARE_BYTES = 16 << 20
# What a pruned file says of itself.
FREE = (
    *(f"general.{key}" for key in ("name", "finetune", "tags", "size_label", "parameter_count")),
    "general.base_model.",
    "general.dataset.",
    "split.",
    "ggufreap.",
)


@dataclass(frozen=True)
class Check:
    """One thing that must hold."""

    name: str
    ok: bool
    detail: str


def check_header(plan: PruningPlan, out: Path, law: NarrowLaw | None = None) -> tuple[Check, GgufFile | None]:
    """Whether `out` is a model with the experts that the plan leaves; the file only where it can be read as one."""
    try:
        pruned = open_gguf(out)
        layout = bind(pruned)
        width = expert_width(pruned, layout) if law else 0
    except (FormatError, UnsupportedModel, InfeasiblePlan) as error:
        return Check("header", False, str(error)), None
    actual = (layout.n_expert, {block.index for block in layout.blocks})
    detail = f"{actual[0]} experts in each of {len(actual[1])} MoE blocks"
    if actual != (plan.n_keep, set(plan.keep)):
        return Check("header", False, f"{detail}, plan: {plan.n_keep} in {len(plan.keep)}"), pruned
    if law:
        detail += f", {width} neurons in each of them"
        if width != law.narrowing.width:
            return Check("header", False, f"{detail}, narrowing: {law.narrowing.width}"), pruned
    return Check("header", True, detail), pruned


def check_metadata(model: Model, pruned: GgufFile, plan: PruningPlan, law: NarrowLaw | None = None) -> Check:
    """Everything that a pruner has no business changing must be there bit by bit, and nothing else."""
    if law is None and (made_by := pruned.get(NARROWING)) is not None:
        return Check(
            "metadata", False, f"its experts are narrower ({NARROWING} is {made_by}); give the --narrowing too"
        )
    source, layout = model.file, model.layout
    name, n_block = layout.architecture.name, _n_block(layout, plan)
    counts = ("expert_count", "block_count", "nextn_predict_layers")
    free = (*FREE, *(f"{name}.{key}" for key in (counts if n_block < layout.n_block else counts[:1])))
    widths = {f"{name}.{key}": value for key, value in law.resized.values.items()} if law else {}
    keys = [key for key in source.metadata | pruned.metadata if not key.startswith(free) and key not in widths]
    for key in keys:
        before, after = source.metadata.get(key), pruned.metadata.get(key)
        if before is None or after is None:
            return Check("metadata", False, f"{key} is only in the {'source' if before else 'pruned file'}")
        if before.raw != after.raw and not _is_cut(before, after, layout.n_block, n_block):
            return Check("metadata", False, f"{key} differs from the source")
    expected: dict[str, Any] = {EXPERTS_BEFORE: layout.n_expert, SOURCE: source.fingerprint}
    expected |= {key: value[:n_block] if isinstance(value, list) else value for key, value in widths.items()}
    if law:
        expected |= {WIDTH_BEFORE: law.narrowing.source_width, NARROWING: law.narrowing.sha256}
    for key, value in expected.items():
        if (actual := pruned.get(key)) != value:
            return Check("metadata", False, f"{key} is {actual!r}, and should be {value!r}")
    return Check("metadata", True, f"{len(keys)} entries equal the source's")


def _is_cut(before: MetadataEntry, after: MetadataEntry, n_before: int, n_after: int) -> bool:
    """Whether an array of one entry per block lost those of dropped blocks and nothing else."""
    old = before.value
    return isinstance(old, list) and len(old) == n_before > n_after and after.value == old[:n_after]


def _n_block(layout: MoeLayout, plan: PruningPlan) -> int:
    return layout.n_trunk if plan.mtp == "drop" else layout.n_block


def check_bytes(
    model: Model,
    pruned: GgufFile,
    plan: PruningPlan,
    progress: Progress,
    law: NarrowLaw | None = None,
) -> Check:
    """Every tensor of the source must be there, every expert that stays byte for byte, or as the `law` has it."""
    source, layout = model.file, model.layout
    expected = {record.name for record in source.tensors if _block(record) < _n_block(layout, plan)}
    if set(pruned.by_name) != expected:
        wrong = sorted(set(pruned.by_name) ^ expected)
        return Check("bytes", False, f"{len(wrong)} tensors missing or too many, first {wrong[0]}")
    for number, header in enumerate(pruned.headers):
        ends = [record.offset + record.nbytes for record in pruned.tensors if record.shard == number]
        behind = header.path.stat().st_size - pad(max(ends, default=header.data_start), header.alignment)
        if behind > 0:
            return Check("bytes", False, f"{behind:,} bytes stand behind the last tensor of {header.path.name}")
    with progress("verify bytes", sum(record.nbytes for record in pruned.tensors), "B") as bar:
        for record in pruned.tensors:
            before = source.by_name[record.name]
            if law and law.concerns(record.name):
                if (wrong_how := law.difference(pruned, record, bar)) is not None:
                    return Check("bytes", False, f"{record.name} {wrong_how}")
                continue
            block = layout.per_expert.get(record.name)
            if (record.type, record.shape[1:]) != (before.type, before.shape[1:]):
                return Check("bytes", False, f"{record.name} has another type or shape than in the source")
            kept = plan.keep[block] if block is not None else None
            wrong_expert = _first_difference(source, before, pruned, record, kept, bar)
            if wrong_expert is not None:
                what = f"expert {wrong_expert} of the source" if kept is not None else "the source"
                return Check("bytes", False, f"{record.name} differs from {what}")
    total = sum(record.nbytes for record in pruned.tensors)
    detail = f"{len(pruned.tensors)} tensors, {total:,} bytes equal the source's"
    return Check("bytes", True, detail if law is None else _told(pruned, law))


def _told(pruned: GgufFile, law: NarrowLaw) -> str:
    """What of the bytes is the source's and what is not."""
    anew = [record for record in pruned.tensors if along(record.name) is Along.COLUMNS]
    if not law.narrowing.n_removed:
        anew = []
    equal = sum(record.nbytes for record in pruned.tensors) - sum(record.nbytes for record in anew)
    off = max(law.rounding.values(), default=0.0)
    how = f"up to {off:.1e} off it by rounding" if off else "to the bit"
    zeros = ", zeros behind shared experts aside" if law.resized.shared else ""
    return (
        f"{len(pruned.tensors) - len(anew)} tensors, {equal:,} bytes equal the source's{zeros}; {len(anew)} "
        f"matrices of down are the narrowing's, {how}"
    )


def _block(record: TensorRecord) -> int:
    match = BLOCK_TENSOR.fullmatch(record.name)
    return int(match[1]) if match else -1


def _first_difference(
    source: GgufFile,
    before: TensorRecord,
    pruned: GgufFile,
    record: TensorRecord,
    kept: tuple[int, ...] | None,
    bar: Bar,
) -> int | None:
    """The first expert (0 for a tensor without experts) whose bytes are not the source's, or None."""
    experts = kept if kept is not None else (0,)
    size = record.nbytes // len(experts)
    if kept is None and record.nbytes != before.nbytes:
        return 0
    for position, expert in enumerate(experts):
        for start in range(0, size, COMPARE_BYTES):
            length = min(COMPARE_BYTES, size - start)
            old = source.map(before, expert * size + start, length)
            new = pruned.map(record, position * size + start, length)
            if not np.array_equal(old, new):
                return expert
            bar.update(length)
    return None
