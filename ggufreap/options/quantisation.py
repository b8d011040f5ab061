"""What is made of the pruned file, and what the quantiser is told, as values."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufreap.options.flag import Flag, Options, check, flagged, flags_of, whole

AUTO, KEEP = "auto", "keep"

VARIANTS, IMPORTANCE = "quantisation", "importance matrix"
QUANTISER, TYPES = "quantiser", "types"  # of a recipe's variants, the types stand in the recipe
_AGAIN = "also from tensors that are quantised already"


@dataclass(frozen=True)
class Quantisation(Options):
    """What to make of the pruned file, and what guides the quantiser.

    `quant`: `keep` it byte-exact, a type such as Q4_K_M, the variants of a recipe by its name or TOML file, a
    `recipe.Variant`, or `auto`: Q4_K_M and IQ4_XS of a model in 8 bits or more, `keep` for any other. The byte-exact
    file is removed at the end unless it is to `keep`, `keep_intermediate` is set, or the output names it. `imatrix`
    takes the place of the importance matrix that calibration collects, `process_output` collects it of the output head
    too; `imatrix_dat`: that of the pruned model is also written in the format of before July 2025.
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
    allow_requantize: bool = flagged(False, Flag(("--allow-requantize",), VARIANTS, _AGAIN))
    imatrix_dat: bool = flagged(
        False,
        Flag(("--imatrix-dat",), VARIANTS, "also write the pruned model's importance matrix as .dat, for old programs"),
    )


@dataclass(frozen=True)
class Quantiser(Options):
    """What llama.cpp's quantiser is told beside the type, in the words of llama-quantize.

    `imatrix`: of this very model; `tensor_types`: `REGEX=TYPE`, the first that is found in a tensor's name wins;
    `keep_split`: as many shards as the model has; `n_threads` 0: all cores.
    """

    imatrix: str | Path | None = flagged(
        None, Flag(("--imatrix",), QUANTISER, "importance matrix of this model, GGUF or .dat", str, "FILE")
    )
    tensor_types: tuple[str, ...] = flagged(
        (),
        Flag(
            ("--tensor-type",),
            TYPES,
            "type of some tensors; repeatable",
            str,
            "REGEX=TYPE",
            str,
            many=True,
            recipe="tensor_types",
        ),
    )
    token_embedding_type: str | None = flagged(
        None, Flag(("--token-embedding-type",), TYPES, "type of the token embedding", str, "TYPE", str)
    )
    output_tensor_type: str | None = flagged(
        None, Flag(("--output-tensor-type",), TYPES, "type of the output tensor", str, "TYPE", str)
    )
    pure: bool = flagged(False, Flag(("--pure",), TYPES, "the same type for all tensors"))
    allow_requantize: bool = flagged(False, Flag(("--allow-requantize",), QUANTISER, _AGAIN))
    keep_split: bool = flagged(False, Flag(("--keep-split",), QUANTISER, "as many shards as the model has"))
    n_threads: int = flagged(0, Flag(("-t", "--threads"), QUANTISER, "CPU threads (all cores)", whole(1), "N", int))

    def __post_init__(self) -> None:
        check(self)

    @property
    def types(self) -> list[str]:
        """The flags of what was said of types."""
        return [flag.names[0] for name, flag in flags_of(self).items() if flag.group == TYPES and getattr(self, name)]
