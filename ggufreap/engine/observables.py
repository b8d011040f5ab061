"""What can be observed of one MoE block on one micro-batch, beside which experts were chosen and their weights g.

f is the output `[n_embd]` of a chosen expert, g f what it adds to the block's routed output h = Σ g f. Where the weight
multiplies the expert's input (llama4), what comes out is weighted already: there f and g f are the same.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

Float32s = npt.NDArray[np.float32]

PIECE_NBYTES = 512 << 10  # of expert outputs: half of a usual L2 cache
NORMS, CONTRIBUTIONS, PEAKS, OUTPUT_NORMS, PRODUCTS = "norms", "contributions", "peaks", "output_norms", "products"
STREAM_NORMS, ACTIVATIONS, STREAM = "stream_norms", "activations", "stream"


@dataclass(frozen=True)
class Measure:
    """What is computed from expert outputs `[n_tokens, n_used, n_embd]`: per token an array of `shape` of n_used."""

    measure: Callable[[Float32s], Float32s]
    shape: Callable[[int], tuple[int, ...]]


def _norm(rows: Float32s) -> Float32s:
    # BLAS keeps its error below 1e-6 where einsum does not: rows with one huge value among thousands of small ones.
    return cast(Float32s, np.sqrt(np.vecdot(rows, rows)))


OF_OUTPUTS: Mapping[str, Measure] = {
    NORMS: Measure(_norm, lambda n_used: (n_used,)),
    PEAKS: Measure(lambda f: np.maximum(f.max(axis=-1), -f.min(axis=-1)), lambda n_used: (n_used,)),
}
OF_WEIGHTED: Mapping[str, Measure] = {
    OUTPUT_NORMS: Measure(lambda gf: _norm(gf.sum(axis=1)), lambda _: ()),
    PRODUCTS: Measure(lambda gf: gf @ gf.swapaxes(1, 2), lambda n_used: (n_used, n_used)),
}
OBSERVABLES: Mapping[str, str] = {
    NORMS: "‖f‖₂ [n_tokens, n_used]",
    CONTRIBUTIONS: "g‖f‖ [n_tokens, n_used], the summand of REAP (arXiv 2510.13999, eq. 9)",
    PEAKS: "max |f| over the embedding [n_tokens, n_used]",
    OUTPUT_NORMS: "‖h‖₂ [n_tokens], of the routed experts alone: no shared expert, nothing behind the sum",
    PRODUCTS: "g_i g_j <f_i, f_j> [n_tokens, n_used, n_used]",
    STREAM_NORMS: "‖s‖₂ [n_tokens], s the residual stream behind the block; 1 where its graph names no such node",
    ACTIVATIONS: "what the chosen experts' down matrices multiply, [n_tokens, n_used, width]",
    STREAM: "s [n_tokens, n_embd] itself, where a model has one stream",
}


def stream_norms(parts: Sequence[Float32s], n_tokens: int) -> Float32s:
    """‖Σ parts‖₂ per token `[n_tokens]`: of the nodes that the stream behind a block is the sum of.

    A node is `[1, 1, n_tokens, n_embd]`, or `[1, n_tokens, n_streams, n_embd]` where a model has several streams
    (deepseek4.cpp).
    """
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused with a reason
        return _norm(sum(parts[1:], start=parts[0]).reshape(n_tokens, -1))


def measured(outputs: Float32s, measures: Mapping[str, Measure]) -> dict[str, Float32s]:
    """All `measures` of outputs `[n_tokens, n_used, n_embd]`.

    Several passes over the data, so it goes in pieces that stay in a core's cache.
    """
    n_tokens, n_used = outputs.shape[:2]
    values = {name: np.empty((n_tokens, *row.shape(n_used)), np.float32) for name, row in measures.items()}
    step = max(1, PIECE_NBYTES // outputs[0].nbytes)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused with a reason
        for start in range(0, n_tokens, step):
            tokens = slice(start, start + step)
            piece = outputs[tokens]
            for name, row in measures.items():
                values[name][tokens] = row.measure(piece)
    return values
