"""The method `best`: several methods choose from one half of the text, and the other half says which of them to trust.

Statistics are kept in halves. Every method chooses from the even chunks, and what it chose is judged by the KLD of the
masked model on odd chunks, which no statistic behind these keep-sets has seen. `decide` has the rule. Whoever takes the
place of the default does so with the very keep-set that was judged: from little text a method chooses now well, now
badly, and another set of the same method would prove nothing. The default chooses from all of the text in the end; that
set is judged too, and has the advantage of having seen the chunks, so that nothing takes its place by having more luck
with less text.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from ggufreap.blending import MAXMIN, UNIFORM
from ggufreap.observation import DomainStatistics
from ggufreap.selection.choosing import Choice, choose
from ggufreap.selection.gram import Rows
from ggufreap.selection.judging import Difference, Losses, mean_loss, worst_loss

_FINAL = "the default from all text"
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


DEFAULT, REAP = Contender("rank_average", UNIFORM), Contender("reap", UNIFORM)
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
            f"{reap.mean:.4f}, worst domain {ours.worst:.4f} against {reap.worst:.4f}; chosen from one half, judged on "
            f"{self.n_chunks} chunks of the other): {self.reason}"
        )


@dataclass(frozen=True)
class Sets:
    """What every contender chooses from the even chunks, and the default from all."""

    even: Mapping[Contender, Choice]
    default: Choice

    @classmethod
    def of(cls, statistics: DomainStatistics, n_keep: int, n_group: int) -> Self:
        """The choices that are judged."""
        even = statistics.half(0)
        sets = {each: choose(even, each.method, each.blend, n_keep, n_group) for each in CONTENDERS}
        return cls(sets, choose(statistics, DEFAULT.method, DEFAULT.blend, n_keep, n_group))

    @property
    def rows(self) -> dict[str, Rows]:
        """All of them, by names that are this class's alone."""
        return {each.name: choice.rows for each, choice in self.even.items()} | {_FINAL: self.default.rows}

    def decide(self, judged: Mapping[str, Losses]) -> tuple[Verdict, Choice]:
        """What stays, given what each of `rows` loses."""
        verdict = decide({each: judged[each.name] for each in self.even}, judged[_FINAL])
        return verdict, self.default if verdict.chosen == DEFAULT else self.even[verdict.chosen]


def decide(losses: Mapping[Contender, Losses], final: Losses) -> Verdict:
    """The default, unless another one is surely better: by a lower mean, then by a lower worst domain.

    The lowest mean loss that is more than SURE standard errors below the default's takes over; `final` is that of its
    set from all text, which has to be beaten as well. Among all whose mean is within EQUAL standard errors of that
    winner's, one takes over in turn that loses less in the winner's worst domain by more than SURE standard errors,
    and less in its own worst. Differences are paired, with chunks as units.
    """
    ranked = sorted(losses, key=lambda each: mean_loss(losses[each]))
    chosen, reason = DEFAULT, f"no other method is better than it by more than {SURE:g} standard errors"
    holders = [losses[DEFAULT], final]
    for each in ranked:
        gains = [Difference.of(losses[each], holder) for holder in holders]
        if all(gain.mean < -SURE * gain.stderr for gain in gains):
            chosen, least = each, max(gains, key=lambda gain: gain.mean)
            reason = f"{-least.mean:.4f} ± {least.stderr:.4f} better than {DEFAULT.name} in the mean"
            holders = [losses[each]]
            break
    fairer = [each for each in ranked if all(_is_fairer(losses[each], holder) for holder in holders)]
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
