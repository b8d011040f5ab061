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

    0 others: no other expert can speak for them, so llama-quantize takes ones. `n_columns`: inputs of the other
    experts, or of a weight without experts, that were zero for the whole text; they got the least that any other has.
    """

    weight: str
    experts: tuple[int, ...]
    n_sources: int
    n_columns: int = 0


def filled(imatrix: Imatrix) -> tuple[Imatrix, tuple[Filled, ...]]:
    """Give experts without data the mean of all rows of the block's other experts, where inputs are shared; say which.

    Without data are those with count 0, and with nothing but zeros. For count 0 llama-quantize takes ones
    (load_imatrix in tools/quantize/quantize.cpp; so does ik_llama.cpp, pull request 202): all columns alike. For
    gate and up there is better: every token counts once for each expert that it is routed to, so the mean over the
    others is the mean over the block's whole input. Experts taken for unreached in a trained
    model of 32 came out with 2.5 to 3.5 % less weighted error at Q2_K and Q4_K than with ones, all of 48; for down
    such a mean was worse than ones in nine of ten, so there it stays at ones.

    An input of importance 0 gets the least of its row: where all of a block of weights have 0, the quantiser writes
    zeros (make_qp_quants and the like in ggml-quants.c), and other text may well use them.

    Fill last: a filled row counts as a token in a merge. The mean knows more before slicing than after.
    """
    entries, report = dict(imatrix.entries), []
    for name, entry in imatrix.entries.items():
        empty = (entry.counts == 0) | ~entry.in_sum2.any(axis=1)
        columns = (entry.in_sum2 == 0) & ~empty[:, None]
        if not empty.any() and not columns.any():
            continue
        n_sources = int((~empty).sum()) if SHARED_INPUT.fullmatch(name) else 0
        experts = tuple(int(expert) for expert in np.flatnonzero(empty))
        report.append(Filled(name, experts, n_sources if experts else 0, int(columns.sum())))
        entries[name] = _filled(entry, empty, columns, pooled=bool(n_sources and experts))
    return replace(imatrix, entries=entries), tuple(report)


def _filled(
    entry: ImatrixEntry, empty: npt.NDArray[np.bool_], columns: npt.NDArray[np.bool_], pooled: bool
) -> ImatrixEntry:
    counts = np.where(empty, 0, entry.counts)
    least = np.where(entry.in_sum2 > 0, entry.in_sum2, np.float32(np.inf)).min(axis=1, keepdims=True)
    sums = np.where(columns, least, entry.in_sum2)
    if pooled:
        # Of the text, not of what was filled in; but for what no expert ever saw.
        mean = (entry.in_sum2[~empty].sum(axis=0, dtype=np.float64) / counts.sum()).astype(np.float32)
        mean = np.where(mean > 0, mean, mean[mean > 0].min())
        sums, counts = np.where(empty[:, None], mean, sums), np.where(empty, 1, counts)
    return ImatrixEntry(sums, counts)
