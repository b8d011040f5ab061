"""How many experts a model can keep, and which of these numbers a kernel of llama.cpp is made for."""

from ggufreap.architecture.layout import MoeLayout
from ggufreap.errors import InfeasiblePlan

KNOWN = "CUDA's fused router knows powers of two up to 512, 288 and 576"


def is_friendly(n_expert: int) -> bool:
    """Whether CUDA has one kernel for a router of so many experts: powers of two up to 512, 288 and 576
    (ggml/src/ggml-cuda/topk-moe.cu, ggml_cuda_should_use_topk_moe)."""
    return n_expert in (288, 576) or (n_expert <= 512 and n_expert.bit_count() == 1)


def feasible_counts(layout: MoeLayout, *, friendly: bool = False) -> list[int]:
    """How many experts can stay, all of them first; of the others none but `friendly` ones, if that is asked."""
    counts = []
    for n_keep in range(layout.n_expert, 1, -1):
        try:
            layout.check_keep(n_keep)
        except InfeasiblePlan:
            continue
        if n_keep == layout.n_expert or is_friendly(n_keep) or not friendly:
            counts.append(n_keep)
    return counts


def nearest_friendly(layout: MoeLayout, n_keep: int) -> int | None:
    """The count below all experts that is_friendly and nearest to `n_keep`, of two the larger; None where none is."""
    known = feasible_counts(layout, friendly=True)[1:]
    return min(known, key=lambda count: abs(count - n_keep), default=None)


def friendly_count(layout: MoeLayout, n_keep: int) -> int:
    """`n_keep`, or where that is not friendly the nearest count that is.

    Raises InfeasiblePlan where there is none, or where keeping all experts is nearer still.
    """
    if n_keep == layout.n_expert or is_friendly(n_keep):
        return n_keep
    nearest = nearest_friendly(layout, n_keep)
    if nearest is None:
        raise InfeasiblePlan(f"{KNOWN}, and this model can keep none of these but all; leave --round out")
    if layout.n_expert - n_keep < abs(nearest - n_keep):
        raise InfeasiblePlan(
            f"{KNOWN}: of {layout.n_expert} experts that means {nearest}, which is farther from {n_keep} than all of "
            f"them; ask for it with --keep {nearest}, or leave --round out"
        )
    return nearest
