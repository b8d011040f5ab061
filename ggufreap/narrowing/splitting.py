"""How a cut is divided between experts and neurons.

Both losses grow faster than what is removed, so that removing some of each costs least. The least is flat: it was about
the same where neurons lost once to twice as large a share as experts, at a quarter and at half of the weights, on both
models that were tried (tests/benchmarks/README.md). So NEURONS is between: fewer neurons also make every token cheaper,
which fewer experts do not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

from ggufreap.errors import InfeasiblePlan
from ggufreap.narrowing.widths import BLOCK
from ggufreap.planning import as_fraction, least_ratio

NEURONS = 1.5  # the share of the neurons that goes, for each of the experts
MOST_MORE = Decimal("1.25")  # of what was asked for: experts and blocks of neurons come in whole numbers


@dataclass(frozen=True)
class Split:
    """`n_keep` of `n_expert` experts stay in every block, each with `width` of `source_width` neurons."""

    n_keep: int
    n_expert: int
    width: int
    source_width: int

    @property
    def kept(self) -> float:
        """The fraction of the routed experts' weights that stays."""
        return self.n_keep * self.width / (self.n_expert * self.source_width)

    @property
    def reason(self) -> str:
        """In words."""
        nearest = (
            f"the nearest there is to {NEURONS:g} times as large a share of neurons as of experts, which costs least"
        )
        all_neurons = "neurons go in steps that are too wide for so small a cut, so all of them stay"
        return (
            f"keeps {self.n_keep} of {self.n_expert} experts with {self.width} of {self.source_width} neurons each, "
            f"{self.kept:.1%} of their weights: {nearest if self.width < self.source_width else all_neurons}"
        )

    @property
    def _distance(self) -> float:
        experts, neurons = 1 - self.n_keep / self.n_expert, 1 - self.width / self.source_width
        return abs(neurons / (experts + neurons) - NEURONS / (1 + NEURONS))


def split(
    n_expert: int,
    source_width: int,
    shrink: str | float,
    *,
    block: int = BLOCK,
    n_group: int = 1,
    allowed: Callable[[int], bool] = lambda _: True,
) -> Split:
    """The split that removes the fraction `shrink` of the routed experts' weights, or MOST_MORE times that.

    Widths are multiples of `block`, counts of experts of `n_group` and `allowed`. Of all pairs that leave no room for
    one more of either, the one that is closest to the rule. Raises InfeasiblePlan where there is none, as in a model of
    few experts with few neurons, InputError for a fraction outside [0, 1).
    """
    removed = as_fraction(str(shrink), "the experts' weights")
    whole = n_expert * source_width
    most = whole * (1 - removed)
    counts = [count for count in range(n_group, n_expert + 1, n_group) if allowed(count)]
    widths = [*range(block, source_width, block), source_width]
    fitting = [(count, width) for count in counts for width in widths if count * width <= most]
    if not fitting or removed == 0:
        raise InfeasiblePlan(
            f"a shrink of {shrink} of {n_expert} experts with {source_width} neurons leaves no experts that llama.cpp "
            "could route among; take less away"
            if not fitting
            else "a shrink of 0 removes nothing; leave it out"
        )
    widest, most_experts = dict(fitting), {width: count for count, width in fitting}
    pairs = [(count, width) for count, width in fitting if widest[count] == width and most_experts[width] == count]
    splits = [Split(count, n_expert, width, source_width) for count, width in pairs]
    near = [each for each in splits if whole - each.n_keep * each.width <= MOST_MORE * removed * whole]
    if not near:
        least = max(splits, key=lambda each: each.kept)
        share = least_ratio(whole - least.n_keep * least.width, whole)
        raise InfeasiblePlan(
            f"a shrink of {shrink} cannot be had: the least above it keeps {least.n_keep} of {n_expert} experts with "
            f"{least.width} of {source_width} neurons, {share} of the weights go; use {share} or more"
        )
    return min(near, key=lambda each: (round(each._distance, 6), -each.kept))
