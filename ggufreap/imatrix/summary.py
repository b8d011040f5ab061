"""An importance matrix at a glance."""

from dataclasses import dataclass

import numpy as np

from ggufreap.imatrix.matrix import Imatrix, ImatrixEntry


@dataclass(frozen=True)
class EntrySummary:
    """One weight: its shape `[n_mat, n_in]`, the most rows that any matrix saw, and how many matrices saw none.

    `energy` is Σ(Act²) of llama-imatrix --show-statistics: the sum of the mean squares, where there are any.
    """

    weight: str
    n_mat: int
    n_in: int
    most_rows: int
    n_empty: int
    energy: float

    @property
    def share(self) -> float:
        """The share of matrices (experts) with data."""
        return 1 - self.n_empty / self.n_mat


@dataclass(frozen=True)
class ImatrixSummary:
    """The whole: where it comes from, and every weight."""

    datasets: tuple[str, ...]
    chunk_count: int
    chunk_size: int
    entries: tuple[EntrySummary, ...]

    @property
    def share(self) -> float:
        """The share of all matrices with data, over all weights."""
        n_mat = sum(entry.n_mat for entry in self.entries)
        return 1 - sum(entry.n_empty for entry in self.entries) / n_mat if n_mat else 0.0


def describe(imatrix: Imatrix) -> ImatrixSummary:
    """Sizes, energies and gaps of every entry, by name."""
    entries = tuple(_summary(name, entry) for name, entry in sorted(imatrix.entries.items()))
    return ImatrixSummary(imatrix.datasets, imatrix.chunk_count, imatrix.chunk_size, entries)


def _summary(name: str, entry: ImatrixEntry) -> EntrySummary:
    reached = entry.counts > 0
    energy = (entry.in_sum2.sum(axis=1, dtype=np.float64)[reached] / entry.counts[reached]).sum()
    n_mat, n_in = entry.in_sum2.shape
    return EntrySummary(name, n_mat, n_in, int(entry.counts.max()), int((~reached).sum()), float(energy))
