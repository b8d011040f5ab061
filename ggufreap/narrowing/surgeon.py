"""Optimal brain surgeon over the neurons of one expert: which go, what that costs, and how the others make up for them.

Taking neurons out of an expert changes its output by D h for every token, D the change of its down matrix W
`[n_embd, width]` and h the activations `[width]`. With H = Σ c h hᵀ over its tokens, c what a token's error counts, the
loss is tr(D H Dᵀ). Removing column i at the least loss costs ‖w_i‖²/(H⁻¹)_ii and changes the other columns by
-w_i (H⁻¹)_i,:/(H⁻¹)_ii (Hassibi and Stork, 1993; by whole columns as in ZipLM, arXiv 2302.04089).

The choice needs the norms of the columns alone, so G = WᵀW is brought up to date in place of W, which is fitted once in
the end: the result is the same. Of H⁻¹ and G a few removals at a time are put together, as in GPTQ, arXiv 2210.17323.
"""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.intp]

DAMPING = 0.01  # of the mean of H's diagonal, added to it; as in GPTQ
TOGETHER = 32  # removals after which H⁻¹ and G are written anew


@dataclass(frozen=True)
class Removal:
    """Neurons in the order in which they go, and what their going costs: the first r of `order` cost `losses[r]`."""

    order: Ids
    losses: Floats

    def kept(self, width: int, source_width: int) -> Ids:
        """The `width` of `source_width` neurons that stay, ascending."""
        return np.setdiff1d(np.arange(source_width), self.order[: source_width - width])


def damped(curvature: npt.NDArray[np.floating[Any]]) -> Floats:
    """H `[width, width]` with DAMPING, so that it can be inverted."""
    hessian = curvature.astype(np.float64)
    hessian.flat[:: len(hessian) + 1] += DAMPING * hessian.diagonal().mean()
    return hessian


def remove(curvature: Floats, gram: Floats, n_remove: int) -> Removal:
    """One neuron after the other, each time the one that costs least; H positive definite, both `[width, width]`."""
    inverse = cast(Floats, np.linalg.inv(curvature))
    there = np.arange(len(curvature))
    order: list[int] = []
    costs: list[float] = []
    while len(order) < n_remove:
        count = min(TOGETHER, n_remove - len(order))
        gone, cost, roots, shares, changes = _some(inverse, gram, count)
        order += there[gone].tolist()
        costs += cost
        stay = np.delete(np.arange(len(there)), gone)
        square = np.ix_(stay, stay)
        inverse = inverse[square] - roots[stay] @ roots[stay].T
        mixed = changes[stay] @ shares[stay].T
        gram = gram[square] - mixed - mixed.T
        there = there[stay]
    return Removal(np.array(order, np.intp), np.concatenate(([0.0], np.cumsum(costs))))


def remove_alone(curvature: npt.NDArray[np.floating[Any]], gram: Floats, n_remove: int) -> Removal:
    """Those of least energy x norm, H_ii ‖w_i‖², which nothing makes up for; of as little energy, those of least norm.

    For experts with too few tokens to say how their neurons go together.
    """
    norms = gram.diagonal()
    order = np.lexsort((norms, curvature.diagonal() * norms))[:n_remove]
    return Removal(order, losses_alone(curvature, gram, order))


def losses_alone(curvature: npt.NDArray[np.floating[Any]], gram: Floats, order: Ids) -> Floats:
    """What the first r of `order` cost, `[n_removed + 1]`, where nothing makes up for them: D is their columns of W."""
    square = np.ix_(order, order)
    losses = (curvature[square] * gram[square]).cumsum(axis=0).cumsum(axis=1).diagonal()
    return np.concatenate(([0.0], losses.clip(0.0)))


def _some(inverse: Floats, gram: Floats, count: int) -> tuple[list[int], list[float], Floats, Floats, Floats]:
    """The next `count` neurons and their costs, and `[width, count]` each: what is due to H⁻¹, as r rᵀ, and to G, as
    c sᵀ + s cᵀ.
    """
    roots, shares, changes = np.zeros((3, len(gram), count))
    diagonal, norms = inverse.diagonal().copy(), gram.diagonal().copy()
    gone: list[int] = []
    costs: list[float] = []
    for step in range(count):
        prices = norms / diagonal
        prices[gone] = np.inf
        i = int(prices.argmin())
        column = inverse[:, i] - roots[:, :step] @ roots[i, :step]
        products = gram[:, i] - changes[:, :step] @ shares[i, :step] - shares[:, :step] @ changes[i, :step]
        shares[:, step] = column / column[i]
        changes[:, step] = products - products[i] / 2 * shares[:, step]
        roots[:, step] = column / np.sqrt(column[i])
        diagonal -= roots[:, step] ** 2
        norms -= 2 * shares[:, step] * changes[:, step]
        diagonal[i] = 1.0  # what is left of it is rounding, and is read no more
        gone.append(i)
        costs.append(max(0.0, float(prices[i])))
    return gone, costs, roots, shares, changes


def refitted(down: npt.NDArray[np.floating[Any]], curvature: Floats, kept: Ids) -> npt.NDArray[np.float32]:
    """The columns `kept` of down `[n_embd, width]` that come closest to all of it, weighted by H: W H_:K (H_KK)⁻¹."""
    targets = curvature[kept] @ down.T.astype(np.float64)
    return np.linalg.solve(curvature[np.ix_(kept, kept)], targets).T.astype(np.float32)
