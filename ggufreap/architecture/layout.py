"""Binds the tables to one file: which tensors carry experts, which blocks route, and what a keep-set must obey.

Everything that llama.cpp would abort on is refused here, before it sees a file (src/llama-model.cpp, load_hparams).
"""

import re
from dataclasses import dataclass
from functools import cached_property

from ggufreap.architecture.catalog import ARCHITECTURES, Architecture, unknown
from ggufreap.architecture.files import what_else
from ggufreap.architecture.metadata import KNOWN_EXPERT_KEYS, REFUSED_IF_SET
from ggufreap.architecture.nodes import EXPERT_OUTPUT, EXPERT_OUTPUT_BIASED, RoutedBlock, RoutingNodes
from ggufreap.architecture.roles import Handling, may_hold_experts, role_of
from ggufreap.container import GgufFile
from ggufreap.errors import FormatError, InfeasiblePlan, UnsupportedModel
from ggufreap.showing import EXCERPT, excerpt, shown

BLOCK_TENSOR = re.compile(r"blk\.(\d+)\.(.+)")
MAX_EXPERTS, MAX_BLOCKS = 1024, 512  # LLAMA_MAX_EXPERTS and LLAMA_MAX_LAYERS, src/llama-hparams.h


@dataclass(frozen=True)
class MoeBlock:
    """One block with routed experts; `per_expert` are the tensors whose axis 0 (numpy order) counts experts."""

    index: int
    n_used: int
    mtp: bool
    per_expert: tuple[str, ...]


@dataclass(frozen=True)
class MoeLayout:
    """A model as the tables see it.

    Of `n_block` blocks the first `n_trunk` are run by ordinary decoding, the others are MTP (NextN) blocks. `n_group`
    is 1 where routing knows no groups.
    """

    architecture: Architecture
    n_block: int
    n_trunk: int
    n_expert: int
    n_shared: int
    n_group: int
    n_group_used: int
    causal: bool
    blocks: tuple[MoeBlock, ...]

    @cached_property
    def trunk(self) -> tuple[MoeBlock, ...]:
        """The MoE blocks that ordinary decoding runs."""
        return tuple(block for block in self.blocks if not block.mtp)

    @cached_property
    def per_expert(self) -> dict[str, int]:
        """Tensor with an expert axis -> its block."""
        return {name: block.index for block in self.blocks for name in block.per_expert}

    @property
    def proven(self) -> bool:
        """Whether the tables know the architecture; if not, each file of it has to be tried out."""
        return self.architecture.proven

    @property
    def n_used(self) -> int:
        """The most experts that any block uses per token."""
        return max(block.n_used for block in self.blocks)

    @property
    def group_size(self) -> int:
        """Experts per group; all of them where there are no groups."""
        return self.n_expert // self.n_group

    @cached_property
    def nodes(self) -> RoutingNodes:
        """What the engine watches."""
        blocks = []
        for block in self.trunk:
            biased = f"blk.{block.index}.ffn_down_exps.bias" in block.per_expert
            outputs = EXPERT_OUTPUT_BIASED if biased else EXPERT_OUTPUT
            blocks.append(RoutedBlock(block.index, block.n_used, outputs))
        row = self.architecture
        return RoutingNodes(
            tuple(blocks), self.n_expert, row.weighted_input, self.causal, row.headless, stream=row.stream
        )

    def check_keep(self, n_keep: int) -> None:
        """Raise InfeasiblePlan unless llama.cpp can route among `n_keep` experts per block."""
        per_group, rest = divmod(n_keep, self.n_group)
        if not 2 <= n_keep <= self.n_expert:  # llama.cpp takes a model of one expert for dense, or aborts
            raise InfeasiblePlan(f"{n_keep} of {self.n_expert} experts cannot be kept; keep 2 to {self.n_expert}")
        if n_keep < self.n_used:
            raise InfeasiblePlan(
                f"keeping {n_keep} of {self.n_expert} experts, but the router picks {self.n_used} per token; "
                f"keep at least {self.n_used}"
            )
        if n_keep in self.architecture.refuse_counts:
            raise InfeasiblePlan(
                f"{n_keep} experts: {self.architecture.refuse_counts[n_keep]}; keep one more or one less"
            )
        if self.n_group == 1:
            return
        if rest:
            raise InfeasiblePlan(
                f"keeping {n_keep} experts in {self.n_group} groups: each group must keep equally many; "
                f"keep a multiple of {self.n_group}"
            )
        if per_group < 2 or per_group * self.n_group_used < self.n_used:
            raise InfeasiblePlan(
                f"keeping {per_group} experts in each of {self.n_group} groups: the router scores a group by its best "
                f"two and picks {self.n_used} experts out of {self.n_group_used} groups; "
                f"keep at least {max(2, -(-self.n_used // self.n_group_used)) * self.n_group} in all"
            )


