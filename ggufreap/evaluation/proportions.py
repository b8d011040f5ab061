"""Shares of yes and no, with what chance alone does to them."""

from dataclasses import dataclass
from math import sqrt

Z = 1.959963984540054  # 95 % of the normal distribution


@dataclass(frozen=True)
class Share:
    """`count` of `n`."""

    count: int
    n: int

    @property
    def value(self) -> float:
        """The share; 0 of none is 0."""
        return self.count / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval."""
        return wilson(self.value, self.n)


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % Wilson interval, as llama-perplexity prints it for HellaSwag; of none, everything is possible."""
    if not n:
        return 0.0, 1.0
    z = Z * Z / n
    half = sqrt(z * (4 * share * (1 - share) + z)) / 2
    middle = share + z / 2
    return max(0.0, (middle - half) / (1 + z)), min(1.0, (middle + half) / (1 + z))


def mcnemar(lost: int, won: int) -> float:
    """Two-sided exact p-value: how likely a coin splits the questions that one of two models gets right so unevenly."""
    n, ways, tail = lost + won, 1, 1
    for k in range(min(lost, won)):
        ways = ways * (n - k) // (k + 1)  # n over k + 1
        tail += ways
    return min(1.0, 2 * tail / (1 << n))
