"""What stands in for experts that the text never reached."""

import re
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ggufreap.imatrix.matrix import Imatrix, ImatrixEntry

# Their input is the block's own: column j is the same channel for every expert. A down's column j is a neuron of one
# expert, and nothing ties it to column j of another.
SHARED_INPUT = re.compile(r"blk\.\d+\.ffn_(gate|up|gate_up)_exps\.weight")


@dataclass(frozen=True)
class Filled:
    """The experts of `weight` that had no data, and the number of others whose mean they got.

    0 others: no other expert can speak for them, so the entry is as it was, and llama-quantize takes ones.
    """

    weight: str
    experts: tuple[int, ...]
    n_sources: int


def filled(imatrix: Imatrix) -> tuple[Imatrix, tuple[Filled, ...]]:
    """Give experts with count 0 the mean of all rows of the block's other experts, where inputs are shared; say which.

    llama-quantize takes ones for them (load_imatrix in tools/quantize/quantize.cpp; so does ik_llama.cpp, pull request
    202): all columns alike. For gate and up there is better: every token counts once for each expert that it is routed
    to, so the mean over the others is the mean over the block's whole input. Experts taken for unreached in a trained
    model of 32 came out with 2.5 to 3.5 % less weighted error at Q2_K and Q4_K than with ones, all of 48; for down
    such a mean was worse than ones in nine of ten, so there it stays at ones.

    Fill last: a filled row counts as a token in a merge. The mean knows more before slicing than after.
    """
    entries, report = dict(imatrix.entries), []
    for name, entry in imatrix.entries.items():
        empty = entry.counts == 0
        if not empty.any():
            continue
        n_sources = int((~empty).sum()) if SHARED_INPUT.fullmatch(name) else 0
        report.append(Filled(name, tuple(int(expert) for expert in np.flatnonzero(empty)), n_sources))
        if n_sources:
            entries[name] = _with_mean(entry, empty)
    return replace(imatrix, entries=entries), tuple(report)


def _with_mean(entry: ImatrixEntry, empty: npt.NDArray[np.bool_]) -> ImatrixEntry:
    pooled = entry.in_sum2[~empty].sum(axis=0, dtype=np.float64) / entry.counts.sum()
    sums = np.where(empty[:, None], pooled.astype(np.float32), entry.in_sum2)
    return ImatrixEntry(sums, np.where(empty, 1, entry.counts))
