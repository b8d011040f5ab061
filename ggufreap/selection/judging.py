"""Contenders on held-back chunks: what each loses, by masking experts in one loaded model.

A contender has two keep-sets, one for chunks of either half of the text: what it chose from the other half. Chunks go
in turns over domains and halves, and all contenders see a chunk before the next one comes. So whatever was judged until
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
from ggufreap.evaluation import together
from ggufreap.evaluation.scores import Map, Reference, compare, targets_of
from ggufreap.files import replacing
from ggufreap.observation import Floats, Held
from ggufreap.progress import Progress, silent

SCHEMA = "ggufreap.judged/1"
LEAST_LENGTH = 4  # tokens of a chunk, so that something of it is scored
LEAST_ROUNDS = 2
Keeps = Sequence[Keep]  # by half: what is judged on its chunks
Losses = Mapping[str, Floats]  # domain -> mean KLD in nats of each of its chunks


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
        """Chunks are the units: tokens of one chunk depend on each other."""
        pairs = [one[domain] - other[domain] for domain in one]
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
    budget: float = math.inf,
    run: Map = map,
    clock: Callable[[], float] = time.monotonic,
    progress: Progress = silent,
) -> dict[str, dict[str, Floats]]:
    """Contender -> domain -> KLD of each chunk, for about `budget` seconds; equal keep-sets are judged once.

    `chunks` are domain -> held-back chunks. Another round over the domains is begun only if there seems to be time for
    it; two are always made, since it takes two to tell how sure a mean is, and so that every half is judged. Raises
    InputError where a domain has fewer.
    """
    least, few = min(((len(held_back), domain) for domain, held_back in chunks.items()), default=(0, "the text"))
    if least < LEAST_ROUNDS:
        raise InputError(
            f"{few} has {least} chunks to judge methods by, it takes {LEAST_ROUNDS} of every domain; give more text, "
            "or name a method"
        )
    names = {name: [_digest(keep) for keep in keeps] for name, keeps in contenders.items()}
    distinct = [{names[name][half]: keeps[half] for name, keeps in contenders.items()} for half in (0, 1)]
    cost = [len(sets) + 1 for sets in distinct]  # passes over a chunk
    n_tokens = sum(len(one.tokens) * cost[one.half] for held_back in chunks.values() for one in held_back)
    losses: dict[str, dict[str, list[float]]] = {name: {domain: [] for domain in chunks} for name in names}
    started = clock()
    with progress(f"judge {len(names)} methods", n_tokens, "tokens") as bar:
        for index in range(max(map(len, chunks.values()))):
            spent = clock() - started
            if index >= LEAST_ROUNDS and spent + spent / index > budget:
                break
            for domain, held_back in chunks.items():
                if index >= len(held_back):
                    continue
                one = held_back[index]
                of_chunk = _judge_chunk(engine, one.tokens, distinct[one.half], ledger, run)
                for name, digests in names.items():
                    losses[name][domain].append(of_chunk[digests[one.half]])
                bar.update(len(one.tokens) * cost[one.half])
            ledger.save()
    return {
        name: {domain: np.array(values) for domain, values in by_domain.items()} for name, by_domain in losses.items()
    }


def usable(chunks: Mapping[str, Sequence[Held]]) -> dict[str, list[Held]]:
    """The chunks that are long enough to be scored."""
    return {domain: [one for one in held if len(one.tokens) >= LEAST_LENGTH] for domain, held in chunks.items()}


def _judge_chunk(
    engine: Engine, tokens: Tokens, distinct: Mapping[str, Keep], ledger: Ledger, run: Map
) -> dict[str, float]:
    place = hashlib.sha256(np.ascontiguousarray(tokens, "<i4").tobytes()).hexdigest()[:16]
    missing = [each for each in distinct if place not in ledger.known.get(each, {})]
    if missing:
        told = together(engine, [None, *(distinct[each] for each in missing)])(tokens)
        reference = Reference.of(next(told), run)
        for each in missing:
            scores = compare(reference, next(told), targets_of(tokens), run)
            ledger.known.setdefault(each, {})[place] = float(scores.kld.mean())
    return {each: ledger.known[each][place] for each in distinct}


def _digest(keep: Keep) -> str:
    rows = [[block, *kept] for block, kept in sorted(keep.items())]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
