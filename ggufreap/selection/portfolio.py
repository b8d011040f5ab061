"""The method `best`: several methods choose from either half of the text, and the other half says which to trust.

Statistics are kept in halves. Every method chooses once from the even chunks and once from the odd ones, and each set
is judged by the KLD of the masked model on chunks of the half that it has not seen (cross-validation in two folds). So
a method is judged by two of its sets, and by text from everywhere. Which one is trusted `decide` says; it then chooses
from all of the text.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ggufreap.blending import MAXMIN, UNIFORM
from ggufreap.observation import DomainStatistics
from ggufreap.options.target import DEFAULT_METHOD
from ggufreap.options.target import REAP as REAP_METHOD
from ggufreap.selection.choosing import choose
from ggufreap.selection.gram import Rows
from ggufreap.selection.judging import Difference, Losses, mean_loss, worst_loss

SURE = 2.0  # standard errors of a paired difference
EQUAL = 1.0  # within so many, means are taken for equal


@dataclass(frozen=True)
class Contender:
    """A method and how it weighs domains."""

    method: str
    blend: str

    @property
    def name(self) -> str:
        """As in tables: the method, and the blend where it is not the usual one."""
        return self.method if self.blend == UNIFORM else f"{self.method}, {self.blend}"


DEFAULT, REAP = Contender(DEFAULT_METHOD, UNIFORM), Contender(REAP_METHOD, UNIFORM)
CONTENDERS = (
    DEFAULT,
    REAP,
    Contender("reap", MAXMIN),
    Contender("weighted_ean_sum", UNIFORM),
    Contender("sum_squares", UNIFORM),
    Contender("relative_squares", UNIFORM),
    Contender("gram", UNIFORM),
)


@dataclass(frozen=True)
class Row:
    """What a contender loses on held-back chunks: mean KLD over domains and that of the worst, in nats; to_reap: paired
    difference of the means to REAP's, with its standard error.
    """

    contender: Contender
    mean: float
    worst: float
    to_reap: Difference


@dataclass(frozen=True)
class Verdict:
    """All contenders, in order of their mean loss, and which was chosen for which `reason`; `n_chunks` judged it."""

    rows: tuple[Row, ...]
    chosen: Contender
    reason: str
    n_chunks: int

    @property
    def line(self) -> str:
        """One line: what was chosen and what it loses, against REAP on the same held-back text."""
        by = {row.contender: row for row in self.rows}
        ours, reap = by[self.chosen], by[REAP]
        ratio = ours.mean / reap.mean if reap.mean else 1.0 if ours.mean == 0 else math.inf
        return (
            f"{self.chosen.name} loses {ratio:.2f}x of reap on held-back text (mean KLD {ours.mean:.4f} against "
            f"{reap.mean:.4f}, worst domain {ours.worst:.4f} against {reap.worst:.4f}; on {self.n_chunks} chunks, each "
            f"of the half that was not chosen from): {self.reason}"
        )


def crossed(statistics: DomainStatistics, n_keep: int, n_group: int) -> Mapping[Contender, tuple[Rows, Rows]]:
    """Contender -> for the even and for the odd chunks what is judged on them: the experts that stay by the others."""
    even, odd = (statistics.half(number) for number in (0, 1))

    def rows(each: Contender, seen: DomainStatistics) -> Rows:
        return choose(seen, each.method, each.blend, n_keep, n_group).rows

    return {each: (rows(each, odd), rows(each, even)) for each in CONTENDERS}


def decide(losses: Mapping[Contender, Losses]) -> Verdict:
    """The default, unless another one is surely better: by a lower mean, then by a lower worst domain.

    The lowest mean loss that is more than SURE standard errors below the default's takes over. Among all whose mean is
    within EQUAL standard errors of that winner's, one takes over in turn that loses less in the winner's worst domain
    by more than SURE standard errors, and less in its own worst. Differences are paired, with chunks as units.
    """
    ranked = sorted(losses, key=lambda each: mean_loss(losses[each]))
    chosen, reason = DEFAULT, f"no other method is better than it by more than {SURE:g} standard errors"
    for each in ranked:
        gain = Difference.of(losses[each], losses[DEFAULT])
        if gain.mean < -SURE * gain.stderr:
            chosen, reason = each, f"{-gain.mean:.4f} ± {gain.stderr:.4f} better than {DEFAULT.name} in the mean"
            break
    fairer = [each for each in ranked if _is_fairer(losses[each], losses[chosen])]
    if fairer:
        winner = min(fairer, key=lambda each: worst_loss(losses[each]))
        chosen, reason = winner, f"as good as {chosen.name} in the mean, and surely better in its worst domain"
    rows = tuple(
        Row(each, mean_loss(losses[each]), worst_loss(losses[each]), Difference.of(losses[each], losses[REAP]))
        for each in ranked
    )
    return Verdict(rows, chosen, reason, sum(map(len, losses[chosen].values())))


def _is_fairer(one: Losses, other: Losses) -> bool:
    in_mean = Difference.of(one, other)
    worst = max(other, key=lambda domain: other[domain].mean())
    there = Difference.of({worst: one[worst]}, {worst: other[worst]})
    return (
        in_mean.mean <= EQUAL * in_mean.stderr
        and there.mean < -SURE * there.stderr
        and worst_loss(one) < worst_loss(other)
    )
