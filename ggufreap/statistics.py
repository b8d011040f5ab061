"""What calibration knows of every expert: float64 accumulators that add up over any split of the data.

An accumulator is a row of `ACCUMULATORS`; adding a statistic means adding a row.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from ggufreap.engine.protocol import RoutedBatch
from ggufreap.errors import InputError, MismatchError
from ggufreap.files import replacing

SCHEMA = "ggufreap.statistics/1"
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Accumulator:
    """How one statistic folds: `value` per routed token, put together per expert with `combine` (add or maximum)."""

    value: Callable[[RoutedBatch], npt.NDArray[Any]]
    combine: np.ufunc
    meaning: str


ACCUMULATORS: Mapping[str, Accumulator] = {
    "count": Accumulator(lambda batch: np.ones_like(batch.weights), np.add, "routed tokens"),
    "sum_g": Accumulator(lambda batch: batch.weights, np.add, "sum of g"),
    "sum_f": Accumulator(lambda batch: batch.norms, np.add, "sum of ‖f‖"),
    "sum_gf": Accumulator(lambda batch: batch.contributions, np.add, "sum of g‖f‖"),
    "sum_gf2": Accumulator(lambda batch: batch.contributions.astype(np.float64) ** 2, np.add, "sum of (g‖f‖)²"),
    "max_f": Accumulator(lambda batch: batch.peaks, np.maximum, "max |f|"),
}


@dataclass(frozen=True)
class Provenance:
    """Where statistics come from; `source` is what the corpus was called, `version` who observed."""

    model: str  # fingerprint of the file
    corpus: str  # SHA-256 of the token chunks
    n_ctx: int
    n_ubatch: int
    source: str
    version: str

    def differences(self, other: Self) -> list[str]:
        """In what `other` differs so that its sums are others."""
        return [
            name for name in ("model", "corpus", "n_ctx", "n_ubatch") if getattr(self, name) != getattr(other, name)
        ]


@dataclass(frozen=True)
class ExpertStatistics:
    """Accumulators `[n_moe_blocks, n_expert]` over `n_chunks` chunks of `n_tokens` tokens in all.

    `blocks` names the MoE blocks row by row. `a + b` is the statistics of both data sets.
    """

    blocks: tuple[int, ...]
    n_used: tuple[int, ...]
    n_expert: int
    n_tokens: int
    n_chunks: int
    values: Mapping[str, Floats]

    @classmethod
    def empty(cls, blocks: Sequence[int], n_used: Sequence[int], n_expert: int) -> Self:
        """The statistics of no data."""
        shape = (len(blocks), n_expert)
        return cls(tuple(blocks), tuple(n_used), n_expert, 0, 0, {name: np.zeros(shape) for name in ACCUMULATORS})

    def __add__(self, other: Self) -> Self:
        if (self.blocks, self.n_used, self.n_expert) != (other.blocks, other.n_used, other.n_expert):
            raise MismatchError(
                f"statistics of {len(self.blocks)} blocks x {self.n_expert} experts and of "
                f"{len(other.blocks)} x {other.n_expert} cannot be added; they come from different models"
            )
        values = {name: row.combine(self.values[name], other.values[name]) for name, row in ACCUMULATORS.items()}
        counts = self.n_tokens + other.n_tokens, self.n_chunks + other.n_chunks
        return type(self)(self.blocks, self.n_used, self.n_expert, *counts, values)

    def observe(self, batches: Sequence[RoutedBatch], n_tokens: int) -> Self:
        """These statistics and one more chunk of `n_tokens` tokens."""
        rows = {block: row for row, block in enumerate(self.blocks)}
        chunk = {name: np.zeros((len(self.blocks), self.n_expert)) for name in ACCUMULATORS}
        for batch in batches:
            experts, row = batch.experts.ravel(), rows[batch.block]
            for name, accumulator in ACCUMULATORS.items():
                values = accumulator.value(batch).astype(np.float64).ravel()
                accumulator.combine.at(chunk[name][row], experts, values)
        return self + type(self)(self.blocks, self.n_used, self.n_expert, n_tokens, 1, chunk)

    def check(self) -> None:
        """Raise MismatchError unless every block routed every token to exactly n_used experts."""
        for block, used, total in zip(self.blocks, self.n_used, self.values["count"].sum(axis=1), strict=True):
            if total != self.n_tokens * used:
                raise MismatchError(
                    f"block {block} counted {total:.0f} routed tokens, {self.n_tokens} tokens x {used} experts are "
                    f"{self.n_tokens * used}; the observation is incomplete and must not be used"
                )


def save(
    path: Path,
    statistics: ExpertStatistics,
    provenance: Provenance,
    more: Mapping[str, npt.NDArray[Any]] = MappingProxyType({}),
) -> None:
    """Write an .npz with a JSON header, atomically and synced, so that a killed run leaves the last whole one.

    `more` arrays travel along, for `load_more`.
    """
    header = {
        "schema": SCHEMA,
        "provenance": vars(provenance),
        "blocks": statistics.blocks,
        "n_used": statistics.n_used,
        "n_expert": statistics.n_expert,
        "n_tokens": statistics.n_tokens,
        "n_chunks": statistics.n_chunks,
    }
    arrays: dict[str, Any] = {"header": np.array(json.dumps(header)), **statistics.values, **more}
    with replacing(path) as file:
        np.savez(file, **arrays)


def load_more(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays that were saved along with the statistics."""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive if name != "header" and name not in ACCUMULATORS}


def load(path: Path) -> tuple[ExpertStatistics, Provenance]:
    """Read what `save` wrote; raises InputError for anything else."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            header = json.loads(str(archive["header"]))
            values = {name: archive[name] for name in ACCUMULATORS}
        if header["schema"] != SCHEMA:
            raise InputError(f"{path} has schema {header['schema']!r}, this version reads {SCHEMA!r}; calibrate again")
        statistics = ExpertStatistics(
            tuple(header["blocks"]),
            tuple(header["n_used"]),
            header["n_expert"],
            header["n_tokens"],
            header["n_chunks"],
            values,
        )
        return statistics, Provenance(**header["provenance"])
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, EOFError, BadZipFile) as error:
        raise InputError(f"{path} is not a statistics file of ggufreap ({error}); make one with calibrate") from None
