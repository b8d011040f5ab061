"""Facts that follow from what is there already: the opened model, the plan, the statistics, the files."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ggufreap.architecture.layout import BLOCK_TENSOR, MoeLayout, bind
from ggufreap.architecture.width import expert_width
from ggufreap.container import GgufFile
from ggufreap.errors import InputError
from ggufreap.model import Model
from ggufreap.observation import ExpertStatistics, Floats
from ggufreap.planning import PruningPlan
from ggufreap.reporting import facts
from ggufreap.rewriting.metadata import WIDTH_BEFORE

_CHUNK = 1 << 22
_HOMES = ("general.repo_url", "general.source.repo_url", "general.source.url")


def model_facts(model: Model, plan: PruningPlan, pruned: GgufFile, compensated: bool = False) -> facts.Model:
    """The model before and after, from both headers: `pruned` is the byte-exact file, its down maybe `compensated`."""
    source, layout = model.file, model.layout
    before, after = _parameters(source, layout, layout.n_expert), _parameters(pruned, layout, plan.n_keep)

    def text(key: str) -> str:
        return str(source.get(f"general.{key}", ""))

    return facts.Model(
        name=text("name") or source.path.stem,
        architecture=layout.architecture.name,
        file=source.path.name,
        fingerprint=source.fingerprint,
        n_block=layout.n_block,
        n_moe_block=len(layout.trunk),
        n_mtp_block=len(layout.blocks) - len(layout.trunk),
        n_expert_before=layout.n_expert,
        n_expert_after=plan.n_keep,
        n_used=layout.n_used,
        n_shared=layout.n_shared,
        n_group=layout.n_group,
        nbytes_before=source.nbytes,
        nbytes_after=pruned.nbytes,
        parameters_before=before[0],
        parameters_after=after[0],
        active_before=before[1],
        active_after=after[1],
        n_ff_before=pruned.get(WIDTH_BEFORE),
        n_ff_after=expert_width(pruned, bind(pruned)) if WIDTH_BEFORE in pruned.metadata else None,
        compensated=compensated,
        license=text("license"),
        license_name=text("license.name"),
        license_link=text("license.link"),
        base_models=_base_models(source),
    )


def _parameters(file: GgufFile, layout: MoeLayout, n_expert: int) -> tuple[int, int]:
    """All weights, and those that one token passes: `n_used` of the experts, no MTP block."""
    used = {block.index: block.n_used for block in layout.blocks}
    active = 0
    for record in file.tensors:
        match = BLOCK_TENSOR.fullmatch(record.name)
        block = int(match[1]) if match else -1
        if block < layout.n_trunk:
            routed = record.name in layout.per_expert and "_exps." in record.name
            active += record.n_elements * used[block] // n_expert if routed else record.n_elements
    return sum(record.n_elements for record in file.tensors), active


def _base_models(source: GgufFile) -> tuple[facts.BaseModel, ...]:
    """The model in the file itself where its home is known, else what it descends from."""
    name, organization = str(source.get("general.name", "")), str(source.get("general.organization", ""))
    for key in _HOMES:
        if home := source.get(key):
            return (facts.BaseModel(name or source.path.stem, organization, str(home)),)
    numbers = sorted(
        int(match[1]) for key in source.metadata if (match := re.fullmatch(r"general\.base_model\.(\d+)\.name", key))
    )
    fields = ("name", "organization", "repo_url")
    return tuple(
        facts.BaseModel(*(str(source.get(f"general.base_model.{number}.{field}", "")) for field in fields))
        for number in numbers
    )


def plan_facts(plan: PruningPlan, scores: Mapping[int, Floats]) -> facts.Plan:
    """The plan with the scores it was made from: block -> `[n_expert]`, without MTP blocks; none where unknown."""
    return facts.Plan(
        method=plan.method,
        ratio=plan.ratio,
        mtp=plan.mtp,
        sha256=plan.sha256,
        blocks=tuple(
            facts.PlannedBlock(
                block,
                kept,
                tuple(float(f"{score:.6g}") if np.isfinite(score) else None for score in scores.get(block, ())),
                plan.why.get(block, {}).get("retained"),
            )
            for block, kept in plan.keep.items()
        ),
        blend=plan.blend,
    )


def routing_facts(statistics: ExpertStatistics) -> facts.Routed:
    """Routed tokens per expert over all blocks."""
    count = statistics.values["count"]
    return facts.Routed(int(count.min()), float(np.median(count)), int(count.max()), int((count == 0).sum()))


def file_facts(path: Path, kind: str = "") -> facts.File:
    """Name, size and SHA-256 of a file, read a few megabytes at a time; raises InputError."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while part := file.read(_CHUNK):
                digest.update(part)
        return facts.File(path.name, path.stat().st_size, digest.hexdigest(), kind)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
