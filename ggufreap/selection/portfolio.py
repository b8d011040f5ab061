"""The method `best`: several methods choose from either half of the text, and the other half says which to trust.

Statistics are kept in halves. Every method chooses once from the even chunks and once from the odd ones, and each set
is judged by the KLD of the masked model on chunks of the half that it has not seen (cross-validation in two folds). So
a method is judged by two of its sets, and by text from everywhere. Those that look better than the default then choose
from all of the text, and these sets, one of which is kept, are judged too. Which one is trusted `decide` says.
"""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ggufreap.blending import MAXMIN, UNIFORM
from ggufreap.observation import DomainStatistics
from ggufreap.options.target import DEFAULT_METHOD
from ggufreap.options.target import REAP as REAP_METHOD
from ggufreap.selection.choosing import choose
from ggufreap.selection.gram import Rows
from ggufreap.selection.judging import Difference, Keeps, Losses, Race, everyone, mean_loss, worst_loss

SURE, LIKELY = 2.0, 1.0  # standard errors of a paired difference
ENOUGH = 4  # chunks of a domain: of fewer, a standard error is a guess
FIRST_SHARE = 0.7  # of the time, for what was chosen from halves: seven sets or so against three or four


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
    difference of the means to REAP's, with its standard error. Who dropped out of the race has fewer chunks.
    """

    contender: Contender
    mean: float
    worst: float
    to_reap: Difference
    n_chunks: int


@dataclass(frozen=True)
class Verdict:
    """All contenders, in order of what they lose less than REAP, and which was chosen for which `reason`; `n_chunks`
    judged it, and `n_own` what those that were better chose from all of the text (0: none was).
    """

    rows: tuple[Row, ...]
    chosen: Contender
    reason: str
    n_chunks: int
    n_own: int = 0

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

    @property
    def dropped(self) -> str:
        """One line: who dropped out of the race, and after how many chunks; empty if nobody did."""
        out = [f"{row.contender.name} after {row.n_chunks}" for row in self.rows if row.n_chunks < self.n_chunks]
        return (
            f"likely behind {DEFAULT.name}, so not judged on all {self.n_chunks} chunks: {', '.join(out)}"
            if out
            else ""
        )


class Judging(Protocol):
    """selection.judging.judge on a model and chunks."""

    def __call__(self, contenders: Mapping[str, Keeps], *, race: Race, budget: float) -> Mapping[str, Losses]:
        """What each of them loses."""


def compete(
    statistics: DomainStatistics,
    n_keep: int,
    n_group: int,
    judging: Judging,
    budget: float = math.inf,
    clock: Callable[[], float] = time.monotonic,
) -> Verdict:
    """Judge all contenders, and what the better ones keep, for about `budget` seconds; the verdict is `decide`'s."""
    started = clock()

    def judged(sets: Mapping[Contender, Sequence[Rows]], race: Race, seconds: float) -> Mapping[Contender, Losses]:
        keeps = {
            each.name: [dict(zip(statistics.blocks, rows, strict=True)) for rows in by_half]
            for each, by_half in sets.items()
        }
        losses = judging(keeps, race=race, budget=seconds)
        return {each: losses[each.name] for each in sets}

    by_halves = judged(crossed(statistics, n_keep, n_group), in_the_race, FIRST_SHARE * budget)
    ahead = better(by_halves)
    if not ahead:
        return decide(by_halves, {})
    own = {each: choose(statistics, each.method, each.blend, n_keep, n_group).rows for each in (DEFAULT, REAP, *ahead)}
    twice = {each: (rows, rows) for each, rows in own.items()}
    return decide(by_halves, judged(twice, everyone, budget - (clock() - started)))


def crossed(statistics: DomainStatistics, n_keep: int, n_group: int) -> Mapping[Contender, tuple[Rows, Rows]]:
    """Contender -> for the even and for the odd chunks what is judged on them: the experts that stay by the others."""
    even, odd = (statistics.half(number) for number in (0, 1))

    def rows(each: Contender, seen: DomainStatistics) -> Rows:
        return choose(seen, each.method, each.blend, n_keep, n_group).rows

    return {each: (rows(each, odd), rows(each, even)) for each in CONTENDERS}


