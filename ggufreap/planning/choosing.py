"""Which experts stay: counts, groups, ties, and the plan as a value."""

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np

from ggufreap.architecture.layout import MoeLayout
from ggufreap.corpus.record import SourceRecord
from ggufreap.errors import InfeasiblePlan, InputError, MismatchError
from ggufreap.evidence import require_scores
from ggufreap.observation import Floats
from ggufreap.saliency import IMATRIX
from ggufreap.showing import EXCERPT, excerpt, shown

_LOG = logging.getLogger(__name__)
SCHEMA = "ggufreap.plan/1"
# What whoever meets a plan, or a file made by it, must know of the method.
NOTES = {
    IMATRIX: "chosen from an importance matrix alone, without calibration: weaker than reap, since such a matrix knows "
    "neither router weights nor expert outputs"
}


@dataclass(frozen=True)
class ModelIdentity:
    """Which file a plan was made for.

    `fingerprint` decides; `structure` and `types` (see ggufreap.container.identity) tell another conversion of what
    looks like the same model, and are empty in plans of earlier versions. The rest is for the reader.
    """

    fingerprint: str
    architecture: str
    name: str
    structure: str = ""
    types: str = ""

    def require(self, known: str, advice: str, fingerprint: str, structure: str, types: str) -> None:
        """Whether what is `known` of a model, in words and by these, is of this one; or of another conversion of it,
        which is said aloud.

        Raises MismatchError, with the `advice`.
        """
        if fingerprint == self.fingerprint:
            return
        this = f"this one is {self.name or self.architecture} ({self.fingerprint[:12]})"
        if not structure:
            raise MismatchError(f"{known}, by an earlier version of ggufreap or of another model; {this}; {advice}")
        if structure != self.structure:
            raise MismatchError(f"{known}, {this}: another model; {advice}")
        if types == self.types:
            raise MismatchError(f"{known}, {this}: other weights in the same types; {advice}")
        _LOG.warning(
            "%s, in other types (%s) than this file (%s): names, shapes and tokenizer agree, and that the weights are "
            "those of the same model is taken on trust",
            *(known, types, self.types),
        )


