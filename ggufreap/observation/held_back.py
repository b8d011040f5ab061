"""Chunks that are kept beside the statistics, so that choices can be judged on text they were not made from.

Statistics are kept in halves, those of the even and those of the odd chunks of every domain. What was chosen from the
even ones alone has not seen the odd ones: some of these are kept as tokens. So no text is lost to the statistics, and
every choice can be judged whenever the file is at hand.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from ggufreap.corpus import Chunk
from ggufreap.engine.protocol import Tokens

MOST = 16  # chunks of a domain: a mean over that many, of one half of each, is good to a few per cent


class HeldBack:
    """Domain -> its chunks that are kept: of the odd ones every 2^k-th, so that there are at most 2 x MOST and they
    come from the whole text.
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
        if chunk.number % 2 == 1 and (chunk.number // 2) % step == 0:
            kept[chunk.number] = chunk.tokens.copy()
        while len(kept) > 2 * MOST:
            step = self._step[chunk.domain] = 2 * step
            for number in [number for number in kept if (number // 2) % step]:
                del kept[number]

    def merge(self, other: Self) -> None:
        """Keep what `other` kept too; where it is of another corpus, its chunks stand in for those of equal number."""
        for domain, chunks in other._kept.items():
            for number, tokens in chunks.items():
                self.add(Chunk(tokens, domain, number))

    @property
    def chunks(self) -> Mapping[str, list[Tokens]]:
        """Domain -> at most MOST of them, evenly spread."""
        chosen = {}
        for domain, kept in self._kept.items():
            numbers = sorted(kept)
            if len(numbers) > MOST:
                numbers = [numbers[index * len(numbers) // MOST] for index in range(MOST)]
            chosen[domain] = [kept[number] for number in numbers]
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
        """What `to_arrays` gave; raises ValueError for what it did not."""
        held_back = cls()
        for index, domain in enumerate(domains):
            if f"{index} chunks" in arrays:
                rows, tokens = arrays[f"{index} chunks"], arrays[f"{index} tokens"]
                if rows.ndim != 2 or rows.min() < 0 or tokens.shape != (rows[:, 1].sum(),):
                    raise ValueError(f"the held-back chunks of {domain} do not have the tokens that they should")
                parts = np.split(tokens.astype(np.int32), np.cumsum(rows[:-1, 1]))
                for (number, _), part in zip(rows.tolist(), parts, strict=True):
                    held_back.add(Chunk(part, domain, number))
        return held_back