def in_the_race(losses: Mapping[str, Losses]) -> Collection[str]:
    """Of names, those that are not likely behind the default, which they would have to be surely ahead of in the end;
    and REAP. So whoever drops out may be missed, but no other one is chosen for it.
    """
    behind = {name: Difference.of(each, losses[DEFAULT.name]) for name, each in losses.items()}
    return {name for name, gap in behind.items() if gap.mean <= LIKELY * gap.stderr} | {REAP.name}


def better(losses: Mapping[Contender, Losses]) -> Sequence[Contender]:
    """Who is surely better than the default, and than REAP, on the same chunks; the lowest mean first.

    That is a mean that is lower by more than SURE standard errors over chunks, which speak for this very text, and by
    more than LIKELY over domains, since other text of the same kind is another document, as different from this one as
    domains are. Differences are paired. Who dropped out of the race is out; of fewer than ENOUGH chunks nobody is sure.
    """
    if _fewest(losses[DEFAULT]) < ENOUGH:
        return ()
    whole = _n_chunks(losses[DEFAULT])
    raced = [each for each in losses if each != DEFAULT and _n_chunks(losses[each]) == whole]
    sure = [
        each for each in raced if all(_is_better(losses[each], losses[other]) for other in {DEFAULT, REAP} - {each})
    ]
    return sorted(sure, key=lambda each: mean_loss(losses[each]))


def unfair(one: Losses, reap: Losses, errors: float) -> str:
    """The domain that loses most, if it loses more than the one that loses most by REAP, and more there than by REAP by
    more than so many standard errors, paired; else empty.
    """
    worst = max(one, key=lambda domain: one[domain].mean())
    there = Difference.of({worst: one[worst]}, {worst: reap[worst]})
    return worst if worst_loss(one) > worst_loss(reap) and there.mean > errors * there.stderr else ""


def decide(crossed: Mapping[Contender, Losses], own: Mapping[Contender, Losses]) -> Verdict:
    """The first of those that are better, and better again with the very set that would be kept, for which no domain
    pays.

    `own` are the losses of what the default, REAP and all that are better chose from all of the text, on the same
    chunks; nothing where none is. Statistics have seen these chunks, so alone they would tell too little of how well a
    method chooses; but of this very set they tell what its two relatives of half the text do not.

    A worst domain that likely loses more than REAP's is a veto: a wrong veto costs a gain, a wrong pardon a domain. The
    default itself gives way to REAP if its worst domain surely loses more.
    """
    if (few := _fewest(crossed[DEFAULT])) < ENOUGH:
        return _verdict(DEFAULT, f"{few} chunks of a domain are too few to leave {DEFAULT.name} by", crossed, own)
    again, refused = better(own) if own else (), []
    for each in better(crossed):
        domain = unfair(crossed[each], crossed[REAP], LIKELY) or unfair(own[each], own[REAP], LIKELY)
        if domain:
            refused.append(f"{each.name} is, but likely loses more than reap in {domain}")
        elif each not in again:
            refused.append(f"{each.name} is, but not with what it keeps in the end")
        else:
            gain = Difference.of(crossed[each], crossed[DEFAULT])
            reason = f"{-gain.mean:.4f} ± {gain.stderr:.4f} better than {DEFAULT.name} in the mean"
            return _verdict(each, reason, crossed, own)
    if domain := unfair(crossed[DEFAULT], crossed[REAP], SURE):
        return _verdict(REAP, f"{DEFAULT.name} surely loses more in {domain}", crossed, own)
    reason = "; ".join([f"no other method is surely better than {DEFAULT.name}", *refused])
    return _verdict(DEFAULT, reason, crossed, own)


def _verdict(
    chosen: Contender, reason: str, crossed: Mapping[Contender, Losses], own: Mapping[Contender, Losses]
) -> Verdict:
    rows = [
        Row(each, mean_loss(lost), worst_loss(lost), Difference.of(lost, crossed[REAP]), _n_chunks(lost))
        for each, lost in crossed.items()
    ]
    rows.sort(key=lambda row: row.to_reap.mean)
    n_own = _n_chunks(own[DEFAULT]) if own else 0
    return Verdict(tuple(rows), chosen, reason, _n_chunks(crossed[chosen]), n_own)


def _fewest(losses: Losses) -> int:
    return min(map(len, losses.values()))


def _n_chunks(losses: Losses) -> int:
    return sum(map(len, losses.values()))


def _is_better(one: Losses, other: Losses) -> bool:
    gain = Difference.of(one, other)
    return gain.mean < -max(SURE * gain.stderr, LIKELY * gain.between)
