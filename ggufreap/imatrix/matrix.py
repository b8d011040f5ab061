"""The importance matrix as llama-imatrix holds it: raw sums and counts, so that parts add up.

Precision and order of every sum are those of tools/imatrix/imatrix.cpp (float32 sums, whole counts).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ggufreap.errors import FormatError, InputError, MismatchError

Sums = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]
DEFAULT_CHUNK = 512  # llama-imatrix's chunk without -c
MAX_SUM = 2.0**90  # far above any activations, far below what a merge could overflow


@dataclass(frozen=True)
class ImatrixEntry:
    """One weight: `in_sum2` `[n_mat, n_in]`, the sums of the squares of its inputs, over `counts` `[n_mat]` rows.

    `n_mat` counts the experts of an `_exps` weight and is 1 for any other. A dense 3-D weight has one count for all
    its matrices, whose sums lie one after the other in that single row; so have the experts of a `.dat`.
    """

    in_sum2: Sums
    counts: Counts

    def __post_init__(self) -> None:
        assert self.in_sum2.shape == (len(self.counts), self.in_sum2.shape[-1]), "use ImatrixEntry.of"

    @classmethod
    def of(cls, sums: npt.NDArray[Any], counts: npt.ArrayLike) -> Self:
        """The entry of sums in any shape, cut into one row per count."""
        rows = np.asarray(counts, np.int64).ravel()
        return cls(np.ascontiguousarray(sums, np.float32).reshape(len(rows), -1), rows)


@dataclass(frozen=True)
class Imatrix:
    """The entries by weight name, and what they were made from.

    `chunk_count` chunks of `chunk_size` tokens, 0 where a file does not tell. `per_chunk`: the counts are chunks and
    the sums that many means, which is all that a `.dat` knows.
    """

    entries: Mapping[str, ImatrixEntry]
    datasets: tuple[str, ...] = ()
    chunk_count: int = 0
    chunk_size: int = 0
    per_chunk: bool = False


def means(entry: ImatrixEntry) -> Sums:
    """The mean squares `[n_mat * n_in]` that llama-quantize hands to the library; ones where nothing was counted.

    tools/quantize/quantize.cpp, load_imatrix: the same float32 division, so the same quantised bytes.
    """
    counts = entry.counts.astype(np.float32)[:, None]
    return np.where(counts > 0, entry.in_sum2 / np.maximum(counts, 1), np.float32(1)).ravel()


def in_tokens(imatrix: Imatrix, chunk_size: int = DEFAULT_CHUNK) -> Imatrix:
    """Sums and counts per token, taking the chunks of a `.dat` for `chunk_size` tokens; others as they are.

    What llama-imatrix does when it loads a `.dat`, with its own -c for `chunk_size`.
    """
    if not imatrix.per_chunk:
        return imatrix
    entries = {
        name: ImatrixEntry(entry.in_sum2 * np.float32(chunk_size), entry.counts * chunk_size)
        for name, entry in imatrix.entries.items()
    }
    return replace(imatrix, entries=entries, chunk_size=chunk_size, per_chunk=False)


def merged(imatrices: Sequence[Imatrix]) -> Imatrix:
    """The matrix of all their data: sums, counts and chunks add up, in order, as llama-imatrix --in-file adds them.

    A weight that only some know keeps what they know. One count beside one per expert stands for each of them.
    Chunks are counted in the size of the first that tells it. Raises MismatchError for different models.
    """
    if not imatrices:
        raise InputError("no importance matrix to merge; name one or more")
    told = next((part.chunk_size for part in imatrices if part.chunk_size), 0)
    if not all(part.per_chunk for part in imatrices):
        imatrices = [in_tokens(part, told or DEFAULT_CHUNK) for part in imatrices]
    entries: dict[str, ImatrixEntry] = {}
    for part in imatrices:
        for name, entry in part.entries.items():
            entries[name] = _added(name, entries[name], entry) if name in entries else entry
    unit = told or 1
    chunks = sum(part.chunk_count * (part.chunk_size or unit) for part in imatrices) // unit
    datasets = tuple(dataset for part in imatrices for dataset in part.datasets)
    return Imatrix(entries, datasets, chunks, told, imatrices[0].per_chunk)


def _added(name: str, one: ImatrixEntry, other: ImatrixEntry) -> ImatrixEntry:
    n_mat = max(len(one.counts), len(other.counts))
    if one.in_sum2.size != other.in_sum2.size or {len(one.counts), len(other.counts)} - {1, n_mat}:
        shapes = " and ".join("{} x {}".format(*entry.in_sum2.shape) for entry in (one, other))
        raise MismatchError(f"{name} has {shapes} sums; importance matrices of different models cannot be merged")
    sums = one.in_sum2.reshape(n_mat, -1) + other.in_sum2.reshape(n_mat, -1)
    return ImatrixEntry(sums, np.broadcast_to(one.counts, n_mat) + other.counts)


def check_sums(path: Path, name: str, sums: Sums) -> None:
    """Raise FormatError unless every number read for `name` can be a sum of squares; llama-quantize stops at NaN."""
    if not ((sums >= 0) & (sums < MAX_SUM)).all():
        raise FormatError(
            f"{path}: {name} holds {sums[~((sums >= 0) & (sums < MAX_SUM))][0]}, which no sum of squares is; "
            "it is damaged, download or make it again"
        )
