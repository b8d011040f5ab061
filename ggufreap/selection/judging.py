"""Contenders on held-back chunks: what each loses, by masking experts in one loaded model.

A contender has two keep-sets, one for chunks of either half of the text: what it chose from the other half. Chunks go
in turns over domains and halves, and all contenders see a chunk before the next one comes. So whatever was judged until
the time was up, or the run was stopped, is the same text for all of them, as much of every domain. Who falls behind
may drop out of the race before (Maron and Moore, Hoeffding races, NIPS 1994).
"""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from msgspec import Struct

from ggufreap.decoding import load_json
from ggufreap.engine.protocol import Engine, Keep, Tokens
from ggufreap.errors import InputError
from ggufreap.evaluation import together
from ggufreap.evaluation.scores import Map, Reference, compare, targets_of
from ggufreap.files import replacing
from ggufreap.observation import Floats, Held
from ggufreap.progress import Progress, silent

SCHEMA = "ggufreap.judged/1"
LEAST_LENGTH = 4  # tokens of a chunk, so that something of it is scored
LEAST_ROUNDS = 2
RUNGS = (4, 8, 16)  # rounds: at each, about as much text as before was added
Keeps = Sequence[Keep]  # by half: what is judged on its chunks
Losses = Mapping[str, Floats]  # domain -> mean KLD in nats of each of its chunks
Race = Callable[[Mapping[str, Losses]], Collection[str]]  # losses of those in the race -> who stays in it
_LOG = logging.getLogger(__name__)


def everyone(losses: Mapping[str, Losses]) -> Collection[str]:
    """The race that nobody drops out of."""
    return losses


@dataclass(frozen=True)
class Difference:
    """Of the mean KLD over domains, one contender's less another's on the same chunks; errors are 0 for equal sets.

    `stderr` is what chance in the chunks of each domain leaves, `between` what the scatter of the domains' own
    differences does, were they drawn from many (random effects); 0 for one domain, which says nothing of others.
    """

    mean: float
    stderr: float
    between: float = 0.0

    @classmethod
    def of(cls, one: Losses, other: Losses) -> "Difference":
        """Chunks are the units: tokens of one chunk depend on each other. Of unequally many, the first are compared."""
        shared = [min(len(one[domain]), len(other[domain])) for domain in one]
        pairs = [one[domain][:count] - other[domain][:count] for domain, count in zip(one, shared, strict=True)]
        variances = [pair.var(ddof=1) / len(pair) for pair in pairs]
        means = [pair.mean() for pair in pairs]
        between = float(np.std(means, ddof=1)) / math.sqrt(len(means)) if len(means) > 1 else 0.0
        return cls(float(np.mean(means)), math.sqrt(sum(variances)) / len(pairs), between)


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
    chunks: Mapping[str, Sequence[Held]],
    contenders: Mapping[str, Keeps],
    ledger: Ledger,
    *,
    race: Race = everyone,
    budget: float = math.inf,
    run: Map = map,
    clock: Callable[[], float] = time.monotonic,
    progress: Progress = silent,
) -> dict[str, dict[str, Floats]]:
    """Contender -> domain -> KLD of each chunk, for about `budget` seconds; equal keep-sets are judged once.

    `chunks` are domain -> held-back chunks. After as many rounds over the domains as stand in RUNGS, `race` tells which
    contenders go on; of the others, the first chunks alone are judged. Another round is begun only if there seems to be
    time for it; two are always made, since it takes two to tell how sure a mean is, and so that every half is judged.
    Raises InputError where a domain has fewer.
    """
    least, few = min(((len(held_back), domain) for domain, held_back in chunks.items()), default=(0, "the text"))
    if least < LEAST_ROUNDS:
        raise InputError(
            f"{few} has {least} chunks to judge methods by, it takes {LEAST_ROUNDS} of every domain; give more text, "
            "or name a method"
        )
    heats = _Heats(contenders, ledger)
    losses: dict[str, dict[str, list[float]]] = {name: {domain: [] for domain in chunks} for name in contenders}
    n_rounds = max(map(len, chunks.values()))
    forecast = _Forecast(len(contenders), heats.n_passes(chunks), budget, clock)
    with progress(f"judge {len(contenders)} methods", sum(map(len, chunks.values())), "chunks") as bar:
        for index in range(n_rounds):
            if index >= LEAST_ROUNDS and not forecast.allows(index):
                break
            if index in RUNGS:
                heats.keep(race({name: _arrays(losses[name]) for name in heats.names}))
            for domain, held_back in chunks.items():
                if index < len(held_back):
                    n_passes = heats.n_passes({domain: [held_back[index]]})
                    for name, kld in heats.judge(engine, held_back[index], run).items():
                        losses[name][domain].append(kld)
                    forecast.tell(n_passes)
                    bar.update(1)
            ledger.save()
    return {name: _arrays(by_domain) for name, by_domain in losses.items()}


