"""How much the output of an expert may change: H of optimal brain surgeon, summed over the tokens of a block.

A change D of an expert's down matrix adds g D h to the block's output, g the router weight and h the activations. It
counts in proportion to the residual stream s that it is added to, since the next block's norm divides by ‖s‖. So
H = Σ (g/‖s‖)² h hᵀ, over the tokens that are routed to the expert.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from ggufreap.engine.observables import ACTIVATIONS, STREAM_NORMS, Float32s
from ggufreap.engine.protocol import RoutedBatch
from ggufreap.engine.taps import not_finite

NEEDS = (ACTIVATIONS, STREAM_NORMS)


@dataclass
class Curvature:
    """Of the `experts` of one block that stay: `sums` `[n_keep, width, width]` and routed tokens `counts` `[n_keep]`.

    `weight` is what all tokens count together. Sums of more text are added in place.
    """

    block: int
    experts: Sequence[int]
    sums: Float32s
    counts: npt.NDArray[np.int64]
    weight: float = 0.0

    @classmethod
    def empty(cls, block: int, experts: Sequence[int], width: int) -> Self:
        """Of no text."""
        n_keep = len(experts)
        return cls(block, experts, np.zeros((n_keep, width, width), np.float32), np.zeros(n_keep, np.int64))

    def fold(self, batch: RoutedBatch, weighted_input: bool, share: float = 1.0) -> None:
        """Add a micro-batch, whose tokens count `share` each; raises NumericFailure on NaN or infinity.

        `weighted_input` as in RoutingNodes: the activations are weighted already.
        """
        norms = batch[STREAM_NORMS].copy()
        norms[norms == 0] = np.inf  # a stream of zeros is padding
        weights = np.ones_like(batch.weights) if weighted_input else batch.weights
        roots = np.sqrt(np.float32(share)) * weights / norms[:, None]
        activations = batch[ACTIVATIONS]
        for place, expert in enumerate(self.experts):
            rows = batch.experts == expert
            if rows.any():
                part = activations[rows] * roots[rows][:, None]
                self.sums[place] += part.T @ part
                self.counts[place] += len(part)
                if not np.isfinite(self.sums[place].diagonal()).all():
                    raise not_finite(f"block {self.block}, expert {expert}")
        self.weight += share * len(batch.experts)


def curvature_nbytes(n_keep: int, width: int, n_ctx: int, n_used: int) -> int:
    """Bytes of memory that a block takes: its sums, and the activations of one chunk."""
    return 4 * (n_keep * width**2 + n_ctx * n_used * width)
