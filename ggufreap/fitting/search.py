"""The best prospects within a size, and the best of every size."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ggufreap.errors import InfeasiblePlan
from ggufreap.fitting.losses import Curve
from ggufreap.fitting.pool import Pool, Prospect
from ggufreap.units import size

MADE = 3  # prospects that are made and measured
APART = 1 / 16  # of the experts: what is nearer to another prospect of the same kind is no second opinion
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Step:
    """The lowest estimates among prospects of at most `nbytes`, unpruned and pruned; None where none is so small."""

    nbytes: int
    unpruned: Prospect | None
    pruned: Prospect | None

    @property
    def winner(self) -> Prospect | None:
        """The lower of the two; of equals the unpruned one."""
        there = [each for each in (self.unpruned, self.pruned) if each]
        return min(there, key=lambda each: each.loss, default=None)


def lowest(pool: Pool, room: int, among: Mask | None = None) -> Prospect | None:
    """The prospect of at most `room` bytes with the lowest estimate, among equals the smallest; None where none is."""
    allowed = pool.nbytes <= room
    if among is not None:
        allowed &= among
    in_order = allowed.ravel()[pool.order]
    first = int(in_order.argmax())
    return pool.prospect(int(pool.order[first])) if in_order[first] else None


def is_pruned(pool: Pool) -> Mask:
    """`[K, W, C]`: whether any expert or neuron is missing."""
    whole = np.array(pool.counts)[:, None, None] == pool.counts[0]
    full = np.array([width is None for width in pool.widths])[None, :, None]
    return np.broadcast_to(~(whole & full), pool.nbytes.shape)


def contenders(pool: Pool, room: int, most: int = MADE) -> list[Prospect]:
    """Prospects to be made and measured, the lowest estimate first.

    The next is the lowest of the other kind, pruned or not, whatever is estimated of it: that pruning is worth it has
    to be shown. Then come the lowest ones whose number of experts is APART from all others of the list. Raises
    InfeasiblePlan where nothing fits.
    """
    first = lowest(pool, room)
    if first is None:
        raise InfeasiblePlan(too_small(pool, room))
    pruned = is_pruned(pool)
    chosen = [first]
    if other := lowest(pool, room, ~pruned if first.pruned else pruned):
        chosen.append(other)
    counts = np.array(pool.counts)
    while len(chosen) < most:
        apart = np.all([abs(counts - each.n_keep) >= APART * counts[0] for each in chosen], axis=0)
        following = lowest(pool, room, np.broadcast_to(apart[:, None, None], pool.nbytes.shape))
        if following is None:
            break
        chosen.append(following)
    return chosen[:most]


def too_small(pool: Pool, room: int) -> str:
    """What to say where nothing fits: the smallest that there could be."""
    smallest = pool.prospect(int(pool.nbytes.argmin()))
    there = f"nothing of {size(room)} can be made" if room > 0 else "nothing is left for a file"
    return (
        f"{there}: the smallest file has {size(smallest.nbytes)} ({smallest.label}; more than "
        f"{Curve.tabulated().last:.0%} of the experts never go, since nothing tells what that loses); "
        f"give at least {size(smallest.nbytes - room)} more"
    )


def frontier(pool: Pool, sizes: Sequence[int]) -> list[Step]:
    """The lowest estimates within each of `sizes`, in bytes."""
    pruned = is_pruned(pool)
    return [Step(nbytes, lowest(pool, nbytes, ~pruned), lowest(pool, nbytes, pruned)) for nbytes in sizes]


def spread(pool: Pool, steps: int) -> list[int]:
    """`steps` sizes in bytes, evenly spread by ratio between the smallest prospect and the model as it is."""
    smallest, largest = int(pool.nbytes.min()), int(pool.nbytes.ravel()[0])
    return [int(nbytes) for nbytes in np.geomspace(smallest, max(largest, smallest + 1), steps).round()]
