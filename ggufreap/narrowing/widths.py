"""How many neurons an expert keeps: what was asked for, as far as rows of quantised weights allow.

A row of down has as many weights as the expert has neurons, and quantised types hold weights in blocks: of 32 (Q8_0,
Q5_0, Q4_0, IQ4_NL, MXFP4) or 256 (K- and I-quants). Rows of other lengths get another type (llama-quant.cpp,
tensor_type_fallback), or none at all.
"""

import math
from dataclasses import dataclass

from ggufreap.errors import InfeasiblePlan
from ggufreap.planning import as_fraction, least_ratio

BLOCK = 32  # of the types that every width should allow, so that the file can be quantised later


@dataclass(frozen=True)
class Width:
    """`width` of `source_width` neurons stay, a multiple of `block`; `reason` says why it is not what was asked for."""

    width: int
    source_width: int
    block: int
    reason: str


def width_to_keep(source_width: int, ratio: str | float, block: int = BLOCK) -> Width:
    """All but the fraction `ratio` of the neurons, rounded up so that no more are removed than were asked for.

    `block` is that of the type that down is to have. If experts are too narrow for it, blocks of 32 are taken and the
    type has to give way. Raises InfeasiblePlan where nothing would be removed, InputError for a ratio outside [0, 1).
    """
    wanted = source_width * (1 - as_fraction(str(ratio), "neurons"))
    for size in dict.fromkeys((max(block, BLOCK), BLOCK)):
        width = math.ceil(wanted / size) * size
        if width < source_width:
            return Width(width, source_width, size, _reason(wanted == width, size, block))
    widest = (source_width - 1) // BLOCK * BLOCK
    if not widest:
        raise InfeasiblePlan(
            f"experts of {source_width} neurons cannot be narrower: quantised weights come in blocks of {BLOCK}, and "
            "fewer blocks than one there are not; remove experts instead"
        )
    raise InfeasiblePlan(
        f"a ratio of {ratio} of {source_width} neurons is less than a block of {BLOCK}: nothing would be removed; use "
        f"{least_ratio(source_width - widest, source_width)} or more"
    )


def _reason(exact: bool, size: int, block: int) -> str:
    if size < block:
        return (
            f"rounded up to a multiple of {size}: of {block}, as the type of down has them, there are too few in an "
            "expert, so that type gives way"
        )
    return "" if exact else f"rounded up to a multiple of {size}, the weights in a block of down's rows"
