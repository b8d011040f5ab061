"""Statistics per domain of the text, each in two halves, so that it can be told how much chance is in them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Self

import numpy as np

from ggufreap.engine.protocol import RoutedBatch
from ggufreap.errors import InputError, MismatchError, NumericFailure
from ggufreap.observation.experts import ExpertStatistics, Mask, check_same_model

Halves = tuple[ExpertStatistics, ExpertStatistics]


@dataclass(frozen=True)
class DomainStatistics:
    """Statistics of one model: domain -> those of its even and of its odd chunks.

    `a + b` is the statistics of both data sets; shards of one corpus, added, are the statistics of the whole.
    `a.beside(b)` is the statistics of both sets of blocks.
    """

    blocks: tuple[int, ...]
    n_used: tuple[int, ...]
    n_expert: int
    halves: Mapping[str, Halves]

    @classmethod
    def empty(cls, blocks: Sequence[int], n_used: Sequence[int], n_expert: int, domains: Iterable[str] = ()) -> Self:
        """The statistics of no data. `domains` settles their order; further ones may follow."""
        nothing = ExpertStatistics.empty(blocks, n_used, n_expert)
        return cls(nothing.blocks, nothing.n_used, n_expert, dict.fromkeys(domains, (nothing, nothing)))

    @property
    def domains(self) -> tuple[str, ...]:
        """Their names, in order."""
        return tuple(self.halves)

    @property
    def names(self) -> tuple[str, ...]:
        """The statistics that are held: all of STATISTICS, or those that a file of an older version has."""
        return tuple(self._nothing.values)

    @property
    def n_tokens(self) -> int:
        """All counted tokens."""
        return sum(half.n_tokens for halves in self.halves.values() for half in halves)

    @property
    def n_chunks(self) -> int:
        """All chunks."""
        return sum(half.n_chunks for halves in self.halves.values() for half in halves)

    @property
    def total(self) -> ExpertStatistics:
        """Of all text together."""
        return reduce(add, (self.of(domain) for domain in self.halves), self._nothing)

    def of(self, domain: str) -> ExpertStatistics:
        """Of one domain; raises InputError for an unknown one."""
        if domain not in self.halves:
            raise InputError(f"there are no statistics of {domain!r}, only of {', '.join(self.halves) or 'no text'}")
        even, odd = self.halves[domain]
        return even + odd

    def half(self, number: int) -> Self:
        """The even (0) or the odd (1) chunks alone; the other half is empty."""
        nothing = self._nothing
        return replace(
            self,
            halves={
                domain: (halves[0], nothing) if number == 0 else (nothing, halves[1])
                for domain, halves in self.halves.items()
            },
        )

    def __add__(self, other: Self) -> Self:
        check_same_model(self, other)
        halves = dict(self.halves)
        for domain, (even, odd) in other.halves.items():
            halves[domain] = (halves[domain][0] + even, halves[domain][1] + odd) if domain in halves else (even, odd)
        return replace(self, halves=halves)

    def beside(self, other: Self) -> Self:
        """The statistics of these blocks and of `other` ones; raises MismatchError unless the chunks are the same."""
        if (self.n_expert, self.counts) != (other.n_expert, other.counts):
            raise MismatchError(
                f"blocks {_list(self.blocks)} were observed on {self.n_chunks} chunks, blocks {_list(other.blocks)} on "
                f"{other.n_chunks} others; only blocks that were observed on the same chunks go together"
            )
        halves = {
            domain: (even.beside(other.halves[domain][0]), odd.beside(other.halves[domain][1]))
            for domain, (even, odd) in self.halves.items()
        }
        frame = self._nothing.beside(other._nothing)
        return replace(self, blocks=frame.blocks, n_used=frame.n_used, halves=halves)

    @property
    def counts(self) -> dict[str, tuple[tuple[int, int], ...]]:
        """Domain -> counted tokens and chunks of either half."""
        return {name: tuple((half.n_tokens, half.n_chunks) for half in halves) for name, halves in self.halves.items()}

    def observe(
        self,
        domain: str,
        number: int,
        batches: Sequence[RoutedBatch],
        n_tokens: int,
        counted: Mask | None = None,
    ) -> Self:
        """These statistics and one more chunk, `number` of its domain, whichever shard it is observed in.

        `n_tokens` and `counted` as in ExpertStatistics.observe. All other domains are shared, not copied.
        """
        even, odd = self.halves.get(domain, (self._nothing, self._nothing))
        if number % 2 == 0:
            even = even.observe(batches, n_tokens, counted)
        else:
            odd = odd.observe(batches, n_tokens, counted)
        return replace(self, halves={**self.halves, domain: (even, odd)})

    def check(self) -> None:
        """Raise MismatchError or NumericFailure unless every half holds what ExpertStatistics.check wants.

        NumericFailure too where all experts of a block that got tokens gave exactly nothing.
        """
        for halves in self.halves.values():
            for half in halves:
                half.check()
        total = self.total
        mute = [block for block, _ in total.mute]
        for block, counts in zip(total.blocks, total.values["count"], strict=True):
            if 0 < np.count_nonzero(counts) == mute.count(block):
                raise NumericFailure(
                    f"block {block}: the output of every expert is exactly zero, as of weights that are zero; "
                    "the model file is not whole, download it again"
                )

    @property
    def _nothing(self) -> ExpertStatistics:
        held = next((halves[0].values for halves in self.halves.values()), None)
        return ExpertStatistics.empty(self.blocks, self.n_used, self.n_expert, held)


def _list(blocks: Sequence[int]) -> str:
    return ", ".join(map(str, blocks))
