"""An importance matrix and the model it was made from: whether they fit, and what pruning does to it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ggufreap.architecture.layout import BLOCK_TENSOR, MoeBlock, MoeLayout
from ggufreap.container import GgufFile, TensorRecord
from ggufreap.errors import InfeasiblePlan, InputError, MismatchError
from ggufreap.imatrix.matrix import Counts, Imatrix, ImatrixEntry
from ggufreap.imatrix.storage import load

EXPERTS = "_exps.weight"
# Weights of blocks that llama-quantize leaves as they are: tensor_allows_quantization in src/llama-quant.cpp.
NEVER_QUANTISED = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|ffn_gate_tid2eid\.weight|altup|laurel|ssm_conv1d|shortconv\.conv\.weight"
    r"|indexer\.[kq]_proj\.weight|time_mix_(first|[wva][012]|g[12]|decay_w[12]|lerp_fused)\.weight|attn_rel_b\.weight"
)
# The weights that share the input of an expert's first product; a model has one of them in every block.
FIRST = ("gate", "gate_up", "up")
_GATE_UP = re.compile(r"(blk\.\d+\.ffn_)(gate|gate_up|up)" + re.escape(EXPERTS))


@dataclass(frozen=True)
class Coverage:
    """How far an importance matrix covers a model.

    `missing`: weights of its blocks that llama-quantize would quantise without it; `missing_mtp`: the same of MTP
    blocks, which ordinary decoding never runs. `unknown`: entries for weights that the model does not have.
    """

    n_matched: int
    missing: tuple[str, ...]
    missing_mtp: tuple[str, ...]
    unknown: tuple[str, ...]


def check(imatrix: Imatrix, file: GgufFile, layout: MoeLayout) -> Coverage:
    """Compare names and sizes; raises MismatchError where llama-quantize would stop, or nothing fits at all."""
    matched = {name: file.by_name[name] for name in imatrix.entries if name in file.by_name}
    if not matched:
        raise MismatchError(
            f"none of {len(imatrix.entries)} entries of the importance matrix is one of {len(file.tensors)} tensors "
            f"of {file.path}; it belongs to another model"
        )
    wrong = [name for name, record in matched.items() if not _fits(imatrix.entries[name], record)]
    if wrong:
        shape, (n_mat, n_in) = imatrix.entries[wrong[0]].in_sum2.shape, _matrices(matched[wrong[0]])
        raise MismatchError(
            f"{len(wrong)} of {len(matched)} entries of the importance matrix have another size than in {file.path}: "
            f"{wrong[0]} has {shape[0]} x {shape[1]} sums, the weight takes {n_mat} x {n_in}; "
            "make one from this model, or slice its original's by the plan"
        )
    missing = [record.name for record in file.tensors if record.name not in matched and _quantised(record)]
    return Coverage(
        len(matched),
        tuple(name for name in missing if _block(name) < layout.n_trunk),
        tuple(name for name in missing if _block(name) >= layout.n_trunk),
        tuple(name for name in imatrix.entries if name not in matched),
    )


def adapted(imatrix: Imatrix, file: GgufFile) -> Imatrix:
    """The matrix with gate and up fused where the model has them fused, and apart where it has them apart.

    Both see the same inputs, so the sums are the same whichever way a converter wrote the weights.
    """
    entries, blocks = dict(imatrix.entries), set()
    for record in file.tensors:
        if record.name in entries or (match := _GATE_UP.fullmatch(record.name)) is None:
            continue
        others = (f"{match[1]}{part}{EXPERTS}" for part in FIRST)
        known = next((name for name in others if name in imatrix.entries and name not in file.by_name), None)
        if known is not None:
            entries[record.name] = imatrix.entries[known]
            blocks.add(match[1])
    old = {f"{block}{part}{EXPERTS}" for block in blocks for part in FIRST} - file.by_name.keys()
    return replace(imatrix, entries={name: entry for name, entry in entries.items() if name not in old})


def load_for(path: str | Path, file: GgufFile) -> Imatrix:
    """The matrix in a file, as `load`, adapted to a model."""
    return adapted(load(path), file)


def reached(file: GgufFile, layout: MoeLayout) -> set[str]:
    """The tensors of which calibration can collect importance: of blocks that decoding runs, and the output head."""
    return {"output.weight"} | {record.name for record in file.tensors if 0 <= _block(record.name) < layout.n_trunk}


def full_nbytes(file: GgufFile) -> int:
    """About how large a matrix of all of a model's blocks is on disk: its sums and counts, without the header."""
    return sum(4 * n_mat * (n_in + 1) for n_mat, n_in in map(_matrices, filter(_quantised, file.tensors)))


