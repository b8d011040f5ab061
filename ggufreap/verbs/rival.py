"""The honest rival of a pruned file: the unpruned model, quantised until it is as small."""

from dataclasses import dataclass
from pathlib import Path

from ggufreap.files import check_space
from ggufreap.model import AnyModel, file_of
from ggufreap.progress import Progress, silent
from ggufreap.quantization import QuantRequest
from ggufreap.sizing import Sizer, nearest_type
from ggufreap.verbs.quantize import guide_of, make


@dataclass(frozen=True)
class Rival:
    """A file of the unpruned model in `type`; it lies in a temporary folder that the caller removes."""

    path: Path
    type: str
    nbytes: int


def make_rival(
    model: AnyModel,
    nbytes: int,
    folder: Path,
    *,
    imatrix: str | Path | None = None,
    threads: int = 0,
    progress: Progress = silent,
) -> Rival:
    """Quantise the whole model in `folder` to the type nearest to `nbytes`; `imatrix` is that of the whole model.

    Raises InputError where no type can be had, as of a model in MXFP4.
    """
    source = file_of(model)
    guide = guide_of(imatrix, source)
    with Sizer(source) as sizer:
        kind, size = nearest_type(sizer, nbytes, imatrix=guide.values, metadata=guide.metadata)
    check_space(folder, size)
    path = folder / f"unpruned-{kind}.gguf"
    make(source, path, QuantRequest(kind, allow_requantize=True, n_threads=threads), guide, progress)
    return Rival(path, kind, size)