def _arrays(losses: Mapping[str, Sequence[float]]) -> dict[str, Floats]:
    return {domain: np.array(values) for domain, values in losses.items()}


class _Heats:
    """The contenders that are still in the race, and the distinct keep-sets of theirs on either half."""

    def __init__(self, contenders: Mapping[str, Keeps], ledger: Ledger) -> None:
        self._keeps, self._ledger = dict(contenders), ledger
        self._digests = {name: [_digest(keep) for keep in keeps] for name, keeps in contenders.items()}

    @property
    def names(self) -> Sequence[str]:
        return tuple(self._keeps)

    def keep(self, names: Collection[str]) -> None:
        """All others are out."""
        self._keeps = {name: keeps for name, keeps in self._keeps.items() if name in names}

    def _distinct(self, half: int) -> dict[str, Keep]:
        return {self._digests[name][half]: keeps[half] for name, keeps in self._keeps.items()}

    def _missing(self, one: Held) -> dict[str, Keep]:
        place = _place(one.tokens)
        return {
            digest: keep
            for digest, keep in self._distinct(one.half).items()
            if place not in self._ledger.known.get(digest, {})
        }

    def n_passes(self, chunks: Mapping[str, Sequence[Held]]) -> int:
        """Over these chunks, by the original and by every distinct keep-set that was not judged on them before."""
        missing = (len(self._missing(one)) for held_back in chunks.values() for one in held_back)
        return sum(count + 1 for count in missing if count)

    def judge(self, engine: Engine, one: Held, run: Map) -> dict[str, float]:
        """Mean KLD of every contender on a chunk."""
        place, missing = _place(one.tokens), self._missing(one)
        if missing:
            told = together(engine, [None, *missing.values()])(one.tokens)
            reference = Reference.of(next(told), run)
            for digest in missing:
                scores = compare(reference, next(told), targets_of(one.tokens), run)
                self._ledger.known.setdefault(digest, {})[place] = float(scores.kld.mean())
        return {name: self._ledger.known[self._digests[name][one.half]][place] for name in self._keeps}


class _Forecast:
    """How long judging takes: said once the first chunk has shown it, and asked before every further round."""

    def __init__(self, n_methods: int, n_passes: int, budget: float, clock: Callable[[], float]) -> None:
        self._n_methods, self._n_passes, self._budget, self._clock = n_methods, n_passes, budget, clock
        self._started, self._told = clock(), False

    def allows(self, rounds: int) -> bool:
        """Whether there seems to be time for one more, after so many."""
        spent = self._clock() - self._started
        return spent + spent / rounds <= self._budget

    def tell(self, n_passes: int) -> None:
        """Of passes that were made, unless it was told before."""
        if self._told or not n_passes:
            return
        self._told = True
        minutes = (self._clock() - self._started) * self._n_passes / n_passes / 60
        bounded = f"; --budget gives it {self._budget / 60:.0f}" if minutes > self._budget / 60 else ""
        _LOG.info(
            "judging %d methods takes at most %d passes over a chunk, about %d minutes%s",
            self._n_methods,
            self._n_passes,
            math.ceil(minutes),
            bounded,
        )


def usable(chunks: Mapping[str, Sequence[Held]]) -> dict[str, list[Held]]:
    """The chunks that are long enough to be scored."""
    return {domain: [one for one in held if len(one.tokens) >= LEAST_LENGTH] for domain, held in chunks.items()}


def _place(tokens: Tokens) -> str:
    return hashlib.sha256(np.ascontiguousarray(tokens, "<i4").tobytes()).hexdigest()[:16]


def _digest(keep: Keep) -> str:
    rows = [[block, *kept] for block, kept in sorted(keep.items())]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
