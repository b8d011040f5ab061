"""Chunks that are kept beside the statistics, so that choices can be judged on text they were not made from.

Statistics are kept in halves, those of the even and those of the odd chunks of every domain. What was chosen from one
half has not seen the other: some chunks of both are kept as tokens. So no text is lost to the statistics, and every
choice can be judged whenever the file is at hand.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ggufreap.corpus import Chunk
from ggufreap.decoding.arrays import take
from ggufreap.engine.protocol import Tokens

MOST = 16  # pairs of chunks of a domain: a mean over that many is good to a few per cent


@dataclass(frozen=True)
class Held:
    """A kept chunk, and which half of the statistics has seen it: 0 the even chunks', 1 the odd ones'."""

    tokens: Tokens
    half: int


class HeldBack:
    """Domain -> its chunks that are kept: of the pairs of an even and an odd one every 2^k-th, so that there are at
    most 2 x MOST pairs and they come from the whole text.
    """

    def __init__(self) -> None:
        self._kept: dict[str, dict[int, Tokens]] = {}
        self._step: dict[str, int] = {}

    @classmethod
    def of(cls, chunks: Iterable[Chunk]) -> Self:
        """What is kept of these."""
        held_back = cls()
        for chunk in chunks:
            held_back.add(chunk)
        return held_back

    def noting(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """The same chunks, of which some are kept as they pass."""
        for chunk in chunks:
            self.add(chunk)
            yield chunk

    def add(self, chunk: Chunk) -> None:
        """Keep a chunk if it is one of those; the same chunks in any order give the same."""
        kept, step = self._kept.setdefault(chunk.domain, {}), self._step.setdefault(chunk.domain, 1)
        if (chunk.number // 2) % step == 0:
            kept[chunk.number] = chunk.tokens.copy()
        while len({number // 2 for number in kept}) > 2 * MOST:
            step = self._step[chunk.domain] = 2 * step
            for number in [number for number in kept if (number // 2) % step]:
                del kept[number]

    def merge(self, other: Self) -> None:
        """Keep what `other` kept too; where it is of another corpus, its chunks stand in for those of equal number."""
        for domain, chunks in other._kept.items():
            for number, tokens in chunks.items():
                self.add(Chunk(tokens, domain, number))

    @property
    def chunks(self) -> Mapping[str, list[Held]]:
        """Domain -> the chunks of at most MOST of its pairs, evenly spread; an even chunk, its odd one, and so on."""
        chosen = {}
        for domain, kept in self._kept.items():
            pairs = sorted({number // 2 for number in kept})
            if len(pairs) > MOST:
                pairs = [pairs[index * len(pairs) // MOST] for index in range(MOST)]
            numbers = [number for pair in pairs for number in (2 * pair, 2 * pair + 1) if number in kept]
            chosen[domain] = [Held(kept[number], number % 2) for number in numbers]
        return chosen

    def to_arrays(self, domains: Sequence[str]) -> dict[str, Any]:
        """As arrays for a file: number and length of every chunk, and all tokens one behind the other, per domain."""
        arrays: dict[str, Any] = {}
        for index, domain in enumerate(domains):
            if kept := self._kept.get(domain):
                arrays[f"{index} chunks"] = np.array([(number, len(tokens)) for number, tokens in sorted(kept.items())])
                arrays[f"{index} tokens"] = np.concatenate([tokens for _, tokens in sorted(kept.items())])
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any], domains: Sequence[str]) -> Self:
        """What `to_arrays` gave; raises Damaged for what it did not."""
        held_back = cls()
        for index, domain in enumerate(domains):
            if f"{index} chunks" in arrays:
                n_rows = len(np.atleast_1d(arrays[f"{index} chunks"]))
                rows = take(arrays, f"{index} chunks", "i", (n_rows, 2), least=0)
                tokens = take(arrays, f"{index} tokens", "i", (int(rows[:, 1].sum()),), least=0)
                parts = np.split(tokens.astype(np.int32), np.cumsum(rows[:-1, 1]))
                for (number, _), part in zip(rows.tolist(), parts, strict=True):
                    held_back.add(Chunk(part, domain, number))
        return held_back
