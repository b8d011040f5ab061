"""The log-likelihood of every choice, and which one a model would take (tools/perplexity/perplexity.cpp)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ggufreap.engine.protocol import Keep, Tokens
from ggufreap.engine.sequences import Sequences
from ggufreap.errors import InputError, NumericFailure
from ggufreap.evaluation.proportions import Share, mcnemar
from ggufreap.evaluation.tasks.questions import Question
from ggufreap.progress import Progress, silent

MIN_TRAILING = 3  # tokens behind the gap, without which Winogrande's choice is scored too (k_min_trailing_ctx)


class ScoringEngine(Protocol):
    """A loaded model, as the tasks use it."""

    n_ctx: int
    n_batch: int
    n_parallel: int

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> Tokens:
        """Tokens of `text`."""

    def sequences(self, keep: Keep | None = None) -> Sequences:
        """An empty memory."""


@dataclass(frozen=True)
class Scored:
    """One question: sum of log-probabilities per choice (nats) over `counts` tokens, and whether the pick is right."""

    sums: tuple[float, ...]
    counts: tuple[int, ...]
    answers: frozenset[int]

    @property
    def right(self) -> bool:
        """Whether the likeliest choice is an answer."""
        return int(np.argmax(self.sums)) in self.answers

    @property
    def right_normalised(self) -> bool:
        """The same by the mean over a choice's tokens, which is what llama-perplexity reports (acc_norm)."""
        return int(np.argmax(np.divide(self.sums, self.counts))) in self.answers


@dataclass(frozen=True)
class Accuracy:
    """How many are right, and against the reference: `lost` and `won` questions, and McNemar's exact p-value."""

    share: Share
    reference: Share | None = None
    lost: int = 0
    won: int = 0
    p_value: float | None = None


@dataclass(frozen=True)
class TaskReport:
    """A task's accuracies by the sum of log-probabilities, and normalised by length."""

    task: str
    model: str
    reference: str | None
    accuracy: Accuracy
    normalised: Accuracy


@dataclass(frozen=True)
class _Tokenised:
    texts: tuple[Tokens, ...]  # one per choice
    spans: tuple[tuple[int, int], ...]  # the tokens of each that are scored
    prefix: int  # tokens that all share
    answers: frozenset[int]

    @property
    def n_tokens(self) -> int:
        return self.prefix + sum(len(text) - self.prefix for text in self.texts)


def score(
    engine: ScoringEngine,
    questions: Sequence[Question],
    *,
    keep: Keep | None = None,
    progress: Progress = silent,
    stage: str = "questions",
) -> list[Scored]:
    """Score every choice, experts outside `keep` masked; what choices share is computed once, as llama-perplexity does.

    Raises InputError where a question does not fit the context.
    """
    scored = []
    with progress(stage, len(questions), "questions") as bar:
        for group in _groups(engine, [_tokenised(engine, question) for question in questions]):
            scored += _score_group(engine.sequences(keep), group)
            bar.update(len(group))
    return scored


def _tokenised(engine: ScoringEngine, question: Question) -> _Tokenised:
    texts = [engine.tokenize(question.context + choice + question.tail) for choice in question.choices]
    same = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*(text.tolist() for text in texts), strict=False))
    # A choice that is the beginning of another one still needs a token of its own, and the first has none before it.
    prefix = max(1, min(sum(1 for _ in same), *(len(text) - 1 for text in texts)))
    starts, ends = [prefix] * len(texts), [len(text) for text in texts]
    if question.tail:
        if all(len(text) - prefix > MIN_TRAILING for text in texts):
            bases = [len(engine.tokenize(question.context + choice)) for choice in question.choices]
            starts = [max(prefix, base) for base in bases]
        # The last token, a full stop, says nothing.
        ends = [end - (end - start > 1) for start, end in zip(starts, ends, strict=True)]
    return _Tokenised(tuple(texts), tuple(zip(starts, ends, strict=True)), prefix, question.answers)


def _groups(engine: ScoringEngine, questions: Sequence[_Tokenised]) -> Iterator[list[_Tokenised]]:
    """As many questions at once as there are sequences for, within one batch of tokens."""
    group: list[_Tokenised] = []
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


def _score_group(memory: Sequences, group: Sequence[_Tokenised]) -> list[Scored]:
    firsts = np.cumsum([0, *(len(question.texts) for question in group)]).tolist()
    start = memory.feed(
        {first: question.texts[0][: question.prefix] for first, question in zip(firsts, group, strict=False)}
    )
    rest = {}
    for first, question in zip(firsts, group, strict=False):
        memory.fork(first, range(first + 1, first + len(question.texts)))
        for sequence, text in enumerate(question.texts, first):
            if len(text) > question.prefix + 1:
                rest[sequence] = text[question.prefix : -1]
    logits = memory.feed(rest, every=True) if rest else {}
    scored = []
    for first, question in zip(firsts, group, strict=False):
        sums = []
        for sequence, (text, span) in enumerate(zip(question.texts, question.spans, strict=True), first):
            # Row k predicts the token behind the first `prefix + k`.
            rows = np.concatenate([start[first], logits[sequence]]) if sequence in logits else start[first]
            wanted = slice(span[0] - question.prefix, span[1] - question.prefix)
            sums.append(log_likelihood(rows[wanted], text[slice(*span)]))
        scored.append(Scored(tuple(sums), tuple(end - start for start, end in question.spans), question.answers))
    return scored


def log_likelihood(logits: npt.NDArray[np.float32], targets: Tokens) -> float:
    """Sum of ln p (nats) of `targets` `[n]` under `[n, n_vocab]`; raises NumericFailure where a logit is NaN."""
    shifted = (logits - logits.max(axis=1, keepdims=True)).astype(np.float64)
    value = float((shifted[np.arange(len(targets)), targets] - np.log(np.exp(shifted).sum(axis=1))).sum())
    if np.isnan(value):
        raise NumericFailure("the model gives NaN as logits; its file is damaged or overflows in this precision")
    return value


def compare(
    task: str, model: str, found: Sequence[Scored], reference: str | None, base: Sequence[Scored]
) -> TaskReport:
    """The report of `found`; with the answers `base` of a reference to the same questions, where there is one."""

    def accuracy(right: str) -> Accuracy:
        ours, theirs = ([getattr(scored, right) for scored in side] for side in (found, base))
        share = Share(sum(ours), len(ours))
        if reference is None:
            return Accuracy(share)
        pairs = list(zip(ours, theirs, strict=True))
        lost, won = pairs.count((False, True)), pairs.count((True, False))
        return Accuracy(share, Share(sum(theirs), len(theirs)), lost, won, mcnemar(lost, won))

    return TaskReport(task, model, reference, accuracy("right"), accuracy("right_normalised"))
