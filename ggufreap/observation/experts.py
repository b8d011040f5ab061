"""The statistics of one body of text: float64 arrays that add up over any split of the data."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Self

import numpy as np
import numpy.typing as npt

from ggufreap.engine.protocol import RoutedBatch
from ggufreap.errors import InputError, MismatchError, NumericFailure
from ggufreap.observation.statistics import STATISTICS, Floats

Mask = npt.NDArray[np.bool_]


class Recorded(dict[str, Floats]):
    """Statistics by name; asking for one that was not recorded raises InputError, which says how to add it."""

    def __missing__(self, name: str) -> NoReturn:
        raise InputError(
            f"the statistics hold no {name}, only {', '.join(self)}; calibrate again, which records all that this "
            "version knows"
        )


@dataclass(frozen=True)
class ExpertStatistics:
    """Statistics by name, `[n_moe_blocks, *shape]`, over `n_chunks` chunks, of which `n_tokens` tokens were counted.

    `blocks` names the MoE blocks row by row; they may be some of the model's. `a + b` is the statistics of both data
    sets, `a.beside(b)` those of both sets of blocks. What a file of an older version lacks is not in `values`.
    """

    blocks: tuple[int, ...]
    n_used: tuple[int, ...]
    n_expert: int
    n_tokens: int
    n_chunks: int
    values: Mapping[str, Floats]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", Recorded(self.values))

    @classmethod
    def empty(
        cls, blocks: Sequence[int], n_used: Sequence[int], n_expert: int, names: Collection[str] | None = None
    ) -> Self:
        """The statistics of no data; `names` of STATISTICS, by default all."""
        zeros = _zeros(len(blocks), n_expert, STATISTICS if names is None else names)
        return cls(tuple(blocks), tuple(n_used), n_expert, 0, 0, zeros)

    def __add__(self, other: Self) -> Self:
        check_same_model(self, other)
        if self.values.keys() != other.values.keys():
            differing = ", ".join(sorted(self.values.keys() ^ other.values.keys()))
            raise MismatchError(f"only one of two statistics to be added holds {differing}; calibrate the other again")
        values = {name: STATISTICS[name].add(array, other.values[name]) for name, array in self.values.items()}
        counts = self.n_tokens + other.n_tokens, self.n_chunks + other.n_chunks
        return type(self)(self.blocks, self.n_used, self.n_expert, *counts, values)

    def beside(self, other: Self) -> Self:
        """The statistics of these blocks and of `other` ones, observed on the same chunks; blocks in order."""
        blocks, used = self.blocks + other.blocks, self.n_used + other.n_used
        order = sorted(range(len(blocks)), key=lambda row: blocks[row])
        values = {name: np.concatenate([array, other.values[name]])[order] for name, array in self.values.items()}
        sorted_blocks, sorted_used = (tuple(column[row] for row in order) for column in (blocks, used))
        return type(self)(sorted_blocks, sorted_used, self.n_expert, self.n_tokens, self.n_chunks, values)

    def observe(self, batches: Sequence[RoutedBatch], n_tokens: int, counted: Mask | None = None) -> Self:
        """These statistics and one more chunk of `n_tokens` tokens, of which the `counted` `[n_tokens]` are folded.

        `batches` are the micro-batches of the chunk, in order within each block, with all observables that the
        statistics need. Raises MismatchError when they hold other tokens than the chunk.
        """
        if counted is not None:
            batches, n_tokens = list(only_counted(batches, counted)), int(np.count_nonzero(counted))
        rows = {block: row for row, block in enumerate(self.blocks)}
        chunk = _zeros(len(self.blocks), self.n_expert, self.values)
        for batch in batches:
            for name, array in chunk.items():
                STATISTICS[name].fold(array[rows[batch.block]], batch)
        return self + type(self)(self.blocks, self.n_used, self.n_expert, n_tokens, 1, chunk)

    def check(self) -> None:
        """Raise NumericFailure for NaN and infinity, MismatchError unless every block routed every counted token to
        exactly n_used experts.
        """
        self._check_numbers()
        for block, used, total in zip(self.blocks, self.n_used, self.values["count"].sum(axis=1), strict=True):
            if total != self.n_tokens * used:
                raise MismatchError(
                    f"block {block} counted {total:.0f} routed tokens, {self.n_tokens} tokens x {used} experts are "
                    f"{self.n_tokens * used}; the observation is incomplete and must not be used"
                )

    def _check_numbers(self) -> None:
        for name, array in self.values.items():
            wrong = np.argwhere(~np.isfinite(array))
            if len(wrong):
                raise NumericFailure(
                    f"block {self.blocks[wrong[0][0]]}: {name} of expert {wrong[0][1]} is no finite number; the "
                    "statistics or the model are damaged, calibrate again"
                )

    @property
    def mute(self) -> tuple[tuple[int, int], ...]:
        """(block, expert) of those that gave exactly nothing for all of the tokens that they got."""
        if not {"count", "sum_f"} <= self.values.keys():
            return ()
        nothing = (self.values["count"] > 0) & (self.values["sum_f"] == 0)
        return tuple((self.blocks[row], int(expert)) for row, expert in np.argwhere(nothing))


def check_same_model(one: Any, other: Any) -> None:
    """Raise MismatchError unless both statistics have the same blocks, experts and experts used."""
    if (one.blocks, one.n_used, one.n_expert) != (other.blocks, other.n_used, other.n_expert):
        raise MismatchError(
            f"statistics of {len(one.blocks)} blocks x {one.n_expert} experts and of "
            f"{len(other.blocks)} x {other.n_expert} cannot be added; they come from different models"
        )


def _zeros(n_blocks: int, n_expert: int, names: Collection[str]) -> dict[str, Floats]:
    wanted = {name: row for name, row in STATISTICS.items() if name in names}
    return {name: np.full((n_blocks, *row.shape(n_expert)), row.zero) for name, row in wanted.items()}


def only_counted(batches: Sequence[RoutedBatch], counted: Mask) -> Iterator[RoutedBatch]:
    """The batches without the tokens that do not count."""
    seen: dict[int, int] = {}
    for batch in batches:
        start = seen.get(batch.block, 0)
        end = seen[batch.block] = start + len(batch.experts)
        if end > len(counted):
            raise MismatchError(f"block {batch.block} routed {end} tokens or more of a chunk of {len(counted)}")
        yield batch.only(counted[start:end])
