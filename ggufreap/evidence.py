"""Whether there is anything to choose by: scores that tell experts apart, and weights that are there.

A choice on no data looks like any other: the lowest ids stay, every byte of them is proven, and all of a score of
zero is retained. So it is refused before it is made.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ggufreap.architecture.layout import MoeLayout
from ggufreap.container import GgufFile, TensorRecord
from ggufreap.errors import FormatError, InputError, NumericFailure
from ggufreap.imatrix.model import EXPERTS
from ggufreap.observation import Floats

# Weights are looked at in one place of every such stretch; a network writes files in larger pieces than a hole.
STRETCH, HOLE, SPOT = 1 << 20, 1 << 16, 256


def require_scores(scores: Floats, blocks: Sequence[int], n_keep: int, method: str) -> None:
    """Raise unless scores `[n_blocks, n_expert]` of `blocks` tell some experts of every block from others.

    Unknown is -inf. NumericFailure for NaN and +inf; InputError, with the block, where all are equal, unknown, or zero
    as far as they are known. Where all experts stay, nothing is chosen.
    """
    for block, row in zip(blocks, scores, strict=True):
        known = row[row > -np.inf]
        if (len(known) and not np.isfinite(known).all()) or np.isnan(row).any():
            expert = int(np.flatnonzero(np.isnan(row) | (row == np.inf))[0])
            raise NumericFailure(
                f"block {block}: the score of expert {expert} by {method} is {row[expert]}, which ranks nothing; "
                "calibrate again, or check the model"
            )
        if n_keep < len(row) and (not known.any() or (row == row[0]).all()):
            what = "unknown" if not len(known) else "zero or unknown" if not known.any() else "equal"
            raise InputError(
                f"block {block}: the scores of all {len(row)} experts by {method} are {what}, so the choice would be "
                "by their numbers; give more or other text, another method, or check that the model is whole"
            )


def kept_unknown(scores: Floats, keep: Sequence[Sequence[int]], n_group: int = 1) -> int:
    """How many of the kept experts, in all rows of `[n_blocks, n_expert]`, are as unknown (-inf or 0) as one that goes.

    Nothing but their number speaks for them: the text reached neither.
    """
    kept = np.zeros(scores.shape, bool)
    np.put_along_axis(kept, np.asarray(keep), True, axis=1)
    unknown, stays = (array.reshape(len(scores), n_group, -1) for array in (~(scores > 0), kept))
    one_goes = (unknown & ~stays).any(axis=-1, keepdims=True)
    return int((unknown & stays & one_goes).sum())


@dataclass(frozen=True)
class _Stretch:
    """Bytes of a tensor, of one `expert` where it has experts."""

    record: TensorRecord
    expert: int | None
    data: npt.NDArray[np.uint8]

    @property
    def is_hole(self) -> bool:
        """Whether zeros stand where weights should; one place is looked at, the rest only where that is zero."""
        middle = len(self.data) // 2
        if self.data[middle : middle + SPOT].any():
            return False
        start = max(0, middle - HOLE // 2)
        return not self.data[start : start + HOLE].any()


def require_weights(file: GgufFile, layout: MoeLayout) -> tuple[str, ...]:
    """Look whether weights are zeros, as in a download that was never finished; some places of each are read.

    Raises FormatError for an expert whose matrix is nothing but zeros. What else is zero over 64 KiB or in whole comes
    back in words: it may be meant so.
    """
    notes = []
    for record in file.tensors:
        if len(record.shape) < 2 or not record.name.endswith(".weight"):
            continue
        experts = record.name in layout.per_expert and record.name.endswith(EXPERTS)
        holes = [stretch for stretch in _stretches(file, record, experts) if stretch.is_hole]
        for stretch in holes:
            if stretch.expert is not None and not _slab(file, record, stretch.expert, layout.n_expert).any():
                raise FormatError(
                    f"{file.path}: {record.name}, expert {stretch.expert}: all {record.nbytes // layout.n_expert:,} "
                    "bytes are zero; the file is not whole, download it again"
                )
        if holes:
            notes.append(
                f"{file.path}: {record.name} holds zeros where weights should be"
                + ("" if holes[0].expert is None else f", first in expert {holes[0].expert}")
                + "; if it is not meant so, the download is not whole"
            )
    return tuple(notes)


def _slab(file: GgufFile, record: TensorRecord, expert: int, n_expert: int) -> npt.NDArray[np.uint8]:
    size = record.nbytes // n_expert
    return file.map(record, expert * size, size)


def _stretches(file: GgufFile, record: TensorRecord, experts: bool) -> Iterator[_Stretch]:
    data, n_slab = np.asarray(file.map(record)), record.shape[0] if experts else 1
    size = record.nbytes // n_slab
    for expert in range(n_slab):
        for start in range(0, size, STRETCH):
            end = min(start + STRETCH, size)
            yield _Stretch(record, expert if experts else None, data[expert * size + start : expert * size + end])
