"""Statistics made of numbers, without any engine."""

from collections.abc import Mapping, Sequence

import numpy as np
from hypothesis import settings

from ggufreap.observation import DomainStatistics, ExpertStatistics

# A busy machine is no failure.
quick = settings(deadline=None, max_examples=50)


def part(
    counts: Sequence[Sequence[float]], norms: Sequence[Sequence[float]], n_tokens: int | None = None
) -> ExpertStatistics:
    """Experts `[n_blocks, n_expert]`, one used per token: routed `counts` tokens; g = ‖s‖ = 1, ‖f‖ = `norms`."""
    count, norm = np.array(counts, float), np.array(norms, float)
    values = {
        "count": count,
        "sum_g": count,
        "sum_f": count * norm,
        "sum_gf": count * norm,
        "sum_gf2": count * norm**2,
        "max_f": norm * (count > 0),
        "sum_gf2_s2": count * norm**2,
        "gram": np.stack([np.diag(row) for row in count * norm**2]),
    }
    used = int(count.sum(axis=1)[0]) if n_tokens is None else n_tokens
    return ExpertStatistics(tuple(range(len(count))), (1,) * len(count), count.shape[1], used, 1 if used else 0, values)


def of_halves(halves: Mapping[str, tuple[ExpertStatistics, ExpertStatistics]]) -> DomainStatistics:
    first = next(iter(halves.values()))[0]
    return DomainStatistics(first.blocks, first.n_used, first.n_expert, halves)


def of_parts(parts: Mapping[str, ExpertStatistics]) -> DomainStatistics:
    """Each domain whole in its first half."""
    first = next(iter(parts.values()))
    nothing = ExpertStatistics.empty(first.blocks, first.n_used, first.n_expert)
    return of_halves({domain: (found, nothing) for domain, found in parts.items()})


def random_statistics(seed: int, n_domains: int = 3, n_blocks: int = 2, n_expert: int = 8) -> DomainStatistics:
    """Domains that differ in tokens and in experts."""
    rng = np.random.default_rng(seed)
    halves = {}
    for index in range(n_domains):
        likes, norms = rng.dirichlet(np.full(n_expert, 0.5), n_blocks), rng.gamma(2, 1, (n_blocks, n_expert))
        tokens = rng.integers(50, 500, 2)
        counts = [np.array([rng.multinomial(n, row) for row in likes]) for n in tokens]
        halves[f"d{index}"] = (part(counts[0], norms), part(counts[1], norms))
    return of_halves(halves)
