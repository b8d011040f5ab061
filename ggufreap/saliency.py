"""How much an expert matters: pure functions from statistics to scores; higher means keep.

Notation of REAP (arXiv 2510.13999): X_j the tokens routed to expert j, g_j(x) its router weight as llama.cpp applies
it, f_j(x) its output, ‖·‖ the 2-norm. To try another criterion, write a function and add a row to METHODS.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import cast

import numpy as np
import numpy.typing as npt

from ggufreap import imatrix as imatrices
from ggufreap.architecture.layout import MoeLayout
from ggufreap.container import GgufFile, TensorRecord, type_name
from ggufreap.errors import FormatError, UnsupportedModel
from ggufreap.imatrix import Imatrix
from ggufreap.imatrix.model import EXPERTS
from ggufreap.observation import ExpertStatistics, Floats
from ggufreap.progress import Progress, silent


@dataclass(frozen=True)
class Method:
    """A criterion over statistics; `score` gives `[n_moe_blocks, n_expert]`.

    `mass` is the statistic, of one number per expert, that it adds up or averages: what an expert does in all, to tell
    how much of it stays.
    """

    score: Callable[[ExpertStatistics], Floats]
    mass: str
    formula: str
    source: str


def _mean(mass: str, formula: str, source: str, transform: Callable[[Floats], Floats] = lambda mean: mean) -> Method:
    """The mean over routed tokens; an expert that was never routed is lowest."""

    def score(statistics: ExpertStatistics) -> Floats:
        count = statistics.values["count"]
        routed = count > 0
        return np.where(routed, transform(statistics.values[mass] / np.where(routed, count, 1)), -np.inf)

    return Method(score, mass, formula, source)


def _total(mass: str, formula: str, source: str) -> Method:
    return Method(lambda statistics: statistics.values[mass], mass, formula, source)


def _root(statistics: ExpertStatistics) -> Floats:
    """Neither the mean, which forgets how often, nor the total, which forgets how much: the geometric mean of both."""
    count = statistics.values["count"]
    return statistics.values["sum_gf"] / np.sqrt(np.where(count > 0, count, 1))


_REAP = "REAP, arXiv 2510.13999"
METHODS: Mapping[str, Method] = {
    "reap": _mean("sum_gf", "1/|X_j| Σ g_j‖f_j‖", f"{_REAP}: its saliency criterion"),
    "reap_root": Method(
        _root,
        "sum_gf",
        "1/√|X_j| Σ g_j‖f_j‖",
        "half-way from reap to weighted_ean_sum, (1/2, 1, 1) of arXiv 2606.15716",
    ),
    "reap_l2": _mean("sum_gf2", "√(1/|X_j| Σ (g_j‖f_j‖)²)", f"{_REAP}: option of its code", np.sqrt),
    "frequency": _total("count", "|X_j|", f"{_REAP}: baseline"),
    "ean_sum": _total("sum_f", "Σ ‖f_j‖", f"expert activation norm, baseline in {_REAP}"),
    "ean_mean": _mean("sum_f", "1/|X_j| Σ ‖f_j‖", f"{_REAP}: option of its code"),
    "weighted_ean_sum": _total("sum_gf", "Σ g_j‖f_j‖", f"{_REAP}: option of its code"),
    "weighted_frequency_sum": _total("sum_g", "Σ g_j", "soft counts of SEER-MoE, arXiv 2404.05089"),
    "sum_squares": _total("sum_gf2", "Σ (g_j‖f_j‖)²", "total of squares, (0, 2, 2) of arXiv 2606.15716"),
    "relative_squares": _total(
        "sum_gf2_s2",
        "Σ (g_j‖f_j‖/‖s‖)², s the residual stream behind the block",
        "as sum_squares, by how far the next block's norm lets it show",
    ),
    "max_activations": _total("max_f", "max |f_j|", f"{_REAP}: option of its code"),
}
# These need no calibration.
RANDOM, WEIGHT_NORM = "random", "weight_norm"
CONTROLS = (RANDOM,)  # show what a choice by chance costs
IMATRIX = "imatrix"  # takes the importance matrix that was given
METHOD_NAMES = (*METHODS, RANDOM, WEIGHT_NORM)


def random_scores(n_blocks: int, n_expert: int, seed: int) -> Floats:
    """The control that every criterion has to beat."""
    return np.random.default_rng(seed).random((n_blocks, n_expert))


def weight_norms(file: GgufFile, layout: MoeLayout, progress: Progress = silent) -> Floats:
    """‖W_j‖: the 2-norm of all of an expert's weight matrices with their scales, `[n_trunk_blocks, n_expert]`.

    One expert of one tensor is dequantised at a time, so memory does not depend on the model.
    """
    squares = np.zeros((len(layout.trunk), layout.n_expert))
    records = [
        (row, file.by_name[name])
        for row, block in enumerate(layout.trunk)
        for name in block.per_expert
        if name.endswith(EXPERTS)
    ]
    with progress("weight norms", sum(record.nbytes for _, record in records), "B") as bar:
        for row, record in records:
            for expert in range(layout.n_expert):
                squares[row, expert] += _column_squares(file, record, expert).sum()
            bar.update(record.nbytes)
    return cast(Floats, np.sqrt(squares))


def imatrix_scores(imatrix: Imatrix, file: GgufFile, layout: MoeLayout, progress: Progress = silent) -> Floats:
    """√(1/|X_j| Σ_i t_ji r_ji²) √(1/|X_j| Σ_i s_ji ‖w_ji‖²), `[n_trunk_blocks, n_expert]`: an importance matrix's REAP.

    t_ji and s_ji are what the matrix holds of input i of the expert's first and last weight, sums of squares over X_j;
    r_j is the expert's row of the router, w_ji column i of its last weight. Where inputs are uncorrelated the second
    root is that of the mean of ‖f_j‖², and the first that of the mean squared router logit, which has to stand for g_j.
    It is left out where experts do not see what the router sees. An expert without data is lowest.

    Raises MismatchError or InputError for a matrix without counts per expert.
    """
    known = imatrices.expert_statistics(imatrix, layout)
    scores = np.full(known.counts.shape, -np.inf)
    records = [file.by_name[name] for name in known.last]
    with progress("expert outputs", sum(record.nbytes for record in records), "B") as bar:
        for row, (block, record) in enumerate(zip(known.blocks, records, strict=True)):
            outputs, inputs = imatrix.entries[record.name].in_sum2, imatrix.entries[known.first[row]].in_sum2
            router = file.by_name[f"blk.{block}.ffn_gate_inp.weight"]
            for expert in np.flatnonzero(known.counts[row]):
                mean = _column_squares(file, record, int(expert)) @ outputs[expert] / known.counts[row, expert]
                if router.shape == (layout.n_expert, inputs.shape[1]):
                    mean *= _column_squares(file, router, int(expert)) @ inputs[expert] / known.counts[row, expert]
                scores[row, expert] = np.sqrt(mean)
            bar.update(record.nbytes)
    return scores


def _column_squares(file: GgufFile, record: TensorRecord, expert: int) -> Floats:
    """The squared 2-norms of the columns of one expert's matrix `[n_out, n_in]`, as it multiplies: `[n_in]`."""
    squares = np.square(expert_weights(file, record, expert), dtype=np.float64).sum(axis=0)
    squares *= expert_scale(file, record, expert) ** 2
    if not np.isfinite(squares).all():
        raise FormatError(
            f"{file.path}: {record.name}, expert {expert}: a weight is NaN or infinite; the file is damaged"
        )
    return cast(Floats, squares)


def expert_scale(file: GgufFile, record: TensorRecord, expert: int) -> float:
    """What llama.cpp multiplies the product with an expert's matrix by: its `.scale` (build_lora_mm_id).

    Without it, the same model with its scales folded into the weights would get another plan.
    """
    if not record.name.endswith(EXPERTS):  # a router's scale belongs to its inputs
        return 1.0
    scales = file.by_name.get(f"{record.name.removesuffix('.weight')}.scale")
    if scales is None:
        return 1.0
    return float(expert_weights(file, scales, expert).ravel()[0])


def expert_weights(file: GgufFile, record: TensorRecord, expert: int) -> npt.NDArray[np.float32]:
    """The matrix of one expert, `[n_out, n_in]`; raises UnsupportedModel for a type that gguf cannot read."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    size = record.nbytes // record.shape[0]
    data = file.map(record, expert * size, size).reshape(prod(record.shape[1:-1]), -1)
    try:
        return cast(npt.NDArray[np.float32], dequantize(data, GGMLQuantizationType(record.type)))
    except (NotImplementedError, ValueError) as error:
        raise UnsupportedModel(
            f"{record.name} is {type_name(record.type)}, which the gguf package cannot read; "
            "use a method that calibrates, such as reap"
        ) from error
