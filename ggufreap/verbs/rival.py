"""The honest rival of a pruned file: the unpruned model, quantised until it is as small."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ggufreap.errors import InputError
from ggufreap.files import check_space
from ggufreap.model import AnyModel, name_of
from ggufreap.progress import Progress, silent
from ggufreap.verbs.quantize import quantize

# From large to small; what needs an importance matrix is passed over where there is none.
TYPES = (
    "Q8_0",
    "Q6_K",
    "Q5_K_M",
    "Q5_K_S",
    "Q4_K_M",
    "Q4_K_S",
    "IQ4_XS",
    "Q3_K_L",
    "Q3_K_M",
    "Q3_K_S",
    "IQ3_XXS",
    "Q2_K",
    "IQ2_M",
    "IQ2_S",
    "IQ2_XS",
    "IQ2_XXS",
    "IQ1_M",
    "IQ1_S",
)


@dataclass(frozen=True)
class Rival:
    """A file of the unpruned model in `type`; it lies in a temporary folder that the caller removes."""

    path: Path
    type: str
    nbytes: int


def nearest_type(model: AnyModel, nbytes: int, imatrix: str | Path | None = None) -> tuple[str, int]:
    """The type in which the whole model comes nearest to `nbytes`, and its exact size then.

    Raises InputError where no type can be had, as of a model in MXFP4.
    """
    sizes: Mapping[str, int] = {kind: size for kind in TYPES if (size := _size(model, kind, imatrix)) is not None}
    if not sizes:
        raise InputError(f"{name_of(model)} can be quantised to no smaller type; compare without --compare")
    kind = min(sizes, key=lambda name: abs(sizes[name] - nbytes))
    return kind, sizes[kind]


def _size(model: AnyModel, kind: str, imatrix: str | Path | None) -> int | None:
    try:
        out = Path(tempfile.gettempdir()) / "rival.gguf"
        return quantize(model, out, kind, imatrix=imatrix, allow_requantize=True, dry_run=True).nbytes
    except InputError:  # a type that needs a matrix, or rows that do not fit it
        return None


def make_rival(
    model: AnyModel,
    nbytes: int,
    folder: Path,
    *,
    imatrix: str | Path | None = None,
    threads: int = 0,
    progress: Progress = silent,
) -> Rival:
    """Quantise the whole model in `folder` to the type nearest to `nbytes`; `imatrix` is that of the whole model."""
    kind, size = nearest_type(model, nbytes, imatrix)
    check_space(folder, size)
    path = folder / f"unpruned-{kind}.gguf"
    quantize(model, path, kind, imatrix=imatrix, allow_requantize=True, threads=threads, progress=progress)
    return Rival(path, kind, size)
