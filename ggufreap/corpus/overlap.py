"""Whether held-out data is calibration data after all, by what it says and not by its name."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np

from ggufreap import cache
from ggufreap.container import GgufFile
from ggufreap.corpus.chunks import from_text
from ggufreap.corpus.held_out import Side, Texts, said
from ggufreap.corpus.record import SourceRecord
from ggufreap.corpus.request import Opened
from ggufreap.engine.protocol import Engine
from ggufreap.errors import InputError

# Lines that are shorter, such as brackets and headings, stand in any two texts.
LINE = 24
COMPARED = 2_000  # samples of a data set on the hub


def seen(data: Texts, calibration: Opened) -> dict[str, float]:
    """Domain -> the share of its lines that stand in the calibration data, whatever the files are called.

    Lines of LINE characters and more; a domain without such lines has 0. Of data on the hub COMPARED samples are read
    at most, once: what is found of them is remembered, since a revision of a data set never changes.
    """
    if not any(record.is_hub for given in (*data.values(), calibration) for record in _records(given)):
        return _seen(data, calibration)
    asked = {name: given.identity if isinstance(given, Opened) else _sha256(given) for name, given in data.items()}
    key = f"seen-{_sha256(json.dumps([COMPARED, asked, calibration.identity]))[:32]}"
    known = cache.get(key) or {}
    if known.keys() != data.keys() or not all(isinstance(share, float) for share in known.values()):
        known = _seen(data, calibration)
        cache.put(key, known)
    return known


def _seen(data: Texts, calibration: Opened) -> dict[str, float]:
    lines = {name: {_hash(line) for text in _texts(given) for line in _lines(text)} for name, given in data.items()}
    asked = set[int]().union(*lines.values())
    hashes = (line for text in _texts(calibration) for line in map(_hash, _lines(text))) if asked else ()
    known = asked.intersection(hashes)
    return {name: len(own.intersection(known)) / max(1, len(own)) for name, own in lines.items()}


def is_source(
    engine: Engine, model: GgufFile, given: str | Opened, n_ctx: int, records: Sequence[SourceRecord]
) -> bool:
    """Whether one of these sources was this very text or data.

    That is so where its chunks of `n_ctx` tokens have the SHA-256 of the source's, or where both are of the same split
    of a data set on the hub, from which rows are drawn in the order of one shuffle, and neither was split off.
    """
    splits = {(record.name, record.subset, record.split) for record in records if record.is_hub}
    sources = given.sources if isinstance(given, Opened) else ()
    drawn = (each.record for each in sources if each.record.is_hub and not isinstance(each.source, Side))
    if any((record.name, record.subset, record.split) in splits for record in drawn):
        return True
    try:
        digests = _digests(engine, model, given, n_ctx)
    except InputError:  # too short
        return False
    return not digests.isdisjoint(record.sha256 for record in records)


def _digests(engine: Engine, model: GgufFile, given: str | Opened, n_ctx: int) -> set[str]:
    """The SHA-256 of the ids of every source, as a pass over its text tells it."""
    if isinstance(given, str):
        chunks = from_text(engine, given, n_ctx, "text").chunks
        return {hashlib.sha256(np.ascontiguousarray(chunks, "<i4").tobytes()).hexdigest()}
    with given.chunks(engine, model, n_ctx) as stream:
        for _ in stream:
            pass
        return {record.sha256 for record in stream.records()}


def _records(given: str | Opened) -> tuple[SourceRecord, ...]:
    return given.records if isinstance(given, Opened) else ()


def _texts(data: str | Opened) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    elif data.ids is None:
        for each in data.sources:
            samples = map(said, each.source)
            yield from islice(samples, COMPARED) if each.record.is_hub else samples


def _lines(text: str) -> Iterable[str]:
    return (line for line in map(str.strip, text.splitlines()) if len(line) >= LINE)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _hash(line: str) -> int:
    return int.from_bytes(hashlib.blake2b(line.encode(), digest_size=8).digest())
