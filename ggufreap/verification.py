"""Proves a pruned file against its source and plan, without trusting how it was written.

The law: the pruned file computes what the original computes with the dropped experts masked.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ggufreap.architecture.layout import BLOCK_TENSOR, MoeLayout, bind
from ggufreap.container import GgufFile, MetadataEntry, TensorRecord, open_gguf
from ggufreap.engine.protocol import Keep, Tokens
from ggufreap.errors import EngineError, FormatError, InfeasiblePlan, UnsupportedModel, VerificationFailed
from ggufreap.planning import PruningPlan
from ggufreap.progress import Bar, Progress, silent

# Per token, the normalised squared error of the pruned logits against the masked original's; nine tokens of ten must
# keep within. Both compute the same, but a softmax over fewer experts may round its last bit another way, and products
# that round their inputs to 8 bits carry that on: most tiny models give 0, a trained Q8_0 model of 4 blocks 5e-6, and
# once in a while that bit decides a token's last expert. Wrong experts change the tokens they serve by 1e-2 to 1.
QUANTILE = 0.9
TOLERANCE = 1e-4
TOLERANCE_OF_EFFECT = 0.05
N_TOKENS = 64
COMPARE_BYTES = 16 << 20
# What a pruned file says of itself.
FREE = (
    *(f"general.{key}" for key in ("name", "finetune", "tags", "size_label", "parameter_count")),
    "general.base_model.",
    "general.dataset.",
    "split.",
    "ggufreap.",
)

# Logits [n_tokens, n_vocab] of a file for every keep-set, experts outside of it masked.
LogitsOf = Callable[[Path, Tokens, Sequence[Keep | None]], Sequence[npt.NDArray[np.float32]]]


@dataclass(frozen=True)
class Check:
    """One thing that must hold."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Verification:
    """All checks, in order; later ones are left out once one fails."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether everything holds."""
        return all(check.ok for check in self.checks)

    def require(self) -> None:
        """Raise VerificationFailed, naming the first check that does not hold."""
        for check in self.checks:
            if not check.ok:
                raise VerificationFailed(f"verification failed at {check.name}: {check.detail}")


def verify_file(
    source: GgufFile, layout: MoeLayout, plan: PruningPlan, out: Path, logits: LogitsOf, progress: Progress = silent
) -> Verification:
    """Check `out` against `source` and `plan`: header, metadata, every byte, and its logits in llama.cpp.

    The plan must have passed `check_plan`. Raises InputError when `out` cannot be read, EngineError when llama.cpp
    does not run the source: neither says anything about the pruned file.
    """
    checks: list[Check] = []
    for check in _checks(source, layout, plan, out, logits, progress):
        checks.append(check)
        if not check.ok:
            break
    return Verification(tuple(checks))


def _checks(
    source: GgufFile, layout: MoeLayout, plan: PruningPlan, out: Path, logits: LogitsOf, progress: Progress
) -> Iterator[Check]:
    try:
        pruned = open_gguf(out)
        pruned_layout = bind(pruned)
    except (FormatError, UnsupportedModel, InfeasiblePlan) as error:
        yield Check("header", False, str(error))
        return
    found = (pruned_layout.n_expert, {block.index for block in pruned_layout.blocks})
    expected = (plan.n_keep, set(plan.keep))
    detail = f"{found[0]} experts in each of {len(found[1])} MoE blocks"
    yield Check(
        "header",
        found == expected,
        detail if found == expected else f"{detail}, plan: {plan.n_keep} in {len(plan.keep)}",
    )
    yield _metadata(source, pruned, layout, plan)
    yield _bytes(source, pruned, layout, plan, progress)
    yield _logits(source, layout, plan, pruned, logits)


def _metadata(source: GgufFile, pruned: GgufFile, layout: MoeLayout, plan: PruningPlan) -> Check:
    """Everything that a pruner has no business changing must be there bit by bit, and nothing else."""
    name, n_block = layout.architecture.name, _n_block(layout, plan)
    counts = ("expert_count", "block_count", "nextn_predict_layers")
    free = (*FREE, *(f"{name}.{key}" for key in (counts if n_block < layout.n_block else counts[:1])))
    keys = [key for key in source.metadata | pruned.metadata if not key.startswith(free)]
    for key in keys:
        before, after = source.metadata.get(key), pruned.metadata.get(key)
        if before is None or after is None:
            return Check("metadata", False, f"{key} is only in the {'source' if before else 'pruned file'}")
        if before.raw != after.raw and not _is_cut(before, after, layout.n_block, n_block):
            return Check("metadata", False, f"{key} differs from the source")
    return Check("metadata", True, f"{len(keys)} entries equal the source's")


def _is_cut(before: MetadataEntry, after: MetadataEntry, n_before: int, n_after: int) -> bool:
    """Whether an array of one entry per block lost those of dropped blocks and nothing else."""
    old = before.value
    return isinstance(old, list) and len(old) == n_before > n_after and after.value == old[:n_after]


def _n_block(layout: MoeLayout, plan: PruningPlan) -> int:
    return layout.n_trunk if plan.mtp == "drop" else layout.n_block


def _bytes(source: GgufFile, pruned: GgufFile, layout: MoeLayout, plan: PruningPlan, progress: Progress) -> Check:
    expected = {record.name for record in source.tensors if _block(record) < _n_block(layout, plan)}
    if set(pruned.by_name) != expected:
        wrong = sorted(set(pruned.by_name) ^ expected)
        return Check("bytes", False, f"{len(wrong)} tensors missing or too many, first {wrong[0]}")
    with progress("verify bytes", sum(record.nbytes for record in pruned.tensors), "B") as bar:
        for record in pruned.tensors:
            before = source.by_name[record.name]
            block = layout.per_expert.get(record.name)
            if (record.type, record.shape[1:]) != (before.type, before.shape[1:]):
                return Check("bytes", False, f"{record.name} has another type or shape than in the source")
            kept = plan.keep[block] if block is not None else None
            wrong_expert = _first_difference(source, before, pruned, record, kept, bar)
            if wrong_expert is not None:
                what = f"expert {wrong_expert} of the source" if kept is not None else "the source"
                return Check("bytes", False, f"{record.name} differs from {what}")
    total = sum(record.nbytes for record in pruned.tensors)
    return Check("bytes", True, f"{len(pruned.tensors)} tensors, {total:,} bytes equal the source's")


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


def _logits(source: GgufFile, layout: MoeLayout, plan: PruningPlan, pruned: GgufFile, logits: LogitsOf) -> Check:
    n_vocab = source.by_name["token_embd.weight"].shape[0]
    tokens = np.random.default_rng(0).integers(0, n_vocab, N_TOKENS).astype(np.int32)
    keep = {block.index: plan.keep[block.index] for block in layout.trunk}
    masked, full = logits(source.path, tokens, [keep, None])
    try:
        (after,) = logits(pruned.path, tokens, [None])
    except EngineError as failure:
        return Check("logits", False, str(failure))
    if not np.isfinite(after).all():
        return Check("logits", False, "the pruned model gives NaN or infinite logits")
    error, effect = _error(after, masked), _error(masked, full)
    detail = f"error {error:.1e} against the masked original on {N_TOKENS} random tokens (masking itself: {effect:.1e})"
    return Check("logits", error <= max(TOLERANCE, TOLERANCE_OF_EFFECT * effect), detail)


def _error(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    difference = (found.astype(np.float64) - expected) ** 2
    scale = (expected.astype(np.float64) ** 2).sum(axis=1)
    return float(np.quantile(difference.sum(axis=1) / np.maximum(scale, 1e-30), QUANTILE))
