"""What is made of the pruned file, as one value."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufreap.options.flag import Flag, flagged

AUTO, KEEP = "auto", "keep"

VARIANTS, IMPORTANCE = "quantisation", "importance matrix"


@dataclass(frozen=True)
class Quantisation:
    """What to make of the pruned file, and what guides the quantiser.

    `quant`: `keep` it byte-exact, a type such as Q4_K_M, the variants of a recipe by its name or TOML file, a
    `recipe.Variant`, or `auto`: Q4_K_M and IQ4_XS of a model in 8 bits or more, `keep` for any other. The byte-exact
    file is removed at the end unless it is to `keep`, `keep_intermediate` is set, or the output names it. `imatrix`
    takes the place of the importance matrix that calibration collects, `process_output` collects it of the output head
    too.
    """

    quant: tuple[Any, ...] = flagged(
        (AUTO,),
        Flag(
            ("--quant",),
            VARIANTS,
            "auto (default: Q4_K_M and IQ4_XS, or keep below 8 bits), keep, a type, or a recipe; repeatable",
            str,
            "WHAT",
            many=True,
        ),
    )
    imatrix: str | Path | None = flagged(
        None,
        Flag(("--imatrix",), VARIANTS, "importance matrix of the whole model, instead of collecting it", str, "FILE"),
    )
    process_output: bool = flagged(
        False,
        Flag(("--process-output",), IMPORTANCE, "importance matrix: also of output.weight, which takes longer"),
    )
    keep_intermediate: bool = flagged(
        False, Flag(("--keep-intermediate",), VARIANTS, "do not remove the byte-exact file that was quantised")
    )
    allow_requantize: bool = flagged(
        False, Flag(("--allow-requantize",), VARIANTS, "also from tensors that are quantised already")
    )
