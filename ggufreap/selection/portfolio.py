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

SURE, LIKELY = 2.0, 1.0  # standard errors of a paired difference, over chunks and over domains


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
    """The default, unless another one is better: of those that are, the one with the lowest mean.

    Better is a mean that is lower by more than SURE standard errors over chunks, which speak for this very text, and by
    more than LIKELY over domains, since other text of the same kind is another document, as different from this one as
    domains are; and a worst domain that does not surely lose more than the default's. Differences are paired.
    """
    ranked = sorted(losses, key=lambda each: mean_loss(losses[each]))
    chosen, reason = DEFAULT, f"no other method is surely better than {DEFAULT.name}"
    for each in ranked:
        gain = Difference.of(losses[each], losses[DEFAULT])
        least = max(SURE * gain.stderr, LIKELY * gain.between)
        if gain.mean < -least and not _is_unfair(losses[each], losses[DEFAULT]):
            chosen, reason = each, f"{-gain.mean:.4f} ± {gain.stderr:.4f} better than {DEFAULT.name} in the mean"
            break
    rows = tuple(
        Row(each, mean_loss(losses[each]), worst_loss(losses[each]), Difference.of(losses[each], losses[REAP]))
        for each in ranked
    )
    return Verdict(rows, chosen, reason, sum(map(len, losses[chosen].values())))


def _is_unfair(one: Losses, other: Losses) -> bool:
    worst = max(one, key=lambda domain: one[domain].mean())
    there = Difference.of({worst: one[worst]}, {worst: other[worst]})
    return worst_loss(one) > worst_loss(other) and there.mean > SURE * there.stderr
