"""One block: which neurons of its experts stay, what that costs, and the columns of down that make up for the rest."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ggufreap.container import GgufFile
from ggufreap.engine.observables import Float32s
from ggufreap.narrowing.curvature import Curvature
from ggufreap.narrowing.surgeon import Floats, Ids, Removal, damped, losses_alone, refitted, remove, remove_alone
from ggufreap.saliency import expert_scale, expert_weights

# From fewer tokens than neurons H has not full rank, and the damping fills in: that is still far better than energy x
# norm where most experts have so few, and no better below a quarter (tests/benchmarks/README.md).
LEAST_TOKENS = 0.25  # per neuron
MOST_USED = 0.5  # of the tokens, taken as used up by what was fitted on them: from then on the damping holds


@dataclass(frozen=True)
class Solved:
    """Of the experts of one block that stay, in their order.

    `neurons` `[n_keep, width]` stay, ascending. `losses` `[n_keep, n_removed + 1]`: what the removal of so many neurons
    costs, as the mean over all tokens of (‖change of the block's output‖ / ‖residual stream‖)², errors of experts taken
    for independent. `counts` `[n_keep]`: tokens of each expert. `alone` `[n_keep]`: whether they were too few, so that
    its neurons were chosen by energy x norm and none makes up for another. `order` `[n_keep, n_removed]`: in which the
    others went, and `bare` as `losses`, if none made up for another.
    """

    neurons: npt.NDArray[np.int32]
    losses: Floats
    counts: npt.NDArray[np.int64]
    alone: npt.NDArray[np.bool_]
    order: npt.NDArray[np.int32]
    bare: Floats

    @property
    def foreseen(self) -> Floats:
        """`[n_keep]`: what going neurons cost on other text, by generalised cross-validation (Craven and Wahba, 1979).

        The columns were fitted on the very tokens that H was summed over, as many parameters as neurons stay.
        """
        used = np.minimum(self.neurons.shape[1] / np.maximum(self.counts, 1), MOST_USED)
        found: Floats = self.losses[:, -1] / np.where(self.alone, 1.0, 1.0 - used) ** 2
        return found

    @property
    def as_costly(self) -> int:
        """The number of neurons, the first to go, that cost about as much alone as is foreseen of all of them."""
        return 1 + int(np.abs(self.bare[:, 1:].sum(axis=0) - self.foreseen.sum()).argmin())


def down_name(block: int) -> str:
    """The tensor whose inputs are the neurons of a block's experts."""
    return f"blk.{block}.ffn_down_exps.weight"


def solve(curvature: Curvature, file: GgufFile, width: int, put: Callable[[Float32s], object]) -> Solved:
    """Choose `width` neurons of every expert, and `put` the columns `[n_embd, width]` of each of them, in order.

    Raises UnsupportedModel for a type of down that gguf cannot read.
    """
    record = file.by_name[down_name(curvature.block)]
    source_width = record.shape[-1]
    neurons, losses, order, bare = [], [], [], []
    alone = curvature.counts < LEAST_TOKENS * source_width
    for place, expert in enumerate(curvature.experts):
        down, scale = expert_weights(file, record, expert), expert_scale(file, record, expert)
        found = _solve(curvature.sums[place], down, width, bool(alone[place]))
        put(found.columns)
        neurons.append(found.kept)
        order.append(found.removal.order)
        share = scale**2 / max(curvature.weight, 1e-30)
        losses.append(share * found.removal.losses)
        bare.append(share * found.bare)
    return Solved(
        *(np.array(neurons, np.int32), np.array(losses), curvature.counts, alone),
        order=np.array(order, np.int32),
        bare=np.array(bare),
    )


@dataclass(frozen=True)
class _Expert:
    removal: Removal
    bare: Floats
    kept: Ids
    columns: Float32s


def _solve(sums: Float32s, down: Float32s, width: int, alone: bool) -> _Expert:
    source_width = down.shape[1]
    weights = down.astype(np.float64)
    gram = weights.T @ weights
    if alone:
        removal = remove_alone(sums, gram, source_width - width)
        kept = removal.kept(width, source_width)
        return _Expert(removal, removal.losses, kept, down[:, kept])
    hessian = damped(sums)
    removal = remove(hessian, gram, source_width - width)
    kept = removal.kept(width, source_width)
    bare = losses_alone(sums, gram, removal.order)
    return _Expert(removal, bare, kept, refitted(weights, hessian, kept))
