"""How well a model predicts held-out text."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import exp, inf, isfinite, log
from statistics import fmean
from typing import Self

import numpy as np

from ggufreap.corpus import Corpus
from ggufreap.engine.protocol import Engine
from ggufreap.errors import NumericFailure
from ggufreap.evaluation.scores import Floats, Logits, Map, first_scored, negative_log_likelihood, targets_of
from ggufreap.progress import Progress, silent


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log-likelihood, with the standard error of that mean carried over."""

    value: float
    stderr: float
    n_scored: int

    @classmethod
    def of(cls, nll: float, stderr: float, n_scored: int) -> Self:
        """From the mean -ln p of the text's tokens, in nats, and its standard error."""
        value = exp_finite(nll, "perplexity")
        return cls(value, value * stderr, n_scored)

    @property
    def figures(self) -> dict[str, float]:
        """What gates ask for, by the names of `gates.METRICS`."""
        return {"ppl": self.value}


def exp_finite(value: float, what: str) -> float:
    """exp; raises NumericFailure where the result is not a number, or beyond all numbers."""
    try:
        power = exp(value)
    except OverflowError:
        power = inf
    if not isfinite(power):
        raise NumericFailure(
            f"{what} is not a number: exp({value:g}); the model's logits overflow, its file is damaged or too coarse"
        )
    return power


def mean_and_stderr(values: Floats) -> tuple[float, float]:
    """As llama-perplexity has them (mean_and_uncertainty): the error is that of independent tokens."""
    return float(values.mean()), float(values.std() / np.sqrt(max(len(values) - 1, 1)))


def geometric_mean(perplexities: Mapping[str, Perplexity]) -> float:
    """Perplexity on the mean over domains."""
    return exp(fmean(log(each.value) for each in perplexities.values()))


def ignore(_logits: Logits) -> None:
    """Do nothing more with the logits of a chunk."""


def perplexity(
    engine: Engine,
    corpus: Corpus,
    progress: Progress = silent,
    stage: str = "perplexity",
    run: Map = map,
    also: Callable[[Logits], object] = ignore,
) -> Perplexity:
    """Perplexity over the second half of every chunk, as llama-perplexity scores it (tools/perplexity).

    `also` is handed the scored rows `[n_scored, n_vocab]` of every chunk.
    """
    n_ctx = corpus.chunks.shape[1]
    losses = []
    with progress(stage, corpus.n_tokens, "tokens") as bar:
        for chunk in corpus.chunks:
            logits = engine.logits(chunk, scored_from=first_scored(n_ctx))[:-1]
            losses.append(negative_log_likelihood(logits, targets_of(chunk), run))
            also(logits)
            bar.update(n_ctx)
    scored = np.concatenate(losses)
    return Perplexity.of(*mean_and_stderr(scored), len(scored))
