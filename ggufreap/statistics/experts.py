"""The statistics of one body of text: float64 accumulators that add up over any split of the data.

An accumulator is a row of `ACCUMULATORS`; adding a statistic means adding a row.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ggufreap.engine.protocol import RoutedBatch
from ggufreap.errors import MismatchError

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Accumulator:
    """How one statistic folds: `value` per routed token, put together per expert with `combine` (add or maximum)."""

    value: Callable[[RoutedBatch], npt.NDArray[Any]]
    combine: np.ufunc
    meaning: str


ACCUMULATORS: Mapping[str, Accumulator] = {
    "count": Accumulator(lambda batch: np.ones_like(batch.weights), np.add, "routed tokens"),
    "sum_g": Accumulator(lambda batch: batch.weights, np.add, "sum of g"),
    "sum_f": Accumulator(lambda batch: batch.norms, np.add, "sum of ‖f‖"),
    "sum_gf": Accumulator(lambda batch: batch.contributions, np.add, "sum of g‖f‖"),
    "sum_gf2": Accumulator(lambda batch: batch.contributions.astype(np.float64) ** 2, np.add, "sum of (g‖f‖)²"),
    "max_f": Accumulator(lambda batch: batch.peaks, np.maximum, "max |f|"),
}


@dataclass(frozen=True)
class ExpertStatistics:
    """Accumulators `[n_moe_blocks, n_expert]` over `n_chunks` chunks, of which `n_tokens` tokens were counted.

    `blocks` names the MoE blocks row by row. `a + b` is the statistics of both data sets.
    """

    blocks: tuple[int, ...]
    n_used: tuple[int, ...]
    n_expert: int
    n_tokens: int
    n_chunks: int
    values: Mapping[str, Floats]

    @classmethod
    def empty(cls, blocks: Sequence[int], n_used: Sequence[int], n_expert: int) -> Self:
        """The statistics of no data."""
        shape = (len(blocks), n_expert)
        return cls(tuple(blocks), tuple(n_used), n_expert, 0, 0, {name: np.zeros(shape) for name in ACCUMULATORS})

    def __add__(self, other: Self) -> Self:
        check_same_model(self, other)
        values = {name: row.combine(self.values[name], other.values[name]) for name, row in ACCUMULATORS.items()}
        counts = self.n_tokens + other.n_tokens, self.n_chunks + other.n_chunks
        return type(self)(self.blocks, self.n_used, self.n_expert, *counts, values)

    def observe(self, batches: Sequence[RoutedBatch], n_tokens: int, counted: Mask | None = None) -> Self:
        """These statistics and one more chunk of `n_tokens` tokens, of which the `counted` `[n_tokens]` are folded.

        `batches` are the micro-batches of the chunk, in order within each block. Raises MismatchError when they hold
        other tokens than the chunk.
        """
        if counted is not None:
            batches, n_tokens = list(_only(batches, counted)), int(np.count_nonzero(counted))
        rows = {block: row for row, block in enumerate(self.blocks)}
        chunk = {name: np.zeros((len(self.blocks), self.n_expert)) for name in ACCUMULATORS}
        for batch in batches:
            experts, row = batch.experts.ravel().astype(np.intp), rows[batch.block]  # ufunc.at is fast with intp alone
            for name, accumulator in ACCUMULATORS.items():
                values = accumulator.value(batch).ravel().astype(np.float64)
                accumulator.combine.at(chunk[name][row], experts, values)
        return self + type(self)(self.blocks, self.n_used, self.n_expert, n_tokens, 1, chunk)

    def check(self) -> None:
        """Raise MismatchError unless every block routed every counted token to exactly n_used experts."""
        for block, used, total in zip(self.blocks, self.n_used, self.values["count"].sum(axis=1), strict=True):
            if total != self.n_tokens * used:
                raise MismatchError(
                    f"block {block} counted {total:.0f} routed tokens, {self.n_tokens} tokens x {used} experts are "
                    f"{self.n_tokens * used}; the observation is incomplete and must not be used"
                )


def check_same_model(one: Any, other: Any) -> None:
    """Raise MismatchError unless both statistics have the same blocks, experts and experts used."""
    if (one.blocks, one.n_used, one.n_expert) != (other.blocks, other.n_used, other.n_expert):
        raise MismatchError(
            f"statistics of {len(one.blocks)} blocks x {one.n_expert} experts and of "
            f"{len(other.blocks)} x {other.n_expert} cannot be added; they come from different models"
        )


def _only(batches: Sequence[RoutedBatch], counted: Mask) -> Iterator[RoutedBatch]:
    """The batches without the tokens that do not count."""
    seen: dict[int, int] = {}
    for batch in batches:
        start = seen.get(batch.block, 0)
        end = seen[batch.block] = start + len(batch.experts)
        if end > len(counted):
            raise MismatchError(f"block {batch.block} routed {end} tokens or more of a chunk of {len(counted)}")
        rows = counted[start:end]
        yield RoutedBatch(
            batch.block,
            batch.experts[rows],
            batch.weights[rows],
            batch.norms[rows],
            batch.contributions[rows],
            batch.peaks[rows],
        )