def bind(file: GgufFile) -> MoeLayout:
    """The layout of an opened model; unproven where no table knows its architecture, but all its tensors and keys.

    Raises UnsupportedModel for a model that the tables refuse or do not know, FormatError for one that contradicts
    itself.
    """
    architecture = _architecture(file)
    _check_keys(file, architecture)
    name = architecture.name
    n_expert = _integer(file, f"{name}.expert_count")
    n_block = _integer(file, f"{name}.block_count")
    n_trunk = n_block - _mtp_blocks(file, architecture, n_block)
    for key, count, most in (("expert_count", n_expert, MAX_EXPERTS), ("block_count", n_block, MAX_BLOCKS)):
        if count > most:
            raise FormatError(f"{file.path}: {name}.{key} is {count}, llama.cpp allows {most}")
    if n_expert == 1:
        raise UnsupportedModel(f"{file.path}: {name} with a single expert: nothing to choose from")
    if n_expert in architecture.refuse_counts:
        raise UnsupportedModel(f"{file.path}: {name} with {n_expert} experts: {architecture.refuse_counts[n_expert]}")
    used = _used(file, name, n_block)
    blocks = []
    for index, per_expert in _blocks(file, n_expert).items():
        if index >= n_block:
            raise FormatError(f"{file.path}: tensor {per_expert[0]} but {name}.block_count is {n_block}; it is damaged")
        if not 0 < used[index] <= n_expert:
            raise FormatError(f"{file.path}: block {index} uses {used[index]} of {n_expert} experts; it is damaged")
        blocks.append(MoeBlock(index, used[index], index >= n_trunk, per_expert))
    if not blocks or blocks[0].mtp:
        raise UnsupportedModel(f"{file.path}: no block holds ffn_*_exps tensors: no routed experts to prune")
    n_group = max(1, _integer(file, f"{name}.expert_group_count"))
    n_group_used = _integer(file, f"{name}.expert_group_used_count") if n_group > 1 else 1
    if n_expert % n_group or (n_group > 1 and not 0 < n_group_used < n_group):
        raise FormatError(
            f"{file.path}: {n_expert} experts in {n_group} groups of which {n_group_used} are used; "
            "groups must be equal and some used, llama.cpp aborts on this file"
        )
    n_shared = _integer(file, f"{name}.expert_shared_count")
    causal = architecture.causal and bool(file.get(f"{name}.attention.causal", True))
    layout = MoeLayout(architecture, n_block, n_trunk, n_expert, n_shared, n_group, n_group_used, causal, tuple(blocks))
    layout.check_keep(n_expert)
    return layout


def _architecture(file: GgufFile) -> Architecture:
    name = file.get("general.architecture")
    if other := what_else(file):
        raise UnsupportedModel(f"{file.path}: it is {other}; give the model itself")
    if not isinstance(name, str):
        raise FormatError(f"{file.path}: metadata key general.architecture is missing; this is not a model file")
    if not file.get(f"{name}.expert_count"):
        raise UnsupportedModel(f"{file.path}: a dense {shown(name, EXCERPT)} model: no routed experts to prune")
    row = ARCHITECTURES.get(name)
    if row is None:
        row = unknown(name)
        _check_every_tensor(file, row)
    if row.refuse:
        raise UnsupportedModel(f"{file.path}: {name}: {row.refuse}")
    return row