@dataclass(frozen=True)
class PruningPlan:
    """The experts that stay: block -> their ids in the original, in the order they are written.

    `keep` names every MoE block but dropped MTP blocks. `why` holds, per trunk block, what the method knew: the share
    of the block's score that stays (`retained`). `corpus` identifies the calibration data, empty where none were used;
    `datasets` tells what was read of them, `blend` how their domains were weighed. `criterion` is the method that a
    method such as `best` settled on, `remarks` what is to be known of this very choice.
    """

    model: ModelIdentity
    method: str
    ratio: str
    n_expert: int
    n_keep: int
    mtp: str
    keep: Mapping[int, tuple[int, ...]]
    why: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    corpus: str = ""
    datasets: tuple[SourceRecord, ...] = ()
    blend: str = ""
    n_group: int = 1
    criterion: str = ""
    remarks: tuple[str, ...] = ()

    @property
    def scored_by(self) -> str:
        """The method that chose."""
        return self.criterion or self.method

    @property
    def summary(self) -> str:
        """What it does, in the words that every verb prints."""
        return f"removes {self.n_expert - self.n_keep} of {self.n_expert}, keeps {self.n_keep}"

    @property
    def note(self) -> str:
        """What is to be known of its method and of this choice, if anything."""
        return "; ".join(filter(None, (NOTES.get(self.method, ""), *self.remarks)))

    @property
    def label(self) -> str:
        """The suffix of names: `REAP-0.20`."""
        return f"{self.method.upper().replace('_', '-')}-{self.ratio}"

    def to_json(self) -> str:
        """One line per block, so that a diff of two plans reads well."""
        layers = ",\n    ".join(
            f'"{block}": ' + json.dumps({"keep": list(kept), **self.why.get(block, {})})
            for block, kept in self.keep.items()
        )
        head = {
            "schema": SCHEMA,
            "model": vars(self.model),
            "method": self.method,
            "ratio": self.ratio,
            "n_expert": self.n_expert,
            "n_keep": self.n_keep,
            "mtp": self.mtp,
            "blend": self.blend,
            "n_group": self.n_group,
            "corpus": self.corpus,
            "datasets": [
                {key: value for key, value in vars(record).items() if value or key != "held_out"}  # as earlier versions
                for record in self.datasets
            ],
        }
        head |= {"criterion": self.criterion} if self.criterion else {}
        head |= {"remarks": self.remarks} if self.remarks else {}
        head |= {"note": self.note} if self.note else {}
        lines = "".join(f"  {json.dumps(key)}: {json.dumps(value)},\n" for key, value in head.items())
        return f'{{\n{lines}  "layers": {{\n    {layers}\n  }}\n}}\n'

    def same_request(self, other: "PruningPlan") -> bool:
        """Whether both answer the same request: all is the same but what the calibration told."""
        told: dict[str, Any] = {"keep": {}, "why": {}, "datasets": (), "criterion": "", "remarks": ()}
        if self.criterion or other.criterion:  # which settles on a blend too
            told |= {"blend": ""}
        return replace(self, **told) == replace(other, **told)

    @property
    def sha256(self) -> str:
        """The identity of the plan file."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def count_to_keep(layout: MoeLayout, ratio: str | float | None = None, n_keep: int | None = None) -> int:
    """Experts per block that stay: `n_keep` itself, or all but floor(group size x ratio) of every group.

    The ratio is taken as the decimal that was written, so 0.29 of 100 removes 29. Raises InputError for a ratio
    outside [0, 1) and InfeasiblePlan for what the router cannot work with.
    """
    if (ratio is None) == (n_keep is None):
        raise InputError("give either a ratio or a number of experts to keep")
    if n_keep is None:
        fraction = as_fraction(str(ratio))
        per_group = math.floor(layout.group_size * fraction)
        if fraction and not per_group:
            raise InfeasiblePlan(
                f"ratio {ratio} of {layout.group_size} experts is less than one: nothing would be removed; "
                f"use {least_ratio(1, layout.group_size)} or more"
            )
        n_keep = layout.n_expert - per_group * layout.n_group
    layout.check_keep(n_keep)
    return n_keep


def as_fraction(ratio: str, of: str = "experts") -> Decimal:
    """A ratio as an exact decimal in [0, 1), the fraction `of` what is removed."""
    try:
        fraction = Decimal(ratio)
    except InvalidOperation as error:
        raise InputError(
            f"ratio {excerpt(ratio)} is not a number; it is the fraction of {of} to remove, such as 0.2"
        ) from error
    if not (fraction.is_finite() and 0 <= fraction < 1):
        raise InputError(
            f"ratio {shown(ratio, EXCERPT)} is not in [0, 1); it is the fraction of {of} to remove, such as 0.2"
        )
    return fraction


def least_ratio(part: int, whole: int) -> str:
    """The least ratio of four decimals that removes `part` of `whole`; rounded to the nearest, it could remove less."""
    return f"{-(-10_000 * part // whole) / 10_000:g}"


def ratio_label(group_size: int, removed: int, ratio: str | float | None) -> str:
    """The ratio as it stands in names, at least two decimals: as written, else the shortest that removes as many.

    `removed` experts of every group of `group_size` go. So two plans that remove different numbers of experts never
    share a name: 51 of 256 are 0.20, 50 are 0.196.
    """
    if ratio is not None:
        fraction = as_fraction(str(ratio))
        return f"{fraction:.2f}" if fraction.as_tuple().exponent >= -2 else f"{fraction}"  # type: ignore[operator]  # finite
    digits = 2
    while (shortest := -(-removed * 10**digits // group_size)) * group_size >= (removed + 1) * 10**digits:
        digits += 1
    return f"{Decimal(shortest).scaleb(-digits):.{digits}f}"


def select(scores: Floats, n_keep: int, n_group: int) -> tuple[tuple[int, ...], ...]:
    """The `n_keep` best experts of every row of `[n_blocks, n_expert]`, equally many per group, in ascending order.

    Among equal scores the lower id stays.
    """
    n_expert = scores.shape[1]
    grouped = scores.reshape(len(scores), n_group, n_expert // n_group)
    best = np.argsort(-grouped, axis=-1, kind="stable")[..., : n_keep // n_group]
    ids = best + np.arange(n_group)[:, None] * (n_expert // n_group)
    return tuple(tuple(int(expert) for expert in sorted(row.ravel())) for row in ids)


def make_plan(
    layout: MoeLayout,
    model: ModelIdentity,
    scores: Floats,
    *,
    method: str,
    ratio: str | float | None = None,
    n_keep: int | None = None,
    mtp: str = "mirror",
    corpus: str = "",
    datasets: Sequence[SourceRecord] = (),
    blend: str = "",
    chosen: Sequence[tuple[int, ...]] | None = None,
    criterion: str = "",
    remarks: Sequence[str] = (),
) -> PruningPlan:
    """Plan from scores `[n_trunk_blocks, n_expert]`, row by row of `layout.trunk`: the best stay, or those `chosen`.

    MTP blocks are never run by ordinary decoding, so they have no scores: `mirror` gives them the keep-set of the
    last trunk block, `drop` takes them out of the file. Raises InputError or NumericFailure for scores that decide
    nothing in some block.
    """
    n_keep = count_to_keep(layout, ratio, n_keep)
    require_scores(scores, [block.index for block in layout.trunk], n_keep, criterion or method)
    chosen = select(scores, n_keep, layout.n_group) if chosen is None else chosen
    kept = {block.index: ids for block, ids in zip(layout.trunk, chosen, strict=True)}
    if mtp == "mirror":
        kept |= {block.index: chosen[-1] for block in layout.blocks if block.mtp}
    why = {
        block.index: {"retained": round(_share(row, ids), 6)}
        for block, row, ids in zip(layout.trunk, scores, chosen, strict=True)
    }
    label = ratio_label(layout.group_size, layout.group_size - n_keep // layout.n_group, ratio)
    return PruningPlan(
        model=model,
        method=method,
        ratio=label,
        n_expert=layout.n_expert,
        n_keep=n_keep,
        mtp=mtp,
        keep=kept,
        why=why,
        corpus=corpus,
        datasets=tuple(datasets),
        blend=blend,
        n_group=layout.n_group,
        criterion=criterion,
        remarks=tuple(remarks),
    )


def _share(scores: Floats, kept: tuple[int, ...]) -> float:
    mass = np.where(np.isfinite(scores), scores, 0.0)
    return float(mass[list(kept)].sum() / mass.sum()) if len(kept) < len(mass) else 1.0


def check_plan(plan: PruningPlan, model: ModelIdentity, layout: MoeLayout) -> None:
    """Raise MismatchError or InfeasiblePlan unless the plan can be applied to this model."""
    known = plan.model.fingerprint, plan.model.structure, plan.model.types
    told = f"the plan is for {plan.model.name or plan.model.architecture} ({plan.model.fingerprint[:12]})"
    model.require(told, "make a plan for this file", *known)
    layout.check_keep(plan.n_keep)
    expected = {block.index for block in (layout.trunk if plan.mtp == "drop" else layout.blocks)}
    if set(plan.keep) != expected:
        wrong = sorted(set(plan.keep) ^ expected)
        raise InfeasiblePlan(f"the plan and the model disagree on MoE block {wrong[0]}; name every MoE block once")
    for block, kept in plan.keep.items():
        if len(kept) != plan.n_keep or len(set(kept)) != len(kept) or not set(kept) <= set(range(layout.n_expert)):
            raise InfeasiblePlan(
                f"block {block} keeps {len(set(kept))} of 0..{layout.n_expert - 1}, every block must keep "
                f"{plan.n_keep} different ones: llama.cpp has one expert_count for all blocks"
            )
        groups = [expert // layout.group_size for expert in kept]
        if groups != sorted(groups) or len(set(map(groups.count, range(layout.n_group)))) != 1:
            raise InfeasiblePlan(
                f"block {block} does not keep equally many experts in each of {layout.n_group} groups, in group order; "
                "routing would change"
            )
