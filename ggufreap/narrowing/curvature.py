"""How much the output of an expert may change: H of optimal brain surgeon, summed over the tokens of a block.

A change D of an expert's down matrix adds g D h to the block's output, g the router weight and h the activations. It
counts in proportion to the residual stream s that it is added to, since the next block's norm divides by ‖s‖. So
H = Σ (g/‖s‖)² h hᵀ, over the tokens that are routed to the expert.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import numpy.typing as npt

from ggufreap.engine.observables import ACTIVATIONS, STREAM_NORMS, Float32s
from ggufreap.engine.protocol import RoutedBatch
from ggufreap.engine.taps import not_finite

NEEDS = (ACTIVATIONS, STREAM_NORMS)
TOGETHER = 4096  # tokens that wait to be added: the sums of many experts fit into no cache, so they are touched rarely


@dataclass
class Curvature:
    """Of the `experts` of one block that stay: `sums` `[n_keep, width, width]` and routed tokens `counts` `[n_keep]`.

    `weight` is what all tokens count together. Sums of more text are added in place; what waits is added by `flush`.
    """

    block: int
    experts: Sequence[int]
    sums: Float32s
    counts: npt.NDArray[np.int64]
    weight: float = 0.0
    _waiting: list[tuple[npt.NDArray[np.integer], Float32s]] = field(default_factory=list)

    @classmethod
    def empty(cls, block: int, experts: Sequence[int], width: int) -> Self:
        """Of no text."""
        n_keep = len(experts)
        return cls(block, experts, np.zeros((n_keep, width, width), np.float32), np.zeros(n_keep, np.int64))

    def fold(self, batch: RoutedBatch, weighted_input: bool, share: float = 1.0) -> None:
        """Take a micro-batch, whose tokens count `share` each; raises NumericFailure on NaN or infinity.

        `weighted_input` as in RoutingNodes: the activations are weighted already.
        """
        norms = batch[STREAM_NORMS].copy()
        norms[norms == 0] = np.inf  # a stream of zeros is padding
        weights = np.ones_like(batch.weights) if weighted_input else batch.weights
        roots = np.sqrt(np.float32(share)) * weights / norms[:, None]
        self._waiting.append((batch.experts, batch[ACTIVATIONS] * roots[..., None]))
        self.weight += share * len(batch.experts)
        if sum(len(chosen) for chosen, _ in self._waiting) >= TOGETHER:
            self.flush()

    def flush(self) -> None:
        """Add what waits; raises NumericFailure on NaN or infinity."""
        if not self._waiting:
            return
        chosen, activations = (np.concatenate(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting.clear()
        for place, expert in enumerate(self.experts):
            part = activations[chosen == expert]
            if len(part):
                self.sums[place] += part.T @ part
                self.counts[place] += len(part)
                if not np.isfinite(self.sums[place].diagonal()).all():
                    raise not_finite(f"block {self.block}, expert {expert}")


def curvature_nbytes(n_keep: int, width: int, n_ctx: int, n_used: int) -> int:
    """Bytes of memory that a block takes: its sums, and the activations of one chunk and of those that wait."""
    return 4 * (n_keep * width**2 + (2 * n_ctx + 2 * TOGETHER) * n_used * width)
