"""Statistics per domain of the text, each in two halves, so that it can be told how much chance is in them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Self

from ggufreap.engine.protocol import RoutedBatch
from ggufreap.errors import InputError
from ggufreap.statistics.experts import ExpertStatistics, Mask, check_same_model

Halves = tuple[ExpertStatistics, ExpertStatistics]


@dataclass(frozen=True)
class DomainStatistics:
    """Statistics of one model: domain -> those of its even and of its odd chunks.

    `a + b` is the statistics of both data sets; shards of one corpus, added, are the statistics of the whole.
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
        """Raise MismatchError unless every block routed every counted token to exactly n_used experts."""
        for halves in self.halves.values():
            for half in halves:
                half.check()

    @property
    def _nothing(self) -> ExpertStatistics:
        return ExpertStatistics.empty(self.blocks, self.n_used, self.n_expert)
