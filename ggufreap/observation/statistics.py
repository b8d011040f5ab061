"""What is recorded of a body of text, as values: a row of STATISTICS per statistic; adding one means adding a row.

All are float64 and add up over any split of the data. They are kept per domain of the text and in halves. The other
record, the importance matrix, is `Importance`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ggufreap.engine.importance import ImportanceSums
from ggufreap.engine.observables import CONTRIBUTIONS, NORMS, OBSERVABLES, PEAKS, PRODUCTS, STREAM_NORMS
from ggufreap.engine.protocol import RoutedBatch
from ggufreap.errors import InputError

Floats = npt.NDArray[np.float64]
PerToken = Callable[[RoutedBatch], npt.NDArray[Any]]


def expert_shape(n_expert: int) -> tuple[int, ...]:
    """A number per expert."""
    return (n_expert,)


def pair_shape(n_expert: int) -> tuple[int, ...]:
    """A number per pair of experts."""
    return (n_expert, n_expert)


@dataclass(frozen=True)
class Statistic:
    """One statistic: an array of `shape` (of n_expert) per block, which begins as `zero`.

    `fold` puts one micro-batch of one block into the array of that block, in place; `add` puts two arrays together.
    `needs` are names of engine.observables.OBSERVABLES: what `fold` may read of a batch beside ids and weights.
    `version` grows when the same text gives other numbers, so that old ones are not taken for new. `meaning` is for
    the reader. Raises InputError for a need that nothing observes.
    """

    fold: Callable[[Floats, RoutedBatch], None]
    meaning: str
    needs: tuple[str, ...] = ()
    shape: Callable[[int], tuple[int, ...]] = expert_shape
    add: np.ufunc = np.add
    zero: float = 0.0
    version: int = 1

    def __post_init__(self) -> None:
        unknown = [need for need in self.needs if need not in OBSERVABLES]
        if unknown:
            raise InputError(f"a statistic needs {unknown[0]!r}; what can be observed is {', '.join(OBSERVABLES)}")


def per_expert(value: PerToken, meaning: str, needs: tuple[str, ...] = (), add: np.ufunc = np.add) -> Statistic:
    """`value` `[n_tokens, n_used]` of every routed token, put together per expert with `add` (add or maximum)."""

    def fold(array: Floats, batch: RoutedBatch) -> None:
        experts = batch.experts.ravel().astype(np.intp, copy=False)  # ufunc.at is fast with these types alone
        add.at(array, experts, value(batch).ravel().astype(np.float64, copy=False))

    return Statistic(fold, meaning, needs, add=add)


def _per_squared_stream(values: npt.NDArray[np.floating], batch: RoutedBatch) -> Floats:
    """`values` `[n_tokens, ...]` of every token, divided by its ‖s‖²: what counts for the next block's norm."""
    squares = batch[STREAM_NORMS].astype(np.float64) ** 2
    squares[squares == 0] = np.inf  # a stream of zeros is padding
    return values / squares.reshape(-1, *[1] * (values.ndim - 1))


def _fold_gram(array: Floats, batch: RoutedBatch) -> None:
    pairs = batch.experts[:, :, None] * array.shape[0] + batch.experts[:, None, :]
    products = _per_squared_stream(batch[PRODUCTS], batch)
    array += np.bincount(pairs.ravel(), products.ravel(), array.size).reshape(array.shape)


STATISTICS: Mapping[str, Statistic] = {
    "count": per_expert(lambda batch: np.ones_like(batch.weights), "routed tokens"),
    "sum_g": per_expert(lambda batch: batch.weights, "sum of g"),
    "sum_f": per_expert(lambda batch: batch[NORMS], "sum of ‖f‖", (NORMS,)),
    "sum_gf": per_expert(lambda batch: batch[CONTRIBUTIONS], "sum of g‖f‖", (CONTRIBUTIONS,)),
    "sum_gf2": per_expert(
        lambda batch: batch[CONTRIBUTIONS].astype(np.float64) ** 2, "sum of (g‖f‖)²", (CONTRIBUTIONS,)
    ),
    "max_f": per_expert(lambda batch: batch[PEAKS], "max |f|", (PEAKS,), np.maximum),
    "sum_gf2_s2": per_expert(
        lambda batch: _per_squared_stream(batch[CONTRIBUTIONS].astype(np.float64) ** 2, batch),
        "sum of (g‖f‖/‖s‖)²",
        (CONTRIBUTIONS, STREAM_NORMS),
    ),
    "gram": Statistic(_fold_gram, "sum of g_i g_j <f_i, f_j>/‖s‖²", (PRODUCTS, STREAM_NORMS), shape=pair_shape),
}


def observables() -> frozenset[str]:
    """What all STATISTICS together need of an engine."""
    return frozenset(need for row in STATISTICS.values() for need in row.needs)


@dataclass(frozen=True)
class Importance:
    """The other record: sums of squared inputs by weight, which guide llama.cpp's quantiser.

    They are of the whole corpus and not per domain: those of a 30B model take 150 MB. With `output` the output head's
    input too, as with llama-imatrix's --process-output. `version` as in Statistic.
    """

    output: bool = False
    version: int = 1

    def empty(self) -> ImportanceSums:
        """The sums of no data."""
        return ImportanceSums(output=self.output)
