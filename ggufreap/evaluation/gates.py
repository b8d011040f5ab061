"""Conditions on the figures that end a run with exit code 4: `worst_domain.kld>0.2`."""

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isnan

from ggufreap.errors import InputError

# metric -> whether more is worse; all but ppl need an original to compare with.
METRICS: Mapping[str, bool] = {
    "kld": True,
    "kld_median": True,
    "kld_p90": True,
    "kld_p99": True,
    "top1": False,
    "esap": False,
    "ppl_ratio": True,
    "ppl": True,
}
MEAN, WORST, DOMAIN = "mean", "worst_domain", "domain."
_COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
}
_SHAPE = re.compile(r"\s*(?:(?P<scope>.+)\.)?(?P<metric>\w+)\s*(?P<sign>[<>]=?)\s*(?P<limit>\S+)\s*")

Figures = Mapping[str, float]  # metric -> value


@dataclass(frozen=True)
class Gate:
    """`scope.metric sign limit`: the run fails where it holds.

    `scope`: `mean` over domains, `worst_domain` (where this very metric is worst), or `domain.NAME`.
    """

    text: str
    scope: str
    metric: str
    sign: str
    limit: float

    def check(self, domains: Mapping[str, Figures], mean: Figures) -> "Outcome":
        """Look at figures per domain and on the mean; a value that is no number fails."""
        self.require(domains, mean)
        where = self.scope
        if self.scope == WORST:
            worst = max if METRICS[self.metric] else min
            where = DOMAIN + worst(domains, key=lambda name: domains[name][self.metric])
        value = (mean if where == MEAN else domains[where.removeprefix(DOMAIN)])[self.metric]
        return Outcome(self.text, where, value, isnan(value) or _COMPARISONS[self.sign](value, self.limit))

    def require(self, domains: Iterable[str], metrics: Iterable[str]) -> None:
        """Raise InputError unless these domains and metrics will be known: asked before the work."""
        if self.metric not in metrics:
            raise InputError(
                f"--fail-if {self.text}: {self.metric} needs an original to compare with; give --reference"
            )
        if self.scope.startswith(DOMAIN) and (name := self.scope.removeprefix(DOMAIN)) not in domains:
            raise InputError(
                f"--fail-if {self.text}: there is no domain {name!r}, only {', '.join(domains)}; name one with "
                "-f NAME=FILE"
            )


@dataclass(frozen=True)
class Outcome:
    """What a gate found: the value, where (`mean` or `domain.NAME`), and whether the gate fails."""

    gate: str
    where: str
    value: float
    failed: bool


def parse_gate(text: str) -> Gate:
    """A gate as it is written on the command line; the scope is `mean` where none is named."""
    match = _SHAPE.fullmatch(text)
    if match is None:
        raise InputError(f"--fail-if {text!r} is not understood; write it like worst_domain.kld>0.2")
    scope, metric = match["scope"] or MEAN, match["metric"]
    if metric not in METRICS:
        raise InputError(f"--fail-if {text}: metric {metric!r} is not known; choose one of {', '.join(METRICS)}")
    if scope not in (MEAN, WORST) and not (scope.startswith(DOMAIN) and scope != DOMAIN):
        raise InputError(f"--fail-if {text}: scope {scope!r} is not known; it is mean, worst_domain or domain.NAME")
    try:
        limit = float(match["limit"])
    except ValueError:
        limit = float("nan")
    if isnan(limit):
        raise InputError(f"--fail-if {text}: {match['limit']!r} is not a number")
    return Gate(text.strip(), scope, metric, match["sign"], limit)
