"""What must hold before hours of quantising: most of it llama.cpp finds out only when it reaches the tensor."""

import re
from collections import Counter
from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt

from ggufreap.container import GgufFile, TensorRecord, nbytes_of, type_name
from ggufreap.container.header import is_quantized
from ggufreap.engine.quantizer import ImatrixData
from ggufreap.errors import InputError, MismatchError
from ggufreap.quantization.request import TENSOR_TYPES, QuantRequest

_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
_TABLES = (*_EMBEDDINGS, "output.weight")
# Source types from which a quantisation loses nothing to speak of.
_SOURCES = {TENSOR_TYPES[name] for name in ("F32", "F16", "BF16", "Q8_0")}
_FP4 = {TENSOR_TYPES[name] for name in ("MXFP4", "NVFP4")}
# Types that cannot do without importance: ggml/src/ggml.c, ggml_quantize_requires_imatrix (it would abort), and
# src/llama-quant.cpp, tensor_requires_imatrix (embeddings and output are exempt).
_NEED = {TENSOR_TYPES[name] for name in ("IQ2_XXS", "IQ2_XS", "IQ1_S")}
_NEED_IN_BLOCKS = _NEED | {TENSOR_TYPES[name] for name in ("IQ3_XXS", "IQ2_S", "IQ1_M")}
# ggml/src/ggml-quants.c: the quantizers of these take importance and do nothing with it.
_IGNORE = {
    TENSOR_TYPES[name] for name in ("F32", "F16", "BF16", "Q8_0", "TQ1_0", "TQ2_0", "Q1_0", "Q2_0", "MXFP4", "NVFP4")
}


def changed(source: GgufFile, types: Mapping[str, int]) -> list[TensorRecord]:
    """The tensors that get another type; all others are copied byte for byte."""
    return [record for record in source.tensors if types[record.name] != record.type]


def check_rows(source: GgufFile, types: Mapping[str, int]) -> None:
    """Raise InputError where rows do not fill whole blocks: llama.cpp falls back, but not from a type it was told."""
    for record in changed(source, types):
        kind, width = types[record.name], record.shape[-1]
        # The smallest power of two that takes any bytes is what the type packs.
        block = next(2**power for power in range(16) if nbytes_of((2**power,), kind))
        if width % block:
            raise InputError(
                f"{record.name} has rows of {width} weights, {type_name(kind)} packs {block} at a time; "
                "choose another type for it"
            )


def check_requantizing(source: GgufFile, types: Mapping[str, int], request: QuantRequest) -> list[str]:
    """The warnings about weights that lose a second time; raises InputError where the request does not allow it."""
    twice = [record for record in changed(source, types) if is_quantized(record.type)]
    fp4 = [record for record in twice if record.type in _FP4]
    others = [record for record in twice if record.type not in _FP4 | _SOURCES]
    if fp4 and not request.requantize_fp4:
        raise InputError(
            f"{_and_more(fp4)} {type_name(fp4[0].type)}, often the type a model was trained in, and would become "
            f"{type_name(types[fp4[0].name])}; keep them with a tensor type such as "
            f"_exps={type_name(fp4[0].type).lower()}, or allow the requantising of FP4"
        )
    if others and not request.allow_requantize:
        raise InputError(
            f"{_and_more(others)} {type_name(others[0].type)} and would become {type_name(types[others[0].name])}; "
            "quantising twice loses twice: start from the F16, BF16 or Q8_0 file, or allow requantising"
        )
    counts = Counter((type_name(record.type), type_name(types[record.name])) for record in fp4 + others)
    return [f"tensors quantised a second time, from {old} to {new}: {n}" for (old, new), n in counts.items()]


def check_imatrix(source: GgufFile, types: Mapping[str, int], file_type: str, imatrix: ImatrixData | None) -> list[str]:
    """The warnings about tensors without importance; raises InputError where a type cannot do without.

    Raises MismatchError when an entry has not `[n_mat * n_in]` values, InputError when a value is not finite.
    """
    given = imatrix or {}
    moved = {record.name for record in changed(source, types)}
    missing = []
    # Without any matrix llama.cpp asks for it even where a tensor is only copied.
    for record in source.tensors:
        name, kind = record.name, types[record.name]
        if (imatrix is not None and name not in moved) or (name in given and _fits(record, given[name])):
            continue
        if _needs(name, kind, file_type) and (name in moved or name not in _TABLES):
            raise InputError(
                f"{name} would become {type_name(kind)}, which takes an importance matrix, and none covers it; "
                "give one made of this model, or choose a larger type"
            )
        if name not in _TABLES and kind not in _IGNORE:
            missing.append(record)
    if imatrix is None:
        return []
    warnings = [f"{_and_more(missing)} quantised without importance"] if missing else []
    strangers = [name for name in given if name not in source.by_name]
    if strangers:
        warnings.append(f"entries of the importance matrix that name no tensor: {len(strangers)}, first {strangers[0]}")
    return warnings


def check_reach(source: GgufFile, types: Mapping[str, int], file_type: str, reached: Collection[str]) -> None:
    """Raise InputError where a type takes importance that no calibration will collect; `reached` are the tensors of
    which it will.
    """
    for record in changed(source, types):
        if record.name not in reached and _needs(record.name, types[record.name], file_type):
            raise InputError(
                f"{record.name} would become {type_name(types[record.name])}, which takes an importance matrix, and "
                "calibration never runs it, as it does not run MTP blocks; choose a larger type for it, give an "
                "--imatrix that has it, or --mtp drop"
            )


def _needs(name: str, kind: int, file_type: str) -> bool:
    """Whether a type cannot do without importance, of this tensor."""
    q2_k_s = {TENSOR_TYPES["Q2_K"]} if file_type == "Q2_K_S" else set()
    return kind in (_NEED if name in _TABLES else _NEED_IN_BLOCKS | q2_k_s)


def _fits(record: TensorRecord, values: npt.NDArray[np.float32]) -> bool:
    n_mat = record.shape[-3] if len(record.shape) > 2 else 1
    if values.size != n_mat * record.shape[-1]:
        if record.name in _EMBEDDINGS:  # llama.cpp passes over it
            return False
        raise MismatchError(
            f"the importance of {record.name} has {values.size} values, the tensor takes {n_mat} x "
            f"{record.shape[-1]}; the matrix is of another model, or was not pruned with this one"
        )
    if not np.isfinite(values).all():
        raise InputError(f"the importance of {record.name} holds NaN or infinite values; make the matrix again")
    return True


def other_warnings(source: GgufFile, request: QuantRequest) -> list[str]:
    """Patterns that match nothing, and strings that llama.cpp will cut."""
    warnings = []
    for pattern, kind in request.tensor_types:
        if not any(re.search(pattern, name) for name in source.by_name):
            warnings.append(f"tensor type {pattern}={kind} matches no tensor")
    for key, entry in source.metadata.items():
        if cut := len(entry.nul_tails):
            warnings.append(f"strings of metadata {key} with a NUL byte: {cut}; llama.cpp drops what follows it")
    return warnings


def _and_more(records: list[TensorRecord]) -> str:
    more = f" and {len(records) - 1} more are" if len(records) > 1 else " is"
    return f"{records[0].name}{more}"
