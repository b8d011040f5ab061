"""Experts that no criterion may remove: the few whose outputs make the massive activations of a model.

Removing three of them ruins a model of 30B parameters (Super Experts, arXiv 2507.23279), however rarely they are used.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ggufreap.observation import ExpertStatistics, Floats
from ggufreap.selection.gram import Rows

# The rule of REAP's code: above the 99.5th percentile of all experts' largest activation and a tenth of the largest,
# the last quarter of the blocks left out. Some experts always are, so an outlier of its own block is asked for besides.
QUANTILE, OF_LARGEST, OF_BLOCKS, TIMES_MEDIAN = 0.995, 0.1, 0.75, 10.0
RULE = (
    "max |f| above the 99.5th percentile of all experts, a tenth of the largest and ten times its block's median, in "
    "the first three quarters of the blocks"
)


def super_experts(statistics: ExpertStatistics) -> npt.NDArray[np.bool_]:
    """Which experts `[n_moe_blocks, n_expert]` are protected, by RULE."""
    peaks = statistics.values["max_f"]
    threshold = max(float(np.quantile(peaks, QUANTILE)), OF_LARGEST * float(peaks.max()))
    extreme = (peaks > threshold) & (peaks > TIMES_MEDIAN * np.median(peaks, axis=1, keepdims=True))
    extreme[int(OF_BLOCKS * len(peaks)) :] = False
    return extreme


def keeping(
    rows: Rows, protected: npt.NDArray[np.bool_], scores: Floats, n_group: int = 1
) -> tuple[Rows, Sequence[tuple[int, int]]]:
    """The rows with all protected experts in the place of the lowest `scores` of their group; (row, expert) of those.

    Where a group has more of them than stay, the higher score stays.
    """
    n_expert, saved, result = scores.shape[1], [], []
    for row, kept in enumerate(rows):
        chosen = set(kept)
        for expert in np.flatnonzero(protected[row]):
            group = int(expert) * n_group // n_expert
            yielding = [one for one in chosen if one * n_group // n_expert == group and not protected[row, one]]
            if int(expert) not in chosen and yielding:
                chosen.remove(min(yielding, key=lambda one: (scores[row, one], -one)))
                chosen.add(int(expert))
                saved.append((row, int(expert)))
        result.append(tuple(sorted(chosen)))
    return tuple(result), saved
