"""Methods as functions from statistics to keep-sets; a criterion that scores experts one by one is the simplest kind.

Criteria are the rows of saliency.METHODS; what weighs experts against each other, or opinions, is a row of JOINT.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ggufreap import saliency
from ggufreap.blending import MAXMIN, blend, most_needed, together
from ggufreap.errors import InputError
from ggufreap.observation import DomainStatistics, Floats
from ggufreap.options.target import BEST
from ggufreap.planning import select
from ggufreap.selection.gram import Rows, least_together

Choose = Callable[[DomainStatistics, str, int, int], Rows]
Score = Callable[[DomainStatistics, str], Floats]


@dataclass(frozen=True)
class Method:
    """`choose` takes statistics, a blend of domains, the number to keep in every block and the number of groups.

    `score` is `[n_moe_blocks, n_expert]`: what the method, or the part of it that scores, thinks of each expert alone.
    `criterion` is the row of saliency.METHODS that tells how much of a domain stays.
    """

    choose: Choose
    score: Score
    criterion: str
    formula: str
    source: str


def scoring(score: Score, criterion: str, formula: str, source: str) -> Method:
    """A method that takes the best scores, equally many of every group."""

    def choose(statistics: DomainStatistics, how: str, n_keep: int, n_group: int) -> Rows:
        return select(score(statistics, how), n_keep, n_group)

    return Method(choose, score, criterion, formula, source)


def _criterion(name: str) -> Method:
    row = saliency.METHODS[name]
    return scoring(lambda statistics, how: blend(statistics, how, name), name, row.formula, row.source)


def _gram(statistics: DomainStatistics, how: str, n_keep: int, n_group: int) -> Rows:
    check_weighing("gram", how)
    return least_together(together(statistics, how).values["gram"], n_keep, n_group)


def _rank_average(statistics: DomainStatistics, how: str) -> Floats:
    mean, total = (_ranks(blend(statistics, how, name)) for name in ("reap", "relative_squares"))
    neediest = _ranks(most_needed(statistics, "reap"))
    # Ranks are often equal in the mean; then the total decides, which is the only one that adds up to a loss.
    return (mean + total + neediest) / 3 + total / (4 * statistics.n_expert)


def _ranks(scores: Floats) -> Floats:
    """Of every row: 0 for the lowest; among equal scores the lower id is higher, as in planning.select."""
    n_expert = scores.shape[1]
    order = np.argsort(scores[:, ::-1], axis=1, kind="stable")
    ranks = np.empty(scores.shape)
    np.put_along_axis(ranks, n_expert - 1 - order, np.arange(n_expert, dtype=float)[None], axis=1)
    return ranks


JOINT: Mapping[str, Method] = {
    "gram": Method(
        _gram,
        lambda statistics, how: blend(statistics, how, "relative_squares"),
        "relative_squares",
        "least Σ_{i,j removed} Σ g_i g_j <f_i, f_j>/‖s‖²",
        "the signed form of HOPE's, arXiv 2609.18916, weighed by token; greedy, then exchanges",
    ),
    "rank_average": scoring(
        _rank_average,
        "relative_squares",
        "mean rank by reap, by relative_squares, and by max_d Σ g_j‖f_j‖ / Σ_i Σ g_i‖f_i‖ over the tokens of domain d",
        "what a mean, a total and the neediest domain all call unimportant",
    ),
}


def method_names() -> tuple[str, ...]:
    """All that a target can name, but the importance matrix."""
    return (*saliency.METHOD_NAMES, *JOINT, BEST)


def check_weighing(name: str, how: str | None) -> None:
    """Raise InputError for a blend that the method cannot take; to be asked before long work."""
    if name == "gram" and how == MAXMIN:
        raise InputError("the blend maxmin is of scores, gram chooses experts together; give it another blend")


def calibrates(method: str) -> bool:
    """Whether a method chooses by statistics."""
    return method in (*saliency.METHODS, *JOINT, BEST)


def method_of(name: str) -> Method:
    """The method of a name of saliency.METHODS or JOINT."""
    return JOINT[name] if name in JOINT else _criterion(name)