def _check_every_tensor(file: GgufFile, architecture: Architecture) -> None:
    """Of an unknown architecture not one tensor may be unknown, nor hold experts outside of the blocks."""
    for record in file.tensors:
        match = BLOCK_TENSOR.fullmatch(record.name)
        if "exp" in record.name if match is None else role_of(match[2]) is None:
            raise UnsupportedModel(
                f"{file.path}: tensor {record.name} is in no table, nor is the architecture {architecture.name!r}; "
                "the unknown is refused, not guessed"
            )


def _mtp_blocks(file: GgufFile, architecture: Architecture, n_block: int) -> int:
    declared = _integer(file, f"{architecture.name}.nextn_predict_layers")
    probe = f"blk.{n_block - declared}.nextn.eh_proj.weight"
    return 0 if architecture.mtp_by_tensors and probe not in file.by_name else declared


def _check_keys(file: GgufFile, architecture: Architecture) -> None:
    prefix = f"{architecture.name}."
    for key, entry in file.metadata.items():
        suffix = key.removeprefix(prefix)
        if suffix == key:
            continue
        if suffix in REFUSED_IF_SET:
            if entry.value:
                raise UnsupportedModel(f"{file.path}: {key} = {excerpt(entry.value)}: {REFUSED_IF_SET[suffix]}")
        elif "expert" in suffix and suffix not in KNOWN_EXPERT_KEYS:
            raise UnsupportedModel(f"{file.path}: metadata key {key} is in no table; unknown keys are refused")


def _blocks(file: GgufFile, n_expert: int) -> dict[int, tuple[str, ...]]:
    """MoE block -> its per-expert tensors; every tensor of such a block must have a role."""
    tensors: dict[int, list[str]] = {}
    unknown: dict[int, str] = {}
    for record in file.tensors:
        match = BLOCK_TENSOR.fullmatch(record.name)
        role = role_of(match[2]) if match else None
        if role is None and may_hold_experts(record.name, record.shape, n_expert):
            raise UnsupportedModel(
                f"{file.path}: tensor {record.name} with shape {list(record.shape)} is in no table and may belong to "
                f"the {n_expert} experts; the unknown is refused, not guessed. Use a GGUF that holds the model alone"
            )
        if match is None:
            continue
        index = int(match[1])
        if role is None:
            unknown.setdefault(index, record.name)
        elif role.handling is Handling.REFUSE:
            raise UnsupportedModel(f"{file.path}: tensor {record.name} ({role.name}): {role.reason}")
        elif role.handling is Handling.TAKE:
            if not record.shape or record.shape[0] != n_expert:
                raise FormatError(
                    f"{file.path}: tensor {record.name} has shape {list(record.shape)}, "
                    f"its first axis should count {n_expert} experts; the file is damaged"
                )
            tensors.setdefault(index, []).append(record.name)
    for index in sorted(tensors.keys() & unknown.keys()):
        raise UnsupportedModel(
            f"{file.path}: tensor {unknown[index]} of a MoE block is in no table; the unknown is refused, not guessed"
        )
    for index, names in tensors.items():
        for needed in ("ffn_gate_inp.weight", "ffn_down_exps.weight"):
            if f"blk.{index}.{needed}" not in names:
                raise FormatError(f"{file.path}: block {index} has experts but no {needed}; the file is damaged")
    return {index: tuple(tensors[index]) for index in sorted(tensors)}


def _used(file: GgufFile, name: str, n_block: int) -> list[int]:
    """Experts used per token in every block; one number or an array over all blocks."""
    key = f"{name}.expert_used_count"
    value = file.get(key, 0)
    if not isinstance(value, list):
        return [_integer(file, key)] * n_block
    if len(value) != n_block or not all(isinstance(used, int) for used in value):
        raise FormatError(f"{file.path}: {key} is not one count for each of {n_block} blocks; the file is damaged")
    return [int(used) for used in value]


def _integer(file: GgufFile, key: str) -> int:
    value = file.get(key, 0)
    if not isinstance(value, int) or value < 0:
        raise FormatError(f"{file.path}: metadata key {key} is {excerpt(value)}, not a count; the file is damaged")
    return value
