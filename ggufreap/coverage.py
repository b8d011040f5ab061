"""What a keep-set means for each domain of the text, and whether there was enough text to choose it by.

How stable a choice is shows when it is made twice, from the even and from the odd chunks alone: what separates the two
is chance. Each has half of the text, so the choice from all of it is better than either.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from ggufreap.blending import TOKENS
from ggufreap.errors import MismatchError
from ggufreap.evidence import kept_unknown
from ggufreap.limits import STABLE
from ggufreap.observation import DomainStatistics, ExpertStatistics, Floats
from ggufreap.planning import select
from ggufreap.saliency import METHODS
from ggufreap.selection.choosing import choose
from ggufreap.selection.methods import method_of

WARN_BELOW = 0.9
FEW_TOKENS = 50
# What the halves differ in falls slower than noise, whose power is 2: text comes in documents. On a trained six-domain
# model, each domain alone, REAP and its sum, 25 and 50 % removed, it went with the tokens to the power of -0.32 to
# -0.41 from 6 to 192 chunks of 256 tokens. With 2.5 a set not yet stable foretold 0.7 to 1.3 of what it then took.
POWER = 2.5
MOST_FACTOR = 20  # beyond this the rule was not tried

Rows = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Stability:
    """The share of experts that the choices from both halves have in common, mean over blocks."""

    kept: float
    removed: float


@dataclass(frozen=True)
class Routed:
    """Routed tokens per expert, over all blocks; `few`: the share of experts with less than FEW_TOKENS."""

    least: int
    median: int
    few: float


@dataclass(frozen=True)
class DomainCoverage:
    """What the keep-set leaves of a domain.

    `retained`: the mass of its scores in the kept experts, as a share of what its own best set of that size would
    hold; mean over blocks, and the lowest with its block. `stability` is of that own set, None without a second half.
    """

    domain: str
    n_tokens: int
    retained: float
    lowest: float
    lowest_block: int
    routed: Routed
    stability: Stability | None


@dataclass(frozen=True)
class Coverage:
    """All domains, in order; `routed` and `stability` are of all text together, blended as for the keep-set.

    `unknown`: how many of the experts that stay, over all blocks, the text never reached, like some that go; `removes`:
    whether any expert goes.
    """

    n_tokens: int
    domains: tuple[DomainCoverage, ...]
    routed: Routed
    stability: Stability | None
    unknown: int = 0
    removes: bool = True

    def warnings(self, threshold: float = WARN_BELOW) -> tuple[str, ...]:
        """A line for each domain that retains less than `threshold` or is unknown, and for unknown experts."""
        lines = [
            f"{row.domain} retains {row.retained:.1%} of what experts chosen for it alone would "
            f"({row.lowest:.1%} in block {row.lowest_block}); give it more weight in the blend or remove fewer experts"
            if row.n_tokens
            else f"no token of {row.domain} was counted: what it loses is not known; calibrate with more of its text"
            for row in self.domains
            if row.retained < threshold or not row.n_tokens
        ]
        if self.unknown:
            lines.append(
                f"{self.unknown:,} of the experts that stay were never reached by the text, like some that go: nothing "
                "but their number decided; give more text"
            )
        return tuple(lines)

    @property
    def factor(self) -> float | None:
        """How many times the tokens it takes until the halves agree as STABLE wants; None without a second half.

        With d the share of removed experts in which the halves differ: (d / (1 - STABLE)) ** POWER, at least 1.
        """
        if self.stability is None:
            return None
        return float(max(1.0, ((1 - self.stability.removed) / (1 - STABLE)) ** POWER))

    @property
    def advice(self) -> str:
        """One line: whether the text was enough."""
        if not self.removes:
            return "no expert goes, so nothing is lost, and no text is needed to say which"
        if self.stability is None or self.factor is None:
            return "whether the keep-set is stable cannot be told: every domain needs two chunks or more"
        agree = f"two halves of the text agree on {self.stability.removed:.1%} of the removed experts"
        if self.stability.removed >= STABLE:
            return f"keep-set is stable: {agree}"
        more = f"{math.ceil(self.factor)}x" if self.factor <= MOST_FACTOR else f"more than {MOST_FACTOR}x"
        return f"keep-set is not stable: {agree}, {STABLE:.0%} are wanted; run {more} the tokens"


def measure(
    statistics: DomainStatistics,
    keep: Mapping[int, Sequence[int]],
    method: str,
    how: str = TOKENS,
    n_group: int = 1,
) -> Coverage:
    """What `keep`, block -> ids as in a PruningPlan, leaves of each domain.

    `method`, named as for method_of, and the blend `how` are those of the plan. Raises MismatchError when a block of
    the statistics is not in `keep`, or keeps experts that they do not have.
    """
    missing = [block for block in statistics.blocks if block not in keep]
    if missing:
        raise MismatchError(
            f"the plan has no block {missing[0]}, which the statistics have; they belong to other models"
        )
    chosen = [keep[block] for block in statistics.blocks]
    n_keep = len(chosen[0])
    for block, ids in zip(statistics.blocks, chosen, strict=True):
        if len(ids) != n_keep or not ids or min(ids) < 0 or max(ids) >= statistics.n_expert or n_keep % n_group:
            raise MismatchError(
                f"the plan keeps {len(ids)} experts up to {max(ids, default=0)} in block {block}, the statistics have "
                f"{statistics.n_expert} in each and other blocks keep {n_keep} in {n_group} groups; "
                "give what belongs together"
            )

    mass, removes = METHODS[method_of(method).criterion].mass, n_keep < statistics.n_expert

    def agreement(some: DomainStatistics, how: str) -> Stability | None:
        if not removes or not all(half.n_tokens for halves in some.halves.values() for half in halves):
            return None
        return _agreement([choose(some.half(which), method, how, n_keep, n_group).rows for which in (0, 1)], some)

    def row(domain: str) -> DomainCoverage:
        whole = statistics.of(domain)
        by_block = covered(whole.values[mass], chosen, n_group)
        alone = replace(statistics, halves={domain: statistics.halves[domain]})
        lowest = int(by_block.argmin())
        return DomainCoverage(
            domain,
            whole.n_tokens,
            float(by_block.mean()),
            float(by_block[lowest]),
            statistics.blocks[lowest],
            _routed(whole),
            agreement(alone, TOKENS),
        )

    rows = tuple(row(domain) for domain in statistics.domains)
    unknown = kept_unknown(method_of(method).score(statistics, how), chosen, n_group)
    together = agreement(statistics, how) if rows else None
    return Coverage(statistics.n_tokens, rows, _routed(statistics.total), together, unknown, removes)


def covered(mass: Floats, chosen: Rows, n_group: int = 1) -> Floats:
    """The mass that the chosen experts hold, as a share of what the best set of that size would: `[n_blocks]`.

    `mass` is `[n_blocks, n_expert]`; `chosen` has a row per block, all of one length. 0 where there is no mass: of
    nothing, nothing stays.
    """
    held, most = (
        np.take_along_axis(mass, np.asarray(rows), axis=1).sum(axis=1)
        for rows in (chosen, select(mass, len(chosen[0]), n_group))
    )
    return cast(Floats, np.divide(held, most, out=np.zeros_like(most), where=most > 0))


def _agreement(choices: Sequence[Rows], statistics: DomainStatistics) -> Stability:
    """How far two choices are the same."""
    n_blocks, n_expert, n_keep = len(statistics.blocks), statistics.n_expert, len(choices[0][0])
    kept = np.zeros((2, n_blocks, n_expert), bool)
    for which, rows in enumerate(choices):
        np.put_along_axis(kept[which], np.asarray(rows), True, axis=1)
    n_removed = n_expert - n_keep
    both_kept, both_removed = kept.all(axis=0).sum(), (~kept).all(axis=0).sum()
    removed = float(both_removed / (n_blocks * n_removed)) if n_removed else 1.0
    return Stability(float(both_kept / (n_blocks * n_keep)), removed)


def _routed(statistics: ExpertStatistics) -> Routed:
    counts = statistics.values["count"]
    return Routed(int(counts.min()), int(np.median(counts)), float((counts < FEW_TOKENS).mean()))
