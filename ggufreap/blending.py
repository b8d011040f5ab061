"""From statistics per domain to one score per expert: how much of a say each domain of the text has.

`tokens`   every token counts alike, so a domain weighs as much as it has of the text;
`uniform`  every domain weighs the same, however much text it has;
`A=2,B=1`  a domain weighs so many times what it does in `uniform`;
`maxmin`   an expert counts for the domain that needs it most, so that no domain pays for the others.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import cast

import numpy as np

from ggufreap.errors import InputError
from ggufreap.observation import STATISTICS, DomainStatistics, ExpertStatistics, Floats
from ggufreap.saliency import METHODS

TOKENS, UNIFORM, MAXMIN = BLENDS = ("tokens", "uniform", "maxmin")


def check_blend(how: str, domains: Collection[str] | None = None) -> None:
    """Raise InputError for what is no blend, or not of these domains; to be asked before long work."""
    if how in BLENDS:
        return
    weights = _named(how)
    if domains is not None and set(weights) != set(domains):
        raise InputError(
            f"the blend weighs {', '.join(weights)}, the text has {', '.join(sorted(domains))}; "
            "name every domain, 0 is a weight too"
        )


def scored(method: str, how: str) -> str:
    """What an expert is scored by, in words: a blend by need takes what the method adds up, not its mean."""
    if method not in METHODS:
        return ""
    if how == MAXMIN:
        row = METHODS[method]
        alike = [name for name, other in METHODS.items() if other.mass == row.mass and name != method]
        same = f", as by {' and '.join(alike)}" if alike else ""
        what = f"its largest share in the {STATISTICS[row.mass].meaning} of any domain{same}"
        return f"{what}; --blend tokens or uniform scores by {row.formula}"
    return METHODS[method].formula


def remark(method: str, how: str) -> str:
    """What whoever meets a plan is told of it: that its experts were not scored by what the method is named for."""
    if how != MAXMIN or method not in METHODS:
        return ""
    row = METHODS[method]
    return f"scored by the largest share in the {STATISTICS[row.mass].meaning} of any domain, not by {row.formula}"


def blend(statistics: DomainStatistics, how: str, method: str) -> Floats:
    """The scores `[n_moe_blocks, n_expert]` of `method`, a name of saliency.METHODS, for all domains together.

    Raises InputError for a blend that cannot be read or names other domains, and for a domain without tokens.
    """
    if how == MAXMIN:
        _weights(statistics, how)
        return most_needed(statistics, method)
    return METHODS[method].score(together(statistics, how))


def together(statistics: DomainStatistics, how: str) -> ExpertStatistics:
    """The statistics of all domains together, by any blend that weighs them; raises InputError as `blend` does."""
    return statistics.total if how == TOKENS else weighted(statistics, _weights(statistics, how))


def _weights(statistics: DomainStatistics, how: str) -> dict[str, float]:
    tokens = {domain: statistics.of(domain).n_tokens for domain in statistics.domains}
    weights = dict.fromkeys(tokens, 1.0) if how in BLENDS else _named(how)
    check_blend(how, tokens)
    for domain, weight in weights.items():
        if weight and not tokens[domain]:
            raise InputError(f"no token of {domain} was counted, so it has no weight; calibrate with more of its text")
    return weights


def weighted(statistics: DomainStatistics, weights: Mapping[str, float]) -> ExpertStatistics:
    """The statistics of as many tokens, of which each domain has a part in proportion to its weight.

    Sums are scaled, so that means over tokens are weighted too; a maximum is that over the domains that weigh anything.
    """
    total = ExpertStatistics.empty(statistics.blocks, statistics.n_used, statistics.n_expert, statistics.names)
    whole = sum(weights.values())
    # The order of the statistics, not of the weights, so that equal blends are equal bit for bit.
    for domain in statistics.domains:
        if weights[domain]:
            part = statistics.of(domain)
            factor = weights[domain] * statistics.n_tokens / (whole * part.n_tokens)
            values = {
                name: factor * values if STATISTICS[name].add is np.add else values
                for name, values in part.values.items()
            }
            total = total + replace(part, values=values)
    return replace(total, n_tokens=statistics.n_tokens)


def most_needed(statistics: DomainStatistics, method: str) -> Floats:
    """max_d m_dj / Σ_i m_di: the largest share that expert j has in the mass m_d of any domain, per block.

    m is what the method adds up or averages (Σ g‖f‖ for REAP), so a method and its mean choose alike. Of all sets of
    one size, the one with the highest scores makes the largest share that any domain loses in any one expert as small
    as it can be: a max-min over domains without a parameter, whose smaller sets are contained in the larger ones.

    The literature maximises the smallest mass that a domain retains instead, by reweighting domains (MaxMin108 for
    GLM-5.2; MESA, arXiv 2609.04453).

    What it costs: an expert that every domain uses a little has a small largest share, and gives way to one that a
    single domain uses somewhat more, though it does more work in all. With half of the experts gone that protects the
    worst domain; with a quarter gone, by held-out KLD of a trained six-domain model, a single such exchange decided
    whether it was better or worse than no blend (0.80x to 1.63x of REAP, from 72 to 2,788 chunks of text).
    """
    mass = np.stack([statistics.of(domain).values[METHODS[method].mass] for domain in statistics.domains])
    whole = mass.sum(axis=-1, keepdims=True)
    return cast(Floats, np.divide(mass, whole, out=np.zeros_like(mass), where=whole > 0).max(axis=0))


def _named(how: str) -> dict[str, float]:
    """`NAME=W,NAME=W` as a mapping."""
    weights: dict[str, float] = {}
    for pair in how.split(","):
        name, equals, text = pair.strip().rpartition("=")
        try:
            weight = float(text)
        except ValueError:
            weight = math.nan
        if not (equals and name and name not in weights and 0 <= weight < math.inf):
            raise InputError(
                f"blend {how!r} is not known at {pair.strip()!r}; give {', '.join(BLENDS)} or NAME=WEIGHT,NAME=WEIGHT "
                "with each domain once and weights of 0 or more"
            )
        weights[name] = weight
    if not any(weights.values()):
        raise InputError(f"blend {how!r} gives no domain any weight; one of them needs a weight above 0")
    return weights
