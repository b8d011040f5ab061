"""Samples become chunks of tokens, as they are read: memory does not depend on how much there is.

The same sources, settings and vocabulary give the same chunks in the same order, which is what resuming relies on.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ggufreap.corpus.chat import Rendered
from ggufreap.corpus.duplicates import Seen
from ggufreap.corpus.record import SourceRecord
from ggufreap.corpus.samples import Conversation, Sample, Text, Unusable
from ggufreap.corpus.sources import Source
from ggufreap.engine.protocol import Engine, Tokens
from ggufreap.errors import InputError

COUNTS = ("all", "assistant")
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Reading:
    """How samples become chunks.

    `n_ctx`: tokens per chunk; `count`: which tokens count for the statistics, `all` or what the `assistant` says;
    with `packing` samples follow each other in full chunks, without it each opens a chunk of its own and is cut there;
    `parse_special`: also read special tokens in plain text; `n_chunks`: at most so many chunks in all.
    """

    n_ctx: int = 512
    count: str = "all"
    packing: bool = True
    parse_special: bool = False
    n_chunks: int | None = None


@dataclass(frozen=True)
class Chunk:
    """`tokens` `[n]`, the `number`-th chunk of its domain; `counted` `[n]` marks the tokens that count, None: all."""

    tokens: Tokens
    domain: str
    number: int
    counted: Mask | None = None


@dataclass(frozen=True)
class _Piece:
    """The tokens of a sample, or of a part of a long text."""

    tokens: Tokens
    counted: Mask
    source: int
    opens: bool  # a new sample begins


class Stream:
    """The chunks of `sources`, domains in turn: the one with the fewest tokens so far is next.

    `render` turns conversations into text with the model's chat template. Can be read once. Raises InputError when a
    domain does not fill a single chunk.
    """

    def __init__(
        self,
        engine: Engine,
        sources: Sequence[Source],
        reading: Reading,
        render: Callable[[Conversation], Rendered],
    ) -> None:
        self._engine, self._sources, self._reading, self._render = engine, sources, reading, render
        self._seen = Seen()
        self._newline = engine.tokenize("\n", add_special=False)
        self._tokens = [0] * len(sources)
        self._samples = [0] * len(sources)
        self._hashes = [hashlib.sha256() for _ in sources]
        self.skipped: list[dict[str, int]] = [{} for _ in sources]
        self.domains = tuple(dict.fromkeys(source.domain for source in sources))
        self._read = dict.fromkeys(self.domains, 0)
        self._ready = {domain: self._chunks_of(domain) for domain in self.domains}
        self._next = {domain: self._first(domain) for domain in self.domains}

    @property
    def estimate(self) -> int | None:
        """About how many tokens there are in all, from the size of the sources; None where that is unknown."""
        total = 0.0
        for domain in self.domains:
            members = [source for source in self._sources if source.domain == domain]
            done = sum(source.position for source in members)
            if not done or any(source.nbytes is None for source in members):
                return None
            total += self._read[domain] * sum(source.nbytes or 0 for source in members) / done
        limit = self._reading.n_chunks
        return int(total) if limit is None else min(int(total), limit * self._reading.n_ctx)

    def __iter__(self) -> Iterator[Chunk]:
        taken, numbers = dict.fromkeys(self.domains, 0), dict.fromkeys(self.domains, 0)
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
            SourceRecord(
                name=source.name,
                revision=source.revision,
                subset=source.subset,
                split=source.split,
                domain=source.domain,
                samples=self._samples[index],
                tokens=self._tokens[index],
                sha256=self._hashes[index].hexdigest(),
            )
            for index, source in enumerate(self._sources)
        )

    def _first(self, domain: str) -> "_Filled":
        first = next(self._ready[domain], None)
        if first is None:
            names = ", ".join(source.name for source in self._sources if source.domain == domain)
            raise InputError(
                f"{names} has {self._read[domain]:,} tokens, one chunk of -c {self._reading.n_ctx} needs "
                f"{self._reading.n_ctx:,}; give more text or a smaller -c"
            )
        return first

    def _own(self, tokens: Tokens, owners: Sequence[tuple[int, int, bool]]) -> None:
        """Book a chunk's tokens to the sources that they came from."""
        start = 0
        for source, count, opens in owners:
            self._tokens[source] += count
            self._samples[source] += opens
            self._hashes[source].update(tokens[start : start + count].astype("<i4").tobytes())
            start += count

    def _chunks_of(self, domain: str) -> Iterator["_Filled"]:
        bos, reading = self._engine.bos, self._reading
        filled = _packed if reading.packing else _unpacked
        for tokens, counted, owners in filled(self._pieces(domain), reading.n_ctx):
            if bos is not None:
                tokens[0] = bos  # as llama-imatrix opens every chunk (tools/imatrix/imatrix.cpp, compute_imatrix)
            if counted.any():
                yield tokens, counted, owners

    def _pieces(self, domain: str) -> Iterator[_Piece]:
        for index, source in enumerate(self._sources):
            if source.domain != domain:
                continue
            inside = False  # a text that the piece before began
            for sample in source:
                opens, inside = not inside, isinstance(sample, Text) and sample.continues
                try:
                    tokens, counted = self._tokenised(sample, opens)
                except Unusable as reason:
                    self.skipped[index][str(reason)] = self.skipped[index].get(str(reason), 0) + 1
                    continue
                self._read[domain] += len(tokens)
                yield _Piece(tokens, counted, index, opens)

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
        """Tokens of what a chat template wrote, which is special tokens too; cut where the assistant begins and ends."""
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
        tokens = np.concatenate([tokens for tokens, _ in parts])
        return tokens, np.concatenate([np.full(len(tokens), counts) for tokens, counts in parts])

    def _refuse_duplicate(self, text: str) -> None:
        if not self._seen.add(text):
            raise Unusable("duplicate")


_Filled = tuple[Tokens, Mask, list[tuple[int, int, bool]]]


def _packed(pieces: Iterator[_Piece], n_ctx: int) -> Iterator[_Filled]:
    """Full chunks, one piece behind the other; what fills no chunk at the end is left out."""
    waiting: deque[_Piece] = deque()
    length = 0
    for piece in pieces:
        waiting.append(piece)
        length += len(piece.tokens)
        while length >= n_ctx:
            yield _cut_off(waiting, n_ctx)
            length -= n_ctx


def _cut_off(waiting: deque[_Piece], n_ctx: int) -> _Filled:
    tokens, counted, owners, missing = [], [], [], n_ctx
    while missing:
        piece = waiting.popleft()
        tokens.append(piece.tokens[:missing])
        counted.append(piece.counted[:missing])
        owners.append((piece.source, len(tokens[-1]), piece.opens))
        if len(piece.tokens) > missing:
            waiting.appendleft(_Piece(piece.tokens[missing:], piece.counted[missing:], piece.source, opens=False))
        missing -= len(tokens[-1])
    return np.concatenate(tokens), np.concatenate(counted), owners


def _unpacked(pieces: Iterator[_Piece], n_ctx: int) -> Iterator[_Filled]:
    """A chunk per sample, which is cut where the chunk is full."""
    for piece in pieces:
        if piece.opens and len(piece.tokens):
            tokens = piece.tokens[:n_ctx].copy()
            yield tokens, piece.counted[:n_ctx], [(piece.source, len(tokens), True)]
