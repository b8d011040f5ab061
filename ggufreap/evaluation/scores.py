"""What one chunk of text tells about a model: per token, against the original and against the text.

Conventions of llama-perplexity (tools/perplexity/perplexity.cpp): positions n_ctx/2 .. n_ctx-2 of a chunk predict the
token after them; tokens to which the original gives less than e⁻¹⁶ do not count in the KLD. Terms are computed in
32 bits, sums in 64. Rows go in blocks that stay in a core's cache, so the memory is that of the logits.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ggufreap.engine.protocol import Tokens
from ggufreap.errors import NumericFailure

Logits = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
# `map`, or the one of a pool of threads: numpy computes without holding Python's lock.
Map = Callable[[Callable[[slice], Any], Iterable[slice]], Iterable[Any]]

BLOCK_ITEMS = 1 << 17
N_PARTS = 4  # of a chunk, for the threads to share
SMALL_NBYTES = 32 << 20  # up to here, the original's probabilities are kept beside its logits, which saves a third
LEAST_PROBABILITY = np.float32(np.exp(-16))


@dataclass(frozen=True)
class Reference:
    """The original's logits `[n_scored, n_vocab]` of one chunk, ln Σ exp of every row, and softmax where it is kept."""

    logits: Logits
    log_total: Floats
    probabilities: Logits | None = None

    @classmethod
    def of(cls, logits: Logits, run: Map = map) -> Self:
        """The reference that raw logits are."""
        if logits.nbytes > SMALL_NBYTES:
            return cls(logits, _log_totals(logits, run))
        probabilities = np.empty_like(logits)

        def softmax(rows: slice) -> Floats:
            values, log_total, total, _ = _exponentials(logits[rows], probabilities[rows])
            values *= (1 / total).astype(np.float32)[:, None]
            return log_total

        return cls(logits, np.concatenate(list(run(softmax, _parts(logits)))), probabilities)

    @classmethod
    def of_log_probabilities(cls, values: Logits) -> Self:
        """The reference of log-probabilities, taken as they are (they need not sum to 1)."""
        return cls(values, np.zeros(len(values)))

    def part(self, rows: slice) -> Self:
        """Some of the rows."""
        kept = self.probabilities[rows] if self.probabilities is not None else None
        return type(self)(self.logits[rows], self.log_total[rows], kept)


@dataclass(frozen=True)
class TokenScores:
    """One value per scored token, all `[n_scored]`.

    `kld`: KL(original ‖ candidate) in nats; `same_top`: whether both put the same token first; `overlap`: Σ min(p, q),
    which is 1 - total variation, the share of speculative tokens that the original would accept (ESAP, arXiv
    2603.06003); `nll` and `nll_reference`: -ln of the probability of the text's own next token.
    """

    kld: Floats
    same_top: npt.NDArray[np.bool_]
    overlap: Floats
    nll: Floats
    nll_reference: Floats

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """One after the other."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def first_scored(n_ctx: int) -> int:
    """The first position of a chunk whose prediction counts."""
    return n_ctx // 2


def targets_of(chunk: Tokens) -> Tokens:
    """The tokens `[n_scored]` that the scored positions should predict."""
    return chunk[first_scored(len(chunk)) + 1 :]


def negative_log_likelihood(logits: Logits, targets: Tokens, run: Map = map) -> Floats:
    """-ln p `[n_scored]` of the targets; raises NumericFailure where logits are NaN."""
    return _log_totals(logits, run) - logits[np.arange(len(targets)), targets]


def compare(reference: Reference, logits: Logits, targets: Tokens, run: Map = map) -> TokenScores:
    """What a candidate with these logits `[n_scored, n_vocab]` loses; raises NumericFailure where they are NaN."""

    def score(part: slice) -> TokenScores:
        room = _Room.for_blocks_of(logits)
        blocks = _slices(part, len(room.q))
        return TokenScores.join([_compare(reference.part(rows), logits[rows], targets[rows], room) for rows in blocks])

    return TokenScores.join(list(run(score, _parts(logits))))


@dataclass(frozen=True)
class _Room:
    """What a block is computed in, made once per part: fresh memory costs more than the arithmetic."""

    p: Logits
    q: Logits
    counts: npt.NDArray[np.bool_]

    @classmethod
    def for_blocks_of(cls, logits: Logits) -> Self:
        shape = (min(max(1, BLOCK_ITEMS // logits.shape[1]), -(-len(logits) // N_PARTS)), logits.shape[1])
        return cls(np.empty(shape, np.float32), np.empty(shape, np.float32), np.empty(shape, np.bool_))


def _parts(logits: Logits) -> list[slice]:
    return _slices(slice(0, len(logits)), -(-len(logits) // N_PARTS))


def _slices(rows: slice, step: int) -> list[slice]:
    return [slice(start, min(start + step, rows.stop)) for start in range(rows.start, rows.stop, step)]


def _log_totals(logits: Logits, run: Map) -> Floats:
    def total(part: slice) -> Floats:
        room = _Room.for_blocks_of(logits)
        return np.concatenate([_exponentials(logits[rows], room.q)[1] for rows in _slices(part, len(room.q))])

    return np.concatenate(list(run(total, _parts(logits))))


def _exponentials(logits: Logits, out: Logits) -> tuple[Logits, Floats, Floats, npt.NDArray[np.intp]]:
    """Of every row: exp(x - max), ln Σ exp(x), Σ exp(x - max) and the place of the maximum."""
    top = logits.argmax(axis=1)  # of a NaN, where there is one
    peak = logits[np.arange(len(top)), top]
    if not np.isfinite(peak).all():
        raise NumericFailure("a logit is NaN or infinite; the model file is damaged, or overflows in this precision")
    values = np.subtract(logits, peak[:, None], out=out[: len(top)])
    np.exp(values, out=values)
    total = values.sum(axis=1, dtype=np.float64)
    return values, peak + np.log(total), total, top


def _compare(reference: Reference, logits: Logits, targets: Tokens, room: _Room) -> TokenScores:
    original, log_total = reference.logits, reference.log_total
    q, log_total_q, total_q, top = _exponentials(logits, room.q)
    q *= (1 / total_q).astype(np.float32)[:, None]
    p = reference.probabilities
    if p is None:
        p = np.subtract(original, log_total.astype(np.float32)[:, None], out=room.p[: len(q)])
        np.exp(p, out=p)
    overlap = np.minimum(p, q, out=q).sum(axis=1)
    # ln p - ln q as a difference of logits: equal ones give 0, whatever was rounded in the sums.
    terms = np.subtract(original, logits, out=q)
    terms -= (log_total - log_total_q).astype(np.float32)[:, None]
    terms *= p
    terms *= np.greater(p, LEAST_PROBABILITY, out=room.counts[: len(q)])
    each = np.arange(len(targets))
    return TokenScores(
        kld=terms.sum(axis=1, dtype=np.float64),
        same_top=original.argmax(axis=1) == top,
        overlap=overlap.astype(np.float64),
        nll=log_total_q - logits[each, targets],
        nll_reference=log_total - original[each, targets],
    )
