"""Samples become chunks of tokens, as they are read: memory does not depend on how much there is.

The same sources, settings and vocabulary give the same chunks in the same order, which is what resuming relies on.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Protocol

import numpy as np

from ggufreap.corpus.chat import Rendered
from ggufreap.corpus.chunks import Chunk
from ggufreap.corpus.duplicates import Seen
from ggufreap.corpus.packing import Filled, Mask, Piece, packed, unpacked
from ggufreap.corpus.record import SourceRecord
from ggufreap.corpus.samples import Conversation, Sample, Text, Unusable
from ggufreap.corpus.sources import Skipped
from ggufreap.corpus.turns import in_turn
from ggufreap.engine.protocol import Engine, Tokens
from ggufreap.errors import InputError
from ggufreap.options.data import Reading

MOST_REASONS = 20  # that are told apart


class Samples(Protocol):
    """What can be read: ggufreap.corpus.sources.Source, or a text that is there already."""

    @property
    def position(self) -> int:
        """Bytes or rows read so far."""

    @property
    def skipped(self) -> Mapping[str, Skipped]:
        """What gave no sample, by reason."""

    @property
    def nbytes(self) -> int | None:
        """What `position` ends with, where that is known."""

    @property
    def has_rows(self) -> bool:
        """Whether any of it is read row by row, and not as text."""

    @property
    def n_missing(self) -> int:
        """How many samples fewer than were asked for were there."""

    def files(self) -> "Sequence[Samples]":
        """The same samples file by file, in an order that the seed draws; itself where they cannot be read apart."""

    def __iter__(self) -> Iterator[Sample]: ...


@dataclass(frozen=True)
class NamedSource:
    """A source, the domain that it is read for, and what is known of it before."""

    domain: str
    source: Samples
    record: SourceRecord


class Stream:
    """The chunks of `sources`, domains in turn: the one with the fewest tokens so far is next. Where the number of
    chunks is limited, the files of a domain take turns in the same way.

    `render` turns conversations into text with the model's chat template. Can be read once. Raises InputError when a
    domain does not fill a single chunk.
    """

    def __init__(
        self,
        engine: Engine,
        sources: Sequence[NamedSource],
        n_ctx: int,
        reading: Reading,
        render: Callable[[Conversation], Rendered],
    ) -> None:
        self._engine, self._sources, self._n_ctx, self._reading, self._render = engine, sources, n_ctx, reading, render
        limited = reading.n_chunks is not None
        self._files = [  # with the number of the source that each is of
            (index, file)
            for index, named in enumerate(sources)
            for file in (named.source.files() if limited else (named.source,))
        ]
        self._used = set[int]()
        self._seen = Seen()
        self._newline = engine.tokenize("\n", add_special=False)
        self._tokens = [0] * len(sources)
        self._samples = [0] * len(sources)
        self._hashes = [hashlib.sha256() for _ in sources]
        self._unusable: list[Counter[str]] = [Counter() for _ in sources]
        self.domains = tuple(dict.fromkeys(named.domain for named in sources))
        self._read = dict.fromkeys(self.domains, 0)
        self._read_chunks = dict.fromkeys(self.domains, 0)
        self._ready = {domain: self._chunks_of(domain) for domain in self.domains}
        self._next = {domain: self._first(domain) for domain in self.domains}

    @property
    def estimate(self) -> int | None:
        """About how many tokens there are in all, from the size of the sources; None where that is unknown."""
        total = 0.0
        for domain in self.domains:
            members = [file for index, file in self._files if self._sources[index].domain == domain]
            done = sum(source.position for source in members)
            if not done or any(source.nbytes is None for source in members):
                return None
            total += self._read[domain] * sum(source.nbytes or 0 for source in members) / done
        limit = self._reading.n_chunks
        return int(total) if limit is None else min(int(total), limit * self._n_ctx)

    def __iter__(self) -> Iterator[Chunk]:
        taken, numbers = dict.fromkeys(self.domains, 0), self._read_chunks
        while self._next and sum(numbers.values()) != self._reading.n_chunks:
            domain = min(self._next, key=lambda name: taken[name])
            tokens, counted, owners = self._next[domain]
            self._own(tokens, owners)
            yield Chunk(tokens, domain, numbers[domain], None if counted.all() else counted)
            taken[domain] += len(tokens)
            numbers[domain] += 1
            if (following := next(self._ready[domain], None)) is None:
                del self._next[domain]
            else:
                self._next[domain] = following

    def records(self) -> tuple[SourceRecord, ...]:
        """What was taken from every source so far."""
        return tuple(
            replace(
                named.record,
                samples=self._samples[index],
                tokens=self._tokens[index],
                sha256=self._hashes[index].hexdigest(),
            )
            for index, named in enumerate(self._sources)
        )

    def notes(self) -> tuple[str, ...]:
        """What was left out so far and why, a line for each source and reason."""
        return (*self._unreached(), *self._skipped(), *self._missing())

    def _missing(self) -> Iterator[str]:
        """What was asked for and is not there, once all is read."""
        for index, named in enumerate(self._sources):
            n_missing = sum(file.n_missing for file in self._of(index))
            if n_missing and named.domain not in self._next:
                yield f"{named.record.name}: {n_missing:,} fewer samples that can be used than were asked for"

    def _unreached(self) -> Iterator[str]:
        """What a limit of chunks has left out."""
        limit = self._reading.n_chunks
        if limit is None or sum(self._read_chunks.values()) < limit:
            return
        for index, named in enumerate(self._sources):
            files, name = [number for number, (of, _) in enumerate(self._files) if of == index], named.record.name
            if not self._tokens[index]:
                yield f"{name}: nothing of it is among the {limit:,} chunks that --chunks allows"
            elif len(files) > 1:
                used = len(self._used.intersection(files))
                yield f"{name}: --chunks {limit:,} takes its files in turn, and of {len(files):,} came to {used:,}"

    def _skipped(self) -> tuple[str, ...]:
        return tuple(
            f"{named.record.name}: skipped {count:,}: {reason}"
            for index, named in enumerate(self._sources)
            for reason, count in (*_counts(self._of(index)), *self._unusable[index].items())
        )

    def _of(self, index: int) -> list[Samples]:
        return [file for of, file in self._files if of == index]

    def _first(self, domain: str) -> Filled:
        first = next(self._ready[domain], None)
        if first is None:
            names = ", ".join(named.record.name for named in self._sources if named.domain == domain)
            raise InputError(
                f"{names} has {self._read[domain]:,} tokens, one chunk of -c {self._n_ctx} needs "
                f"{self._n_ctx:,}; give more text or a smaller -c" + "".join(f"; {note}" for note in self.notes())
            )
        return first

    def _own(self, tokens: Tokens, owners: Sequence[tuple[int, int, bool]]) -> None:
        """Book a chunk's tokens to the sources that they came from."""
        start = 0
        for number, count, opens in owners:
            source = self._files[number][0]
            self._used.add(number)
            self._tokens[source] += count
            self._samples[source] += opens
            self._hashes[source].update(tokens[start : start + count].astype("<i4").tobytes())
            start += count

    def _chunks_of(self, domain: str) -> Iterator[Filled]:
        bos, reading = self._engine.bos, self._reading
        filled = packed if reading.packing else unpacked
        for tokens, counted, owners in filled(self._pieces(domain), self._n_ctx):
            if bos is not None:
                tokens[0] = bos  # as llama-imatrix opens every chunk (tools/imatrix/imatrix.cpp, compute_imatrix)
            if counted.any():
                yield tokens, counted, owners

    def _pieces(self, domain: str) -> Iterator[Piece]:
        mine = [
            self._pieces_of(number)
            for number, (index, _) in enumerate(self._files)
            if self._sources[index].domain == domain
        ]
        return chain.from_iterable(mine) if self._reading.n_chunks is None else in_turn(mine, self._n_ctx)

    def _pieces_of(self, number: int) -> Iterator[Piece]:
        index, file = self._files[number]
        inside = False  # a text that the piece before began
        for sample in file:
            opens, inside = not inside, isinstance(sample, Text) and sample.continues
            try:
                tokens, counted = self._tokenised(sample, opens)
            except Unusable as reason:
                self._skip(index, str(reason))
                continue
            self._read[self._sources[index].domain] += len(tokens)
            yield Piece(tokens, counted, number, opens)

    def _skip(self, source: int, reason: str) -> None:
        """Count a sample that cannot be used; a template can give every one a reason of its own."""
        known = self._unusable[source]
        known[reason if reason in known or len(known) < MOST_REASONS else "other reasons"] += 1

    def _tokenised(self, sample: Sample, opens: bool) -> tuple[Tokens, Mask]:
        only_assistant = self._reading.count == "assistant"
        if isinstance(sample, Conversation):
            rendered = self._render(sample)
            self._refuse_duplicate(rendered.text)
            return self._rendered(rendered, only_assistant)
        if only_assistant:
            raise Unusable("plain text, in which no assistant speaks")
        # One newline at the end of a file is no text (common/arg.cpp, -f).
        text = sample.text if sample.continues else sample.text.removesuffix("\n")
        if opens:
            self._refuse_duplicate(text)
            tokens = self._engine.tokenize(text, parse_special=self._reading.parse_special)
        else:
            # Behind a newline, so that no tokenizer takes it for the beginning of a text and adds a space.
            tokens = self._engine.tokenize(f"\n{text}", add_special=False, parse_special=self._reading.parse_special)
            if np.array_equal(tokens[: len(self._newline)], self._newline):
                tokens = tokens[len(self._newline) :]
        return tokens, np.ones(len(tokens), np.bool_)

    def _rendered(self, rendered: Rendered, only_assistant: bool) -> tuple[Tokens, Mask]:
        """Tokens of what a template wrote, special ones too; cut where the assistant begins and ends."""
        if not only_assistant:
            spans = [(0, len(rendered.text), True)]
        elif not rendered.assistant:
            raise Unusable("no turn of the assistant found")
        else:
            edges = [0, *(edge for span in rendered.assistant for edge in span), len(rendered.text)]
            spans = [(edges[i], edges[i + 1], i % 2 == 1) for i in range(len(edges) - 1)]
        parts = [
            (self._engine.tokenize(rendered.text[start:end], add_special=False, parse_special=True), counts)
            for start, end, counts in spans
            if start < end
        ]
        bos = self._engine.bos
        if bos is not None and not (parts and parts[0][0][:1] == bos):
            parts.insert(0, (np.array([bos], np.int32), False))
        if not parts:
            raise Unusable("the chat template writes nothing")
        tokens = np.concatenate([tokens for tokens, _ in parts])
        return tokens, np.concatenate([np.full(len(tokens), counts) for tokens, counts in parts])

    def _refuse_duplicate(self, text: str) -> None:
        if not self._seen.add(text):
            raise Unusable("duplicate")


def _counts(files: Sequence[Samples]) -> list[tuple[str, int]]:
    """Reason, with the first place that gave it -> how many, over all files of a source."""
    totals: dict[str, Skipped] = {}
    for file in files:
        for reason, skipped in file.skipped.items():
            before = totals.get(reason, Skipped(0, skipped.first))
            totals[reason] = replace(before, count=before.count + skipped.count)
    return [(f"{reason}, first {skipped.first}", skipped.count) for reason, skipped in totals.items()]
