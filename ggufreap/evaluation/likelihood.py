"""How likely a model finds the ends of texts; what texts that begin alike share is computed once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from ggufreap.engine.protocol import Keep, Tokens
from ggufreap.engine.sequences import Sequences
from ggufreap.errors import InputError, NumericFailure
from ggufreap.progress import Progress, silent

Span = tuple[int, int]


class ScoringEngine(Protocol):
    """A loaded model that remembers `n_parallel` texts of `n_ctx` tokens together."""

    n_ctx: int
    n_batch: int
    n_parallel: int

    def sequences(self, keep: Keep | None = None) -> Sequences:
        """An empty memory."""


@dataclass(frozen=True)
class Likelihood:
    """Sum of ln p (nats) of `n_tokens`; `greedy`: whether greedy sampling would write just them."""

    log_p: float
    n_tokens: int
    greedy: bool


@dataclass(frozen=True)
class Branches:
    """Texts that share their first `prefix` tokens, and which tokens `(start, end)` of each are asked for."""

    texts: tuple[Tokens, ...]
    spans: tuple[Span, ...]
    prefix: int

    @classmethod
    def of(cls, texts: Sequence[Tokens], spans: Sequence[Span]) -> Self:
        """From texts of two tokens or more; nothing predicts the first, so spans start at 1 or later."""
        shared = common_prefix(texts)
        return cls(tuple(texts), tuple(spans), min(shared, *(start for start, _ in spans)))

    @property
    def n_tokens(self) -> int:
        """What the model has to read: all but the last token of every text."""
        return self.prefix + sum(len(text) - 1 - self.prefix for text in self.texts)


def common_prefix(texts: Sequence[Tokens]) -> int:
    """How many first tokens are the same, 1 at least, while every text keeps one of its own."""
    columns = zip(*(text.tolist() for text in texts), strict=False)
    same = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, columns))
    return max(1, min(same, *(len(text) - 1 for text in texts)))


def likelihoods(
    engine: ScoringEngine,
    questions: Sequence[Branches],
    *,
    keep: Keep | None = None,
    progress: Progress = silent,
    stage: str = "log-likelihoods",
) -> list[list[Likelihood]]:
    """The likelihood of every text's span, experts outside `keep` masked.

    Raises InputError where the texts of one question do not fit the memory, NumericFailure where a logit is NaN.
    """
    by_question: list[list[Likelihood]] = []
    with progress(stage, len(questions), "questions") as bar:
        for group in _groups(engine, questions):
            by_question += _run(engine.sequences(keep), group)
            bar.update(len(group))
    return by_question


def _groups(engine: ScoringEngine, questions: Sequence[Branches]) -> Iterator[list[Branches]]:
    """As many questions at once as there are sequences for, within one batch of tokens."""
    group: list[Branches] = []
    for number, question in enumerate(questions, 1):
        if question.n_tokens > engine.n_ctx or len(question.texts) > engine.n_parallel:
            raise InputError(
                f"question {number} takes {question.n_tokens} tokens and {len(question.texts)} sequences, "
                f"there are -c {engine.n_ctx} and -np {engine.n_parallel}; raise them"
            )
        together = [*group, question]
        n_sequences = sum(len(each.texts) for each in together)
        if group and (n_sequences > engine.n_parallel or sum(each.n_tokens for each in together) > engine.n_batch):
            yield group
            together = [question]
        group = together
    if group:
        yield group


def _run(memory: Sequences, group: Sequence[Branches]) -> list[list[Likelihood]]:
    firsts = np.cumsum([0, *(len(question.texts) for question in group[:-1])]).tolist()
    placed = list(zip(firsts, group, strict=True))  # a question's first sequence, and the question
    opening = memory.feed({first: question.texts[0][: question.prefix] for first, question in placed})
    rest: dict[int, Tokens] = {}
    for first, question in placed:
        memory.fork(first, range(first + 1, first + len(question.texts)))
        ends = ((sequence, text[question.prefix : -1]) for sequence, text in enumerate(question.texts, first))
        rest |= {sequence: end for sequence, end in ends if len(end)}
    logits = memory.feed(rest, every=True) if rest else {}
    by_question: list[list[Likelihood]] = []
    for first, question in placed:
        by_question.append([])
        for sequence, (text, span) in enumerate(zip(question.texts, question.spans, strict=True), first):
            # Row k predicts the token behind the first `prefix + k`.
            rows = np.concatenate([opening[first], logits[sequence]]) if sequence in logits else opening[first]
            wanted = slice(span[0] - question.prefix, span[1] - question.prefix)
            by_question[-1].append(likelihood(rows[wanted], text[slice(*span)]))
    return by_question


def likelihood(logits: npt.NDArray[np.float32], targets: Tokens) -> Likelihood:
    """Of `targets` `[n]` under `[n, n_vocab]`; raises NumericFailure where a logit is NaN."""
    shifted = (logits - logits.max(axis=1, keepdims=True)).astype(np.float64)
    log_p = float((shifted[np.arange(len(targets)), targets] - np.log(np.exp(shifted).sum(axis=1))).sum())
    if np.isnan(log_p):
        raise NumericFailure("the model gives NaN as logits; its file is damaged or overflows in this precision")
    return Likelihood(log_p, len(targets), bool((logits.argmax(axis=1) == targets).all()))
