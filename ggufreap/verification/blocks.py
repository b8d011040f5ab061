"""The pruned file's blocks against the masked original's, each on the same input.

Every block of both files works on the residual stream that the masked original had before it, so whatever differs is of
that block alone: the proof is as sharp in block 40 as in the first. What remains is rounding. A softmax over fewer
experts rounds its last bit another way, and products that round their inputs to fewer bits may carry that on; the
tolerance is a few such roundings. And where two experts are as good as equal, a last bit decides which of them a token
gets: that is a near-tie, counted and told apart from a wrong expert by the scores themselves.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Kind

from ggufreap.architecture.layout import MoeLayout
from ggufreap.engine.block_tap import Recorded
from ggufreap.errors import EngineError

# The largest relative error of one rounding of a product's input: it is as narrow as the weights, and has 8 bits where
# they are quantised (ggml-cpu.c, type_traits_cpu, vec_dot_type). F32 counts as half precision, since GELU is looked up
# in a table of that (ggml/src/ggml-cpu/vec.h, ggml_table_gelu_f16).
_ROUNDING = {Kind.F32: 2.0**-11, Kind.F16: 2.0**-11, Kind.BF16: 2.0**-9}
_ROUNDING_QUANTISED = 2.0**-8
ROUNDINGS = 8  # on the way through a block: of the weights, of the inputs of its products, and of their sums

WORDS = {"logits": "router logits", "scores": "router scores", "experts": "chosen experts"}
WORDS |= {"weights": "expert weights", "output": "expert outputs"}
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Difference:
    """What one block computes otherwise, on `n_tokens` tokens, by `error` at most, where `allowed` is the tolerance.

    Relative errors; infinite where a wrong expert was chosen.
    """

    block: int
    what: str
    n_tokens: int
    error: float
    allowed: float

    def __str__(self) -> str:
        what = f"block {self.block}: {WORDS.get(self.what, self.what)} of {self.n_tokens} tokens"
        if self.what == "experts":
            return f"{what} are others on the masked original's input, and those were no near-ties"
        return f"{what} differ by up to {self.error:.1e} on the masked original's input, {self.allowed:.0e} is rounding"


@dataclass(frozen=True)
class BlockComparison:
    """`differences` beyond the tolerance, block by block in the order of computing; `worst` is the largest error.

    `n_near_ties`: how often, over all blocks and tokens, a rounding decided on the last expert; `undecided`
    `[n_tokens]`: where it did so in the last block. Of the `n_kept` experts of all blocks `n_reached` were chosen by
    some token.
    """

    differences: tuple[Difference, ...]
    worst: float
    n_near_ties: int
    undecided: Flags
    n_reached: int
    n_kept: int


def tolerance(types: Iterable[int]) -> float:
    """How much of the norm of a block's output rounding may change, given the types of its weights."""
    return ROUNDINGS * max((_ROUNDING.get(Kind(kind), _ROUNDING_QUANTISED) for kind in types), default=2.0**-11)


def compare_blocks(
    layout: MoeLayout, expected: Recorded, actual: Recorded, tolerances: Mapping[int, float]
) -> BlockComparison:
    """Compare two records (see BlockTap) of one chunk; `layout` is that of the pruned file, `tolerances` by block.

    Raises EngineError where a block's residual stream was not found, so that nothing is proven of what follows.
    """
    _check_streams(layout, expected)
    differences: list[Difference] = []
    worst, n_near_ties, n_reached = 0.0, 0, 0
    routed = {block.index for block in layout.trunk}
    for block in sorted({int(key.rpartition("-")[2]) for key in expected}):
        tied: Flags | None = None
        errors: dict[str, Floats] = {}
        if block in routed:
            errors, tied = _routing(layout, block, expected, actual)
            n_near_ties += int(tied.sum())
            n_reached += len(np.unique(actual[f"experts-{block}"]))
        for node in layout.nodes.stream:
            if (key := f"{node}-{block}") in expected:
                errors[node] = relative(actual[key], expected[key])
        for what, error in errors.items():
            # Whoever got another expert, rightly so, computes something else from there on.
            error = error if tied is None or what in ("logits", "scores") else np.where(tied, 0.0, error)
            worst = max(worst, float(np.max(error)))
            over = ~(error <= tolerances[block])  # so is NaN
            if over.any():
                differences.append(
                    Difference(block, what, int(over.sum()), float(np.max(error[over])), tolerances[block])
                )
    undecided = np.zeros(1, bool) if tied is None else tied
    n_kept = layout.n_expert * len(routed)
    return BlockComparison(tuple(differences), worst, n_near_ties, undecided, n_reached, n_kept)


