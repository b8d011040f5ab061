"""The best prospects within a size, and the best of every size."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ggufreap.errors import InfeasiblePlan
from ggufreap.fitting.losses import Curve
from ggufreap.fitting.pool import KINDS, NARROWED, NEVER, PRUNED, UNPRUNED, Mask, Pool, Prospect
from ggufreap.units import size

MADE = 3  # prospects that are made and measured
APART = 1 / 16  # of the experts: what is nearer to another prospect of the same kind is no second opinion


@dataclass(frozen=True)
class Step:
    """The lowest estimates among prospects of at most `nbytes`, of each of KINDS; None where none is so small."""

    nbytes: int
    unpruned: Prospect | None
    pruned: Prospect | None
    narrowed: Prospect | None

    @property
    def kinds(self) -> dict[str, Prospect | None]:
        """Kind -> its lowest."""
        return {UNPRUNED: self.unpruned, PRUNED: self.pruned, NARROWED: self.narrowed}

    @property
    def winner(self) -> Prospect | None:
        """The lowest of all; of equals the one of which less is missing."""
        there = [each for each in self.kinds.values() if each]
        return min(there, key=lambda each: each.loss, default=None)


def lowest(pool: Pool, room: int, among: Mask | None = None) -> Prospect | None:
    """The prospect of at most `room` bytes with the lowest estimate, among equals the smallest; None where none is."""
    allowed = pool.nbytes <= min(room, NEVER - 1)
    if among is not None:
        allowed &= among
    places = allowed.ravel().nonzero()[0]
    if not places.size:
        return None
    losses, nbytes = pool.losses.ravel()[places], pool.nbytes.ravel()[places]
    least = (losses == losses.min()).nonzero()[0]
    return pool.prospect(int(places[least[nbytes[least].argmin()]]))


def contenders(pool: Pool, room: int, most: int = MADE) -> list[Prospect]:
    """Prospects to be made and measured, the lowest estimate first.

    Next to it come the lowest of the other kinds, unpruned, with fewer experts alone and with narrower ones, whatever
    is estimated of them: that any of it is worth it has to be shown. Where there are not so many kinds, the lowest ones
    follow whose number of experts is APART from all others of the list. Raises InfeasiblePlan where nothing fits.
    """
    best = [found for each in pool.kinds.values() if (found := lowest(pool, room, each))]
    if not best:
        raise InfeasiblePlan(too_small(pool, room))
    chosen = sorted(best, key=lambda each: each.loss)
    counts = np.array(pool.counts)
    while len(chosen) < most:
        apart = np.all([abs(counts - each.n_keep) >= APART * counts[0] for each in chosen], axis=0)
        following = lowest(pool, room, apart[:, None, None])
        if following is None:
            break
        chosen.append(following)
    return chosen[:most]


def too_small(pool: Pool, room: int) -> str:
    """What to say where nothing fits: the smallest that there could be."""
    smallest = pool.prospect(int(pool.nbytes.argmin()))
    there = f"nothing of {size(room)} can be made" if room > 0 else "nothing is left for a file"
    experts = Curve.tabulated()
    neurons = f" or {Curve.of_neurons(experts).last:.0%} of their neurons" if len(pool.widths) > 1 else ""
    return (
        f"{there}: the smallest file has {size(smallest.nbytes)} ({smallest.label}; more than "
        f"{experts.last:.0%} of the experts{neurons} never go, since nothing tells what that loses); "
        f"give at least {size(smallest.nbytes - room)} more"
    )


def frontier(pool: Pool, sizes: Sequence[int]) -> list[Step]:
    """The lowest estimates within each of `sizes`, in bytes."""
    return [Step(nbytes, *(lowest(pool, nbytes, pool.kinds[kind]) for kind in KINDS)) for nbytes in sizes]


def spread(pool: Pool, steps: int) -> list[int]:
    """`steps` sizes in bytes, evenly spread by ratio between the smallest prospect and the model as it is."""
    smallest, largest = int(pool.nbytes.min()), int(pool.nbytes.ravel()[0])
    return [int(nbytes) for nbytes in np.geomspace(smallest, max(largest, smallest + 1), steps).round()]
