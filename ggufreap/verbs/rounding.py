"""Counts of experts that a kernel dislikes: moved where that was asked for, else told."""

import logging
from dataclasses import replace

from ggufreap.architecture.layout import MoeLayout
from ggufreap.options.target import AUTO_RATIO, FRIENDLY, Target
from ggufreap.planning import count_to_keep
from ggufreap.planning.counts import KNOWN, friendly_count, is_friendly, nearest_friendly

_LOG = logging.getLogger(__name__)


def rounded(layout: MoeLayout, target: Target) -> Target:
    """The target with a count of experts that `target.round` allows; what was moved is said.

    As it is where the count is yet to be searched for. Raises InfeasiblePlan as friendly_count does.
    """
    searched = (target.ratio, target.keep) == (None, None) or target.ratio == AUTO_RATIO
    if target.round != FRIENDLY or searched:
        return target
    wanted = count_to_keep(layout, target.ratio, target.keep)
    found = friendly_count(layout, wanted)
    if found == wanted:
        return target
    _LOG.info("--round %s: %d of %d experts stay, not %d: %s", target.round, found, layout.n_expert, wanted, KNOWN)
    return replace(target, ratio=None, keep=found)


def tell_unfriendly(layout: MoeLayout, n_keep: int) -> None:
    """Say where the router of the whole model has a kernel that the one of `n_keep` experts has not."""
    if is_friendly(layout.n_expert) and not is_friendly(n_keep):
        nearest = nearest_friendly(layout, n_keep) or layout.n_expert
        _LOG.info("%s, not %d: there routing takes more steps; nearest: --keep %d", KNOWN, n_keep, nearest)
