"""Which experts to remove together, where what they do overlaps: greedy, then by exchange.

Removing the set P changes what a token's routed experts add up to by Σ_{j in P} g_j f_j, whatever takes over. The sum
of its squares over tokens is Σ_{i,j in P} F_ij with F_ij = Σ g_i g_j <f_i, f_j>/‖s‖², so the set with the least is
sought. HOPE (arXiv 2609.18916) minimises the same form with a bound in the place of F: the mean of g_i‖f_i‖ g_j‖f_j‖
over the tokens that use both.
"""

import numpy as np
import numpy.typing as npt

from ggufreap.observation import Floats

Rows = tuple[tuple[int, ...], ...]
LEAST_GAIN = 1e-12  # of the trace: below it an exchange is rounding


def least_together(grams: Floats, n_keep: int, n_group: int = 1) -> Rows:
    """The experts that stay of every block, ids in ascending order; `grams` is `[n_blocks, n_expert, n_expert]`.

    Every one of `n_group` groups loses equally many. Among equal costs the higher id goes.
    """
    return tuple(_kept(gram, n_keep, n_group) for gram in grams)


def _kept(gram: Floats, n_keep: int, n_group: int) -> tuple[int, ...]:
    n_expert = len(gram)
    group = np.arange(n_expert) * n_group // n_expert
    quota = (n_expert - n_keep) // n_group
    own, overlap = gram.diagonal().copy(), np.zeros(n_expert)  # overlap: Σ_{i in P} F_ij
    removed, taken = np.zeros(n_expert, bool), np.zeros(n_group, int)
    for _ in range(quota * n_group):
        cost = np.where(removed | (taken[group] == quota), np.inf, own + 2 * overlap)
        worst = n_expert - 1 - int(cost[::-1].argmin())
        removed[worst] = True
        taken[group[worst]] += 1
        overlap += gram[worst]
    while exchange := _best_exchange(gram, own, overlap, removed, group):
        back, out = exchange
        removed[back], removed[out] = False, True
        overlap += gram[out] - gram[back]
    return tuple(int(expert) for expert in np.flatnonzero(~removed))


def _best_exchange(
    gram: Floats, own: Floats, overlap: Floats, removed: npt.NDArray[np.bool_], group: npt.NDArray[np.intp]
) -> tuple[int, int] | None:
    """The removed expert and the kept one of its group whose exchange saves most, None where none saves."""
    gone, kept = np.flatnonzero(removed), np.flatnonzero(~removed)
    if not len(gone) or not len(kept):
        return None
    change = (own[kept] + 2 * overlap[kept])[None] - (2 * overlap[gone] - own[gone])[:, None]
    change = change - 2 * gram[np.ix_(gone, kept)]
    change[group[gone][:, None] != group[kept][None]] = np.inf
    row, column = np.unravel_index(change.argmin(), change.shape)
    if change[row, column] >= -LEAST_GAIN * own.sum():
        return None
    return int(gone[row]), int(kept[column])
