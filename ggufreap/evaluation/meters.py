"""What a model lost, in a handful of figures: per domain of text, on the mean, and where it is worst."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from statistics import fmean
from typing import Self

import numpy as np

from ggufreap.errors import NumericFailure
from ggufreap.evaluation.perplexity import Perplexity, exp_finite, mean_and_stderr
from ggufreap.evaluation.proportions import wilson
from ggufreap.evaluation.scores import TokenScores


@dataclass(frozen=True)
class Meters:
    """A candidate against the original over `n_scored` tokens; KLD in nats, shares in [0, 1].

    `kld` is the mean of KL(original ‖ candidate), `kld_median`, `kld_p90` and `kld_p99` tell of its tail over tokens;
    `top1`: the share of tokens that both put first; `esap`: the mean of 1 - total variation (EvoESAP, arXiv
    2603.06003); `log_ratio`: ln(PPL / PPL of the original). Standard errors are llama-perplexity's.
    """

    n_scored: int
    kld: float
    kld_stderr: float
    kld_median: float
    kld_p90: float
    kld_p99: float
    top1: float
    esap: float
    nll: float
    nll_stderr: float
    log_ratio: float
    log_ratio_stderr: float

    @classmethod
    def of(cls, scores: TokenScores) -> Self:
        """The figures of some tokens; raises NumericFailure where one is no number."""
        median, p90, p99 = (float(value) for value in np.quantile(scores.kld, (0.5, 0.9, 0.99)))
        meters = cls(
            len(scores.kld),
            *mean_and_stderr(scores.kld),
            median,
            p90,
            p99,
            float(scores.same_top.mean()),
            float(scores.overlap.mean()),
            *mean_and_stderr(scores.nll),
            *mean_and_stderr(scores.nll - scores.nll_reference),
        )
        if wrong := [name for name, value in vars(meters).items() if not isfinite(value)]:
            raise NumericFailure(
                f"{wrong[0]} is not a number: a logit is infinite; the model file is damaged, or overflows in this "
                "precision"
            )
        return meters

    @classmethod
    def mean(cls, parts: Sequence[Self]) -> Self:
        """The mean over domains: every domain counts the same, however much text it has; PPL is the geometric mean."""

        def mean(name: str) -> float:
            return fmean(getattr(part, name) for part in parts)

        def stderr(name: str) -> float:
            return sqrt(sum(getattr(part, name) ** 2 for part in parts)) / len(parts)

        values = {
            name: stderr(name) if name.endswith("_stderr") else mean(name)
            for name in cls.__dataclass_fields__
            if name != "n_scored"
        }
        return cls(n_scored=sum(part.n_scored for part in parts), **values)

    @property
    def top1_interval(self) -> tuple[float, float]:
        """95 % confidence interval of `top1` (Wilson score)."""
        return wilson(self.top1, self.n_scored)

    @property
    def perplexity(self) -> Perplexity:
        """Of the candidate."""
        return Perplexity.of(self.nll, self.nll_stderr, self.n_scored)

    @property
    def ppl_reference(self) -> float:
        """Perplexity of the original."""
        return exp_finite(self.nll - self.log_ratio, "perplexity of the original")

    @property
    def ppl_ratio(self) -> float:
        """Perplexity of the candidate by that of the original."""
        return exp_finite(self.log_ratio, "the ratio of the perplexities")

    @property
    def ppl_ratio_stderr(self) -> float:
        """Standard error of `ppl_ratio`."""
        return self.ppl_ratio * self.log_ratio_stderr

    @property
    def figures(self) -> dict[str, float]:
        """What gates ask for, by the names of `gates.METRICS`."""
        own = ("kld", "kld_median", "kld_p90", "kld_p99", "top1", "esap", "ppl_ratio")
        return {name: getattr(self, name) for name in own} | self.perplexity.figures


@dataclass(frozen=True)
class Comparison:
    """A candidate against the original: domain of text -> its meters, in the order they were given."""

    domains: Mapping[str, Meters]

    @property
    def mean(self) -> Meters:
        """The mean over domains."""
        return Meters.mean(list(self.domains.values()))

    @property
    def worst_domain(self) -> str:
        """The domain with the highest mean KLD."""
        return max(self.domains, key=lambda name: self.domains[name].kld)

    @property
    def worst(self) -> Meters:
        """The meters of that domain."""
        return self.domains[self.worst_domain]
