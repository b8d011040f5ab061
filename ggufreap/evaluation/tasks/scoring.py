"""Which choice a model would take, by the rules of tools/perplexity/perplexity.cpp."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ggufreap.engine.protocol import Keep, Tokens
from ggufreap.evaluation.likelihood import Branches, Likelihood, ScoringEngine, common_prefix, likelihoods
from ggufreap.evaluation.proportions import Share, mcnemar
from ggufreap.evaluation.tasks.questions import Question
from ggufreap.progress import Progress, silent

MIN_TRAILING = 3  # tokens behind the gap, without which Winogrande's choice is scored too (k_min_trailing_ctx)


class AnsweringEngine(ScoringEngine, Protocol):
    """A loaded model that reads text."""

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> Tokens:
        """Tokens of `text`."""


@dataclass(frozen=True)
class Scored:
    """One question: how likely every choice is, and which of them are right."""

    choices: tuple[Likelihood, ...]
    answers: frozenset[int]

    @property
    def right(self) -> bool:
        """Whether the likeliest choice is an answer."""
        return int(np.argmax([choice.log_p for choice in self.choices])) in self.answers

    @property
    def right_normalised(self) -> bool:
        """The same by the mean over a choice's tokens, which is what llama-perplexity reports (acc_norm)."""
        return int(np.argmax([choice.log_p / choice.n_tokens for choice in self.choices])) in self.answers


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


def score(
    engine: AnsweringEngine,
    questions: Sequence[Question],
    *,
    keep: Keep | None = None,
    progress: Progress = silent,
    stage: str = "questions",
) -> list[Scored]:
    """Score every choice, experts outside `keep` masked. Raises InputError where a question does not fit `-c`."""
    branches = [_branches(engine, question) for question in questions]
    by_question = likelihoods(engine, branches, keep=keep, progress=progress, stage=stage)
    return [Scored(tuple(choices), question.answers) for choices, question in zip(by_question, questions, strict=True)]


def _branches(engine: AnsweringEngine, question: Question) -> Branches:
    texts = [engine.tokenize(question.context + choice + question.tail) for choice in question.choices]
    prefix = common_prefix(texts)
    starts, ends = [prefix] * len(texts), [len(text) for text in texts]
    if question.tail:
        if all(len(text) - prefix > MIN_TRAILING for text in texts):
            bases = [len(engine.tokenize(question.context + choice)) for choice in question.choices]
            starts = [max(prefix, base) for base in bases]
        # The last token, a full stop, says nothing.
        ends = [end - (end - start > 1) for start, end in zip(starts, ends, strict=True)]
    return Branches.of(texts, list(zip(starts, ends, strict=True)))


def compare(
    task: str, model: str, answers: Sequence[Scored], reference: str | None, base: Sequence[Scored]
) -> TaskReport:
    """The report of `answers`; with those of a reference to the same questions, `base`, where there is one."""

    def accuracy(right: str) -> Accuracy:
        ours, theirs = ([getattr(scored, right) for scored in side] for side in (answers, base))
        share = Share(sum(ours), len(ours))
        if reference is None:
            return Accuracy(share)
        pairs = list(zip(ours, theirs, strict=True))
        lost, won = pairs.count((False, True)), pairs.count((True, False))
        return Accuracy(share, Share(sum(theirs), len(theirs)), lost, won, mcnemar(lost, won))

    return TaskReport(task, model, reference, accuracy("right"), accuracy("right_normalised"))
