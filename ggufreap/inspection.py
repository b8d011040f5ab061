"""What can be said of a model from its header alone."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ggufreap.architecture.width import expert_widths
from ggufreap.container import GgufFile, type_name
from ggufreap.errors import InfeasiblePlan
from ggufreap.model import Model
from ggufreap.planning import count_to_keep
from ggufreap.rewriting.metadata import EXPERTS_BEFORE, WIDTH_BEFORE

RATIOS = ("0.10", "0.20", "0.30", "0.40", "0.50")


@dataclass(frozen=True)
class Outlook:
    """What a ratio would leave; `refused` says why it cannot be done."""

    ratio: str
    n_keep: int
    nbytes: int
    refused: str = ""


@dataclass(frozen=True)
class Inspection:
    """A model at a glance; sizes in bytes, `types` as bytes per ggml type of the expert tensors and of the rest.

    `proven`: the tables know the architecture. `widths`: the neurons of a routed expert, one number unless blocks
    differ; `n_expert_before`, `width_before`: what a file that ggufreap made had before, 0 where it does not say.
    """

    path: Path
    name: str
    architecture: str
    proven: bool
    fingerprint: str
    n_shards: int
    n_block: int
    n_moe_block: int
    n_mtp_block: int
    n_expert: int
    n_expert_before: int
    widths: tuple[int, ...]
    width_before: int
    n_used: int
    n_shared: int
    n_group: int
    n_group_used: int
    nbytes: int
    expert_nbytes: int
    expert_types: dict[str, int]
    other_types: dict[str, int]
    outlook: tuple[Outlook, ...]


def described(model: Model) -> Inspection:
    """All of it."""
    file, layout = model.file, model.layout
    expert_types: Counter[str] = Counter()
    other_types: Counter[str] = Counter()
    for record in file.tensors:
        types = expert_types if record.name in layout.per_expert else other_types
        types[type_name(record.type)] += record.nbytes
    expert_nbytes = expert_types.total()
    return Inspection(
        path=file.path,
        name=model.identity.name,
        architecture=layout.architecture.name,
        proven=layout.proven,
        fingerprint=file.fingerprint,
        n_shards=len(file.headers),
        n_block=layout.n_block,
        n_moe_block=len(layout.trunk),
        n_mtp_block=len(layout.blocks) - len(layout.trunk),
        n_expert=layout.n_expert,
        n_expert_before=_number(file, EXPERTS_BEFORE),
        widths=expert_widths(file, layout),
        width_before=_number(file, WIDTH_BEFORE),
        n_used=layout.n_used,
        n_shared=layout.n_shared,
        n_group=layout.n_group,
        n_group_used=layout.n_group_used,
        nbytes=file.nbytes,
        expert_nbytes=expert_nbytes,
        expert_types=dict(expert_types.most_common()),
        other_types=dict(other_types.most_common()),
        outlook=tuple(_outlook(ratio, model, expert_nbytes) for ratio in RATIOS),
    )


def _number(file: GgufFile, key: str) -> int:
    value = file.get(key)
    return value if isinstance(value, int) else 0


def _outlook(ratio: str, model: Model, expert_nbytes: int) -> Outlook:
    n_expert = model.layout.n_expert
    try:
        n_keep = count_to_keep(model.layout, ratio)
    except InfeasiblePlan as error:
        return Outlook(ratio, 0, 0, str(error))
    return Outlook(ratio, n_keep, model.file.nbytes - expert_nbytes // n_expert * (n_expert - n_keep))
