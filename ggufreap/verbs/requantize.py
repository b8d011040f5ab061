"""Requantising with llama.cpp's own quantiser, guided by an importance matrix."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ggufreap import imatrix as matrices
from ggufreap.architecture.layout import bind
from ggufreap.container import GgufFile, open_gguf
from ggufreap.errors import UnsupportedModel
from ggufreap.imatrix import Filled, Imatrix
from ggufreap.progress import Progress, silent
from ggufreap.quantization import Quantized, QuantRequest, imatrix_metadata, quantize_file
from ggufreap.rewriting.metadata import EXPERTS_BEFORE


def quantize(
    model: str | Path,
    out: str | Path,
    type: str,
    *,
    imatrix: str | Path | None = None,
    tensor_types: Sequence[tuple[str, str]] = (),
    token_embedding_type: str | None = None,
    output_tensor_type: str | None = None,
    pure: bool = False,
    keep_split: bool = False,
    allow_requantize: bool = False,
    threads: int = 0,
    dry_run: bool = False,
    progress: Progress = silent,
) -> Quantized:
    """Quantise `model` to `type` (Q4_K_M, IQ4_XS ...) at `out`, or with `dry_run` tell exactly what it would be.

    `imatrix` is a GGUF or .dat importance matrix of this very model: for a pruned model one that was sliced with it.
    A model that ggufreap pruned gets the types that it would have had before, where llama.cpp's mix counts experts.
    """
    source = open_gguf(model)
    metadata: Mapping[str, str | int] = {}
    importance: dict[str, npt.NDArray[np.float32]] | None = None
    filled: tuple[Filled, ...] = ()
    if imatrix is not None:
        matrix = matrices.load(imatrix)
        importance, filled = importance_of(matrix, source)
        dataset = matrix.datasets[0] if matrix.datasets else ""
        metadata = imatrix_metadata(Path(imatrix).name, len(matrix.entries), matrix.chunk_count, dataset)
    request = QuantRequest(
        type,
        tuple(tensor_types),
        token_embedding_type,
        output_tensor_type,
        pure,
        keep_split,
        threads,
        allow_requantize,
        n_expert_before=source.get(EXPERTS_BEFORE),
        metadata=metadata,
    )
    made = quantize_file(source, Path(out), request, imatrix=importance, dry_run=dry_run, progress=progress)
    return replace(made, warnings=made.warnings + tuple(map(gap_note, filled)))


def gap_note(gap: Filled) -> str:
    """What was done for experts without data, in one line."""
    rule = f"took the mean of the other {gap.n_sources}" if gap.n_sources else "are weighted evenly"
    return f"{gap.weight}: experts without data in the importance matrix: {len(gap.experts)}; they {rule}"


def importance_of(matrix: Imatrix, source: GgufFile) -> tuple[dict[str, npt.NDArray[np.float32]], tuple[Filled, ...]]:
    """What the quantiser takes: mean squares by tensor; and which experts had no data and were filled by rule."""
    with suppress(UnsupportedModel):  # what has no experts, or cannot be pruned, can be quantised all the same
        matrices.check(matrix, source, bind(source))
    complete, filled = matrices.filled(matrix)
    return {name: matrices.means(entry) for name, entry in complete.entries.items()}, filled
