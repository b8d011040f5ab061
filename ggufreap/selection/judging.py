"""Candidate keep-sets on held-back chunks: what each loses, by masking experts in one loaded model.

Chunks go in turns over domains, and all candidates see a chunk before the next one comes. So whatever was judged until
the time was up, or the run was stopped, is the same text for all of them, as much of every domain.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from msgspec import Struct

from ggufreap.decoding import load_json
from ggufreap.engine.protocol import Engine, Keep, Tokens
from ggufreap.errors import InputError
from ggufreap.evaluation import of_engine
from ggufreap.evaluation.scores import Map, Reference, compare, targets_of
from ggufreap.files import replacing
from ggufreap.observation import Floats
from ggufreap.progress import Progress, silent

SCHEMA = "ggufreap.judged/1"
LEAST_LENGTH = 4  # tokens of a chunk, so that something of it is scored
Losses = Mapping[str, Floats]  # domain -> mean KLD in nats of each of its chunks


@dataclass(frozen=True)
class Difference:
    """Of the mean KLD over domains, one candidate's less another's on the same chunks; `stderr` is 0 for equal sets."""

    mean: float
    stderr: float

    @classmethod
    def of(cls, one: Losses, other: Losses) -> "Difference":
        """Chunks are the units: tokens of one chunk depend on each other."""
        pairs = [one[domain] - other[domain] for domain in one]
        variances = [pair.var(ddof=1) / len(pair) for pair in pairs]
        return cls(float(np.mean([pair.mean() for pair in pairs])), math.sqrt(sum(variances)) / len(pairs))


def mean_loss(losses: Losses) -> float:
    """Every domain counts the same."""
    return float(np.mean([chunks.mean() for chunks in losses.values()]))


def worst_loss(losses: Losses) -> float:
    """Of the domain that loses most."""
    return float(max(chunks.mean() for chunks in losses.values()))


class _Judged(Struct, forbid_unknown_fields=True):
    schema: str
    model: str
    judged: dict[str, dict[str, float]]


class Ledger:
    """What was judged already, in a file beside the statistics: (keep-set, chunk) -> KLD; None keeps no file.

    `model` is the fingerprint of the file that was run, with what else decides on its logits: what was judged of
    another one is left out.
    """

    def __init__(self, path: Path | None, model: str) -> None:
        self.path, self.model = path, model
        self.known: dict[str, dict[str, float]] = {}
        if path is not None and path.exists():
            data = load_json(path, _Judged, "what was judged before", "delete the file", SCHEMA)
            self.known = data.judged if data.model == model else {}

    def save(self) -> None:
        """Write the file, whole or not at all."""
        if self.path is not None:
            with replacing(self.path, own=True) as file:  # another's would not have been read
                file.write(json.dumps({"schema": SCHEMA, "model": self.model, "judged": self.known}, indent=1).encode())


def judge(
    engine: Engine,
    chunks: Mapping[str, Sequence[Tokens]],
    candidates: Mapping[str, Keep],
    ledger: Ledger,
    *,
    budget: float = math.inf,
    run: Map = map,
    clock: Callable[[], float] = time.monotonic,
    progress: Progress = silent,
) -> dict[str, dict[str, Floats]]:
    """Candidate -> domain -> KLD of each chunk, for at most `budget` seconds; equal keep-sets are judged once.

    `chunks` are domain -> held-back chunks. Another round over the domains is begun only if there seems to be time for
    it; two are always made, since it takes two to tell how sure a mean is. Raises InputError where a domain has fewer.
    """
    rounds = min(map(len, chunks.values()), default=0)
    if rounds < 2:
        few = min(chunks, key=lambda domain: len(chunks[domain]), default="the text")
        raise InputError(
            f"{few} has {rounds} held-back chunks, it takes 2 of every domain to judge methods: 4 chunks of text or "
            "more; give more text, or name a method"
        )
    names = {name: _digest(keep) for name, keep in candidates.items()}
    distinct = {names[name]: keep for name, keep in candidates.items()}
    n_tokens = sum(len(domain[index]) for domain in chunks.values() for index in range(rounds))
    losses: dict[str, dict[str, list[float]]] = {each: {domain: [] for domain in chunks} for each in distinct}
    started, finished = clock(), 0
    with progress(f"judge {len(distinct)} keep-sets", n_tokens * (len(distinct) + 1), "tokens") as bar:
        for index in range(rounds):
            spent = clock() - started
            if index >= 2 and spent + spent / index > budget:
                break
            for domain, held_back in chunks.items():
                of_chunk = _judge_chunk(engine, held_back[index], distinct, ledger, run)
                for each, loss in of_chunk.items():
                    losses[each][domain].append(loss)
                bar.update(len(held_back[index]) * (len(distinct) + 1))
            ledger.save()
            finished = index + 1
    return {
        name: {domain: np.array(values[:finished]) for domain, values in losses[each].items()}
        for name, each in names.items()
    }


def usable(chunks: Mapping[str, Sequence[Tokens]]) -> dict[str, list[Tokens]]:
    """The chunks that are long enough to be scored."""
    return {domain: [tokens for tokens in held if len(tokens) >= LEAST_LENGTH] for domain, held in chunks.items()}


def _judge_chunk(
    engine: Engine, tokens: Tokens, distinct: Mapping[str, Keep], ledger: Ledger, run: Map
) -> dict[str, float]:
    place = hashlib.sha256(np.ascontiguousarray(tokens, "<i4").tobytes()).hexdigest()[:16]
    missing = [each for each in distinct if place not in ledger.known.get(each, {})]
    if missing:
        reference = Reference.of(of_engine(engine)(tokens), run)
        for each in missing:
            scores = compare(reference, of_engine(engine, distinct[each])(tokens), targets_of(tokens), run)
            ledger.known.setdefault(each, {})[place] = float(scores.kld.mean())
    return {each: ledger.known[each][place] for each in distinct}


def _digest(keep: Keep) -> str:
    rows = [[block, *kept] for block, kept in sorted(keep.items())]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
