"""Held-out data: what judges. It is read as calibration data is, and can be split off it."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from ggufreap.container import GgufFile
from ggufreap.corpus.chat import plain
from ggufreap.corpus.chunks import Corpus, from_text, read_text
from ggufreap.corpus.request import Opened, open_request
from ggufreap.corpus.samples import Sample, Text
from ggufreap.corpus.sources import Skipped
from ggufreap.corpus.spec import is_local, suffix_of
from ggufreap.corpus.stream import NamedSource, Samples
from ggufreap.engine.protocol import Engine
from ggufreap.errors import InputError
from ggufreap.options.data import STANDARD_INPUT, Request
from ggufreap.options.judgement import given_name

PLAIN = ("", ".txt", ".md")
Texts = Mapping[str, str | Opened]


def named(files: Sequence[str | Opened]) -> dict[str, str | Opened]:
    """Domain -> held-out data, of `NAME=FILE`, `FILE` or data that is open; the name is else that of the file.

    A plain text is taken as it stands, cut as llama-perplexity cuts it. All else is what calibration can read too:
    rows, packed files, folders, globs, data sets. Raises InputError for what cannot be read.
    """
    texts: dict[str, str | Opened] = {}
    for file in files:
        name, data = _named(file) if isinstance(file, str) else (file.records[0].domain, file)
        if name in texts:
            raise InputError(f"two texts are called {name!r}; name them with -f NAME=FILE")
        texts[name] = data
    if not texts:
        raise InputError("no held-out text was given; give some with -f, text that calibration has not seen")
    return texts


def _named(file: str) -> tuple[str, str | Opened]:
    name, path = given_name(file)
    if path == STANDARD_INPUT:
        return name or "stdin", read_text(path)
    if _is_plain(path):
        return name or Path(path).stem, read_text(path)
    opened = open_request(Request(tokens=path) if path.endswith(".npy") else Request(file=(path,)))
    return name or opened.records[0].domain, opened


def _is_plain(path: str) -> bool:
    """Whether it names one text file, there or missing."""
    kind, packing = suffix_of(path)
    if kind not in PLAIN or packing or path.endswith(".npy") or Path(path).is_dir():
        return False
    if Path(path).exists():
        return True
    counted = re.search(r":\d+$", path) is not None
    return not (counted or "*" in path or "?" in path or ("/" in path and not is_local(path)))


def tokenised(
    engine: Engine, model: GgufFile, data: Texts, n_ctx: int, n_chunks: int | None
) -> tuple[dict[str, Corpus], tuple[str, ...]]:
    """Domain -> at most `n_chunks` chunks of `n_ctx` tokens, and what was left out and why, a line each.

    `model`: whose chat template renders conversations.
    """
    corpora: dict[str, Corpus] = {}
    notes: list[str] = []
    for name, given in data.items():
        if isinstance(given, str):
            corpora[name] = from_text(engine, given, n_ctx, name).head(n_chunks)
            continue
        reading = replace(given.request.reading, n_chunks=n_chunks, packing=True, count="all")
        opened = replace(given, request=replace(given.request, reading=reading))
        with opened.chunks(engine, model, n_ctx) as chunks:
            tokens = [chunk.tokens for chunk in chunks]
            notes += chunks.notes()
        corpora[name] = Corpus(np.stack(tokens), name)
    return corpora, tuple(notes)


# --- split off calibration data ---------------------------------------------------------------------------------------


@dataclass
class Side:
    """The documents of a source on one side of a split; which side is decided by what a document says.

    So a document is on the same side wherever it stands, and its duplicates with it.
    """

    source: Samples
    share: float
    seed: int
    held_out: bool

    @property
    def position(self) -> int:
        """As of the source."""
        return self.source.position

    @property
    def skipped(self) -> Mapping[str, Skipped]:
        """As of the source."""
        return self.source.skipped

    @property
    def nbytes(self) -> int | None:
        """As of the source."""
        return self.source.nbytes

    @property
    def has_rows(self) -> bool:
        """As of the source."""
        return self.source.has_rows

    @property
    def n_missing(self) -> int:
        """As of the source."""
        return self.source.n_missing

    def files(self) -> Sequence[Samples]:
        """This side of every file of the source."""
        return [replace(self, source=file) for file in self.source.files()]

    def __iter__(self) -> Iterator[Sample]:
        inside = mine = False
        for sample in self.source:
            if not inside:
                mine = self._is_held_out(sample) == self.held_out
            inside = isinstance(sample, Text) and sample.continues
            if mine:
                yield sample

    def _is_held_out(self, sample: Sample) -> bool:
        words = " ".join(said(sample).split())
        digest = hashlib.blake2b(f"{self.seed}:{words}".encode(), digest_size=8).digest()
        return int.from_bytes(digest) < self.share * 2**64


def said(sample: Sample) -> str:
    """What a sample says, as plain text."""
    return sample.text if isinstance(sample, Text) else plain(sample)


def parse_share(text: str) -> float:
    """`5%` or `0.05`; raises InputError for what is no share between nothing and half."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 0.5:
        raise InputError(f"--eval-split {text} is no share of the documents; give one such as 5%, at most 50%")
    return share


def split(opened: Opened, share: float, seed: int) -> tuple[Opened, tuple[Opened, ...]]:
    """The data without `share` of its documents, and these by domain; the same ones for the same `seed`.

    A document is a file of text, a row or a conversation. Raises InputError where a domain has none on either side.
    """
    if opened.ids is not None:
        raise InputError("--eval-split holds out documents, token ids have none; give --eval-file")

    drawn = f"{share:.3g} by seed {seed}"

    def side(held_out: bool, domain: str | None) -> Opened:
        sources = tuple(
            NamedSource(
                each.domain,
                Side(each.source, share, seed, held_out),
                each.record if held_out else replace(each.record, held_out=drawn),
            )
            for each in opened.sources
            if domain in (None, each.domain)
        )
        identity = hashlib.sha256(f"{opened.identity} {share} {seed} {held_out} {domain}".encode()).hexdigest()
        what = "only" if held_out else "without"
        return replace(opened, sources=sources, identity=identity, note=f", {what} {share:.3g} held out by seed {seed}")

    kept, held = side(False, None), []
    for domain in dict.fromkeys(each.domain for each in opened.sources):
        for held_out in (False, True):
            if not any(True for each in side(held_out, domain).sources for _ in islice(each.source, 1)):
                raise InputError(
                    f"--eval-split {share:.3g}: of the documents of {domain} {'none' if held_out else 'all'} would be "
                    "held out; a text file is one document: give more of them, or held-out text with --eval-file"
                )
        held.append(side(True, domain))
    return kept, tuple(held)
