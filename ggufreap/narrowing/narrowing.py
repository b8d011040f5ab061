"""Which neurons of the experts stay, as a value."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np

from ggufreap.errors import InfeasiblePlan
from ggufreap.planning import PruningPlan, ratio_label

Ids = np.ndarray[Any, np.dtype[np.int32]]
Weights = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Narrowing:
    """`width` of the `source_width` neurons stay in each of the experts that a plan keeps.

    `neurons` names them per block, `[n_keep, width]`: ids in the original, ascending, experts in the plan's order.
    `downs` are the columns of down that make up for the others, `[n_keep, n_embd, width]` per block, possibly mapped
    from a file; without them the columns of the source stay as they are. `method` says how they were chosen, `remarks`
    what is to be known of this very choice.
    """

    source_width: int
    width: int
    neurons: Mapping[int, Ids]
    downs: Mapping[int, Weights] = field(default_factory=dict)
    method: str = ""
    remarks: tuple[str, ...] = ()

    @classmethod
    def of_first(cls, source_width: int, width: int, blocks: Iterable[int], n_keep: int, method: str = "") -> Self:
        """The first neurons stay: of any choice, it gives a file of the same size."""
        ids = np.tile(np.arange(width, dtype=np.int32), (n_keep, 1))
        return cls(source_width, width, dict.fromkeys(blocks, ids), method=method)

    @property
    def n_removed(self) -> int:
        """The neurons that go, of every expert."""
        return self.source_width - self.width

    @property
    def ratio(self) -> str:
        """The fraction that goes, at least two decimals, the shortest that says how many."""
        return ratio_label(self.source_width, self.n_removed, None)

    @property
    def label(self) -> str:
        """The suffix of names: `NARROW-0.16`."""
        return f"NARROW-{self.ratio}"

    def full_label(self, plan: PruningPlan) -> str:
        """The suffix of what is both pruned by a plan and narrowed: `REAP-0.12-NARROW-0.16`."""
        return f"{plan.label}-{self.label}" if plan.n_keep < plan.n_expert else self.label

    @property
    def summary(self) -> str:
        """What it does, in the words that every verb prints."""
        how = "down made up for them" if self.downs else "nothing makes up for them"
        if self.downs and self.remarks:
            how += " where the text allowed it"
        return f"removes {self.n_removed} of {self.source_width} neurons of every expert, {how}"

    @cached_property
    def sha256(self) -> str:
        """The identity of the solution: of what stays, and of the columns of down that were computed for it."""
        digest = hashlib.sha256(json.dumps([self.source_width, self.width, sorted(self.neurons)]).encode())
        for block in sorted(self.neurons):
            digest.update(np.ascontiguousarray(self.neurons[block], "<i4").tobytes())
            for expert in self.downs.get(block, ()):
                digest.update(np.ascontiguousarray(expert, "<f4").tobytes())
        return digest.hexdigest()


def check_narrowing(narrowing: Narrowing, plan: PruningPlan, width: int, n_embd: int) -> None:
    """Raise InfeasiblePlan unless it narrows what the plan leaves of a model of `width` neurons per expert."""
    if narrowing.source_width != width:
        raise InfeasiblePlan(
            f"the narrowing is for experts of {narrowing.source_width} neurons, these have {width}; make one for them"
        )
    if not 1 <= narrowing.width <= width:
        raise InfeasiblePlan(f"{narrowing.width} of {width} neurons per expert cannot be kept; keep 1 to {width}")
    if set(narrowing.neurons) != set(plan.keep) or not set(narrowing.downs) <= set(plan.keep):
        wrong = sorted(set(narrowing.neurons) ^ set(plan.keep) or set(narrowing.downs) - set(plan.keep))
        raise InfeasiblePlan(f"the narrowing and the plan disagree on MoE block {wrong[0]}; name every MoE block once")
    for block, ids in narrowing.neurons.items():
        shape = (plan.n_keep, narrowing.width)
        if ids.shape != shape or ids.min() < 0 or ids.max() >= width or not (np.diff(ids) > 0).all():
            raise InfeasiblePlan(
                f"block {block} does not name {shape[1]} ascending neurons below {width} in each of {shape[0]} "
                "experts; llama.cpp has one width for all experts"
            )
        if block in narrowing.downs and narrowing.downs[block].shape != (plan.n_keep, n_embd, narrowing.width):
            raise InfeasiblePlan(
                f"block {block} has columns of down of shape {list(narrowing.downs[block].shape)}, "
                f"expected {[plan.n_keep, n_embd, narrowing.width]}"
            )