def sliced(imatrix: Imatrix, layout: MoeLayout, keep: Mapping[int, Sequence[int]]) -> Imatrix:
    """The importance matrix of the pruned model: of every expert weight the rows of the kept ids, in their order.

    `keep`: MoE block -> kept ids, as in a plan; where it names no MTP blocks, all entries of these blocks leave.
    Everything else is untouched, the router too: its experts are outputs, and importance is of inputs.
    """
    dropped = {block.index for block in layout.blocks} - set(keep)
    if dropped & {block.index for block in layout.trunk}:
        raise MismatchError(f"the plan does not name MoE block {min(dropped)}; every block must keep experts")
    entries = {}
    for name, entry in imatrix.entries.items():
        if dropped and _block(name) >= layout.n_trunk:
            continue
        block = layout.per_expert.get(name) if name.endswith(EXPERTS) else None
        entries[name] = entry if block is None else _rows(name, entry, layout.n_expert, keep[block])
    return replace(imatrix, entries=entries)


@dataclass(frozen=True)
class ExpertSums:
    """What an importance matrix knows of every expert, `[n_moe_blocks, n_expert]`, row by row of `layout.trunk`.

    `counts`: routed tokens. `down`, `gate`: the sum of the squared 2-norms of the inputs of its `last` and of its
    `first` weight, which is `ffn_gate_up_exps` or `ffn_up_exps` where the model has no `ffn_gate_exps`.
    """

    blocks: tuple[int, ...]
    first: tuple[str, ...]
    last: tuple[str, ...]
    counts: Counts
    down: npt.NDArray[np.float64]
    gate: npt.NDArray[np.float64]


def expert_statistics(imatrix: Imatrix, layout: MoeLayout) -> ExpertSums:
    """Counts and energies of every expert that ordinary decoding can reach; a `.dat` does not have them."""
    first = tuple(_first(block) for block in layout.trunk)
    last = tuple(f"blk.{block.index}.ffn_down{EXPERTS}" for block in layout.trunk)
    downs = [_experts(imatrix, layout, name) for name in last]
    gates = [_experts(imatrix, layout, name) for name in first]
    return ExpertSums(
        tuple(block.index for block in layout.trunk),
        first,
        last,
        np.stack([entry.counts for entry in downs]),
        np.stack([entry.in_sum2.sum(axis=1, dtype=np.float64) for entry in downs]),
        np.stack([entry.in_sum2.sum(axis=1, dtype=np.float64) for entry in gates]),
    )


def _first(block: MoeBlock) -> str:
    names = [f"blk.{block.index}.ffn_{part}{EXPERTS}" for part in FIRST]
    return next((name for name in names if name in block.per_expert), names[0])


def _experts(imatrix: Imatrix, layout: MoeLayout, name: str) -> ImatrixEntry:
    entry = imatrix.entries.get(name)
    if entry is None:
        raise MismatchError(f"the importance matrix has no {name}; make one from this model")
    if len(entry.counts) == 1:
        raise InputError(
            f"the importance matrix has one count for all {layout.n_expert} experts of {name}, as a .dat does; "
            "use one in GGUF, which llama-imatrix writes by default"
        )
    if len(entry.counts) != layout.n_expert:
        raise _other_experts(name, entry, layout.n_expert)
    return entry


def _rows(name: str, entry: ImatrixEntry, n_expert: int, kept: Sequence[int]) -> ImatrixEntry:
    if len(entry.counts) not in (1, n_expert) or entry.in_sum2.size % n_expert:
        raise _other_experts(name, entry, n_expert)
    ids = list(kept)
    if not ids or not set(ids) <= set(range(n_expert)):
        raise InfeasiblePlan(f"{name}: the plan keeps {ids}, which are not experts of 0..{n_expert - 1}; plan again")
    counts = entry.counts if len(entry.counts) == 1 else entry.counts[ids]
    return ImatrixEntry.of(entry.in_sum2.reshape(n_expert, -1)[ids], counts)


def _other_experts(name: str, entry: ImatrixEntry, n_expert: int) -> MismatchError:
    return MismatchError(
        f"the importance matrix has {entry.in_sum2.size} sums of {len(entry.counts)} experts for {name}, the model has "
        f"{n_expert} experts; make one from this model"
    )


def _matrices(record: TensorRecord) -> tuple[int, int]:
    """How many matrices a weight holds, and the length of their input."""
    return prod(record.shape[:-2]), record.shape[-1] if record.shape else 1


def _fits(entry: ImatrixEntry, record: TensorRecord) -> bool:
    n_mat, n_in = _matrices(record)
    return entry.in_sum2.size == n_mat * n_in and len(entry.counts) in (1, n_mat)


def _quantised(record: TensorRecord) -> bool:
    if _block(record.name) < 0 or not record.name.endswith("weight") or NEVER_QUANTISED.search(record.name):
        return False
    return record.n_elements > record.shape[-1] if record.shape else False  # ggml counts dimensions without final ones


def _block(name: str) -> int:
    match = BLOCK_TENSOR.fullmatch(name)
    return int(match[1]) if match else -1