def _check_streams(layout: MoeLayout, record: Recorded) -> None:
    """The last block's stream may have lost its number (`h_nextn`): then the logits tell of it."""
    for block in range(layout.n_trunk - 1):
        if not any(f"{node}-{block}" in record for node in layout.nodes.stream):
            raise EngineError(
                f"block {block} has no node {' or '.join(layout.nodes.stream)}: this llama.cpp builds "
                f"{layout.architecture.name} in another way than ggufreap knows, and its blocks cannot be compared"
            )


def relative(actual: npt.NDArray[np.generic], expected: npt.NDArray[np.generic]) -> Floats:
    """‖actual - expected‖ / ‖expected‖ of every token `[n_tokens]`; rows near zero count as 0.001 of the mean."""
    rows = len(expected)
    before, after = expected.reshape(rows, -1).astype(np.float64), actual.reshape(rows, -1).astype(np.float64)
    norms = np.linalg.norm(before, axis=1)
    return np.asarray(np.linalg.norm(after - before, axis=1) / np.maximum(norms, 1e-3 * norms.mean() + 1e-30))


def _routing(layout: MoeLayout, block: int, expected: Recorded, actual: Recorded) -> tuple[dict[str, Floats], Flags]:
    """The errors of one router and its experts per token, and which tokens are near-ties."""
    errors, moved = {}, {}
    for what in ("logits", "scores"):
        if (key := f"{what}-{block}") in expected:
            moved[what] = np.abs(actual[key].astype(np.float64) - expected[key]).max(axis=1)
            errors[what] = moved[what] / np.maximum(np.ptp(expected[key], axis=1), 1e-30)
    chosen, other = (_spread(record, block, layout.n_expert) for record in (expected, actual))
    differing = (chosen > 0) != (other > 0)
    chosen_by = "logits" if layout.nodes.weighted_input else "scores"
    scores = expected[f"{chosen_by}-{block}"].astype(np.float64)
    # Scores moved by so much at most: those within twice that may change places, sums of two within four times.
    reach = 4 * moved[chosen_by]
    threshold = np.where(chosen > 0, scores, np.inf).min(axis=1)
    off = np.where(differing, np.abs(scores - threshold[:, None]), 0.0).max(axis=1)
    tied = differing.any(axis=1) & ((off <= reach) | (_group_margin(layout, scores) <= reach))
    errors["experts"] = np.where(differing.any(axis=1) & ~tied, np.inf, 0.0)
    errors["weights"] = relative(other, chosen)
    errors["output"] = relative(actual[f"output-{block}"], expected[f"output-{block}"])
    return errors, tied


def _spread(record: Recorded, block: int, n_expert: int) -> npt.NDArray[np.float32]:
    """The weights `[n_tokens, n_expert]`, zero for experts that were not chosen and only for these."""
    ids, weights = record[f"experts-{block}"], record[f"weights-{block}"]
    spread = np.zeros((len(ids), n_expert), np.float32)
    np.put_along_axis(spread, ids.astype(np.int64), np.where(weights == 0, np.float32(1e-30), weights), axis=1)
    return spread


def _group_margin(layout: MoeLayout, scores: Floats) -> Floats | float:
    """How far, per token, the last chosen group lies before the next; infinitely where routing knows no groups.

    A group is as good as its best two together (src/llama-graph.cpp, build_moe_ffn).
    """
    if layout.n_group == 1:
        return np.inf
    best_two = np.sort(scores.reshape(len(scores), layout.n_group, -1), axis=2)[..., -2:].sum(axis=2)
    ordered = -np.sort(-best_two, axis=1)
    return np.asarray(ordered[:, layout.n_group_used - 1] - ordered[:, layout.n_group_used])
