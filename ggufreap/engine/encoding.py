"""Rows of weights in a ggml type and back, without a model: ggml's own quantiser, the one that llama-quantize calls."""

import ctypes
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Kind
from gguf import quants

from ggufreap.container import nbytes_of, type_name
from ggufreap.engine.native import declare, loaded_with_llama
from ggufreap.errors import NumericFailure, UnsupportedModel
from ggufreap.options.engine import EngineSettings

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

PLAIN = (Kind.F32, Kind.F16, Kind.BF16)


def needs_importance(kind: int) -> bool:
    """Whether ggml quantises to this type with an importance matrix alone."""
    return kind not in PLAIN and bool(_library().ggml_quantize_requires_imatrix(kind))


def encode_rows(values: Floats, kind: int, importance: Floats | None = None) -> Bytes:
    """The bytes `[n_rows, row bytes]` of `values` `[n_rows, n]` in a ggml type.

    `importance` `[n]`: mean squares of the inputs, as ggml_quantize_chunk takes them (ggml/src/ggml.c). Raises
    NumericFailure for what the type cannot hold, UnsupportedModel where it does not do without importance.
    """
    values = np.ascontiguousarray(values, np.float32)
    if not np.isfinite(values).all():
        raise NumericFailure(f"a weight that is to be written as {type_name(kind)} is NaN or infinite")
    if kind in PLAIN:
        with np.errstate(over="ignore"):
            data = quants.quantize(values, Kind(kind))
        if kind == Kind.F16 and not np.isfinite(data.view(np.float16)).all():
            raise NumericFailure(f"a weight of {np.abs(values).max():.3g} is beyond what F16 holds")
        return np.ascontiguousarray(data).view(np.uint8).reshape(len(values), -1)
    rows, width = values.shape
    if importance is None and needs_importance(kind):
        raise UnsupportedModel(f"{type_name(kind)} cannot be written without an importance matrix; give one")
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    out = np.empty((rows, nbytes_of((width,), kind)), np.uint8)
    quantise, pointer = _library().ggml_quantize_chunk, None if weights is None else weights.ctypes.data

    def part(start: int, stop: int) -> int:
        first, count = start * width, stop - start
        return int(quantise(kind, values.ctypes.data, out.ctypes.data, first, count, width, pointer))

    # Rows do not depend on each other, and the call gives up Python's lock.
    bounds = np.linspace(0, rows, min(rows, EngineSettings().cpu_threads) + 1).astype(int).tolist()
    with ThreadPoolExecutor(len(bounds)) as pool:
        written = sum(pool.map(part, bounds, bounds[1:]))
    if written != out.nbytes:
        raise UnsupportedModel(
            f"ggml writes {written} bytes for rows of {width} in {type_name(kind)}, not {out.nbytes}"
        )
    return out


def decode_rows(data: Bytes, kind: int, width: int) -> Floats:
    """The weights `[n_rows, width]` in bytes of a ggml type; raises UnsupportedModel for one that gguf cannot read."""
    try:
        values = quants.dequantize(data.reshape(-1, nbytes_of((width,), kind)), Kind(kind))
    except (NotImplementedError, ValueError) as error:
        raise UnsupportedModel(
            f"the gguf package cannot read weights in {type_name(kind)}; upgrade it, or use another type of the model"
        ) from error
    return np.asarray(values, np.float32).reshape(-1, width)


@cache
def _library() -> Any:
    library = loaded_with_llama("ggml-base")
    kind, pointer, count = ctypes.c_int, ctypes.c_void_p, ctypes.c_int64
    declare(
        library,
        ("ggml_quantize_requires_imatrix", [kind], ctypes.c_bool),
        ("ggml_quantize_chunk", [kind, pointer, pointer, count, count, count, pointer], ctypes.c_size_t),
    )
    return library
