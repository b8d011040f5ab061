"""The few llama.cpp calls that the builders need and that check them.

Independent of the package under test, but for the question which buffers this machine survives.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp._ctypes_extensions import load_shared_library

from ggufreap.engine.machine import machine

Shapes = dict[str, tuple[int, ...]]

# Architectures without an output head: their result is the final hidden state.
HEADLESS = {"nomic-bert-moe", "llama-embed"}

_F32, _ERROR, _MTP_CONTEXT = 0, 4, 1


class _TensorHead(ctypes.Structure):
    """The start of `struct ggml_tensor`, as far as its sizes."""

    _fields_ = (("type", ctypes.c_int32), ("buffer", ctypes.c_void_p), ("ne", ctypes.c_int64 * 4))


class _GgufInit(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


@cache
def ggml_base() -> ctypes.CDLL:
    """libggml-base of the installed llama-cpp-python, with the signatures used here."""
    lib: ctypes.CDLL = load_shared_library("ggml-base", Path(llama_cpp.__file__).parent / "lib")
    kind, pointer, count = ctypes.c_int, ctypes.c_void_p, ctypes.c_int64
    signatures: dict[str, tuple[list[Any], Any]] = {
        "gguf_init_from_file": ([ctypes.c_char_p, _GgufInit], pointer),
        "gguf_free": ([pointer], None),
        "ggml_get_name": ([pointer], ctypes.c_char_p),
        "ggml_row_size": ([kind, count], ctypes.c_size_t),
        "ggml_quantize_requires_imatrix": ([kind], ctypes.c_bool),
        "ggml_quantize_chunk": ([kind, pointer, pointer, count, count, count, pointer], ctypes.c_size_t),
    }
    for name, (arguments, result) in signatures.items():
        function = getattr(lib, name)
        function.argtypes, function.restype = arguments, result
    return lib


@cache
def _start() -> Any:
    """Start llama.cpp once and show only errors; the callback must stay referenced for the life of the process."""

    def log(level: int, text: bytes, _: int) -> None:
        if level == _ERROR:
            print(text.decode("utf-8", "replace"), end="", flush=True)

    callback = llama_cpp.llama_log_callback(log)
    llama_cpp.llama_backend_init()
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    return callback


def quantize_rows(array: np.ndarray, kind: int) -> np.ndarray:
    """Bytes of `array` [..., row] in a ggml type, for the types that gguf-py can read but not write."""
    lib = ggml_base()
    rows = np.ascontiguousarray(array, dtype=np.float32)
    width, n_rows = rows.shape[-1], rows.size // rows.shape[-1]
    out = np.empty((*rows.shape[:-1], lib.ggml_row_size(kind, width)), dtype=np.uint8)
    importance = np.ones(width, dtype=np.float32)
    importance_data = importance.ctypes.data if lib.ggml_quantize_requires_imatrix(kind) else None
    written = lib.ggml_quantize_chunk(kind, rows.ctypes.data, out.ctypes.data, 0, n_rows, width, importance_data)
    assert written == out.nbytes, (written, out.nbytes)
    return out


def _model_params(load_mtp: bool) -> Any:
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers, params.load_mtp = 0, load_mtp
    params.use_extra_bufts = machine().extra_buffers
    return params


def wanted_tensors(header: Path, *, load_mtp: bool = False) -> Shapes:
    """Tensors (numpy shapes) that llama.cpp creates for the metadata of `header`, a GGUF file without tensors."""
    _start()
    lib, shapes = ggml_base(), {}

    def record(tensor: int, _: int) -> None:
        ne = list(_TensorHead.from_address(tensor).ne)
        while len(ne) > 1 and ne[-1] == 1:
            ne.pop()
        shapes[lib.ggml_get_name(tensor).decode()] = tuple(reversed(ne))

    context = lib.gguf_init_from_file(str(header).encode(), _GgufInit(no_alloc=True, ctx=None))
    callback = llama_cpp.llama_model_set_tensor_data_t(record)
    model = llama_cpp.llama_model_init_from_user(context, callback, None, _model_params(load_mtp))
    lib.gguf_free(context)
    if not model:
        raise RuntimeError(f"llama.cpp refuses the metadata of {header}")
    llama_cpp.llama_model_free(model)
    return shapes


def _load(path: Path, *, load_mtp: bool = False) -> Any:
    _start()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), _model_params(load_mtp))
    if not model:
        raise RuntimeError(f"llama.cpp cannot load {path}")
    return model


def _is_headless(model: Any) -> bool:
    text = ctypes.create_string_buffer(64)
    llama_cpp.llama_model_meta_val_str(model, b"general.architecture", text, len(text))
    return text.value.decode() in HEADLESS


def _context(model: Any, n_tokens: int, *, mtp: bool) -> Any:
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = max(n_tokens, 64)
    params.n_threads = params.n_threads_batch = 1
    # Everything in F32: half precision in the cache or in flash attention turns the last bit of a sum into 1e-4.
    params.type_k = params.type_v = _F32
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if _is_headless(model):
        params.embeddings = True
        params.pooling_type = llama_cpp.LLAMA_POOLING_TYPE_NONE
    if mtp:
        params.ctx_type = _MTP_CONTEXT
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        raise RuntimeError("llama.cpp makes no context for this model")
    return context


def _decode(context: Any, tokens: Sequence[int], hidden: np.ndarray | None = None) -> None:
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.logits[i] = token, i, 1
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
    if hidden is not None:
        batch.embd = hidden.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    code = llama_cpp.llama_decode(context, batch)
    batch.embd = None  # Owned by numpy, so llama_batch_free must not see it.
    llama_cpp.llama_batch_free(batch)
    if code:
        raise RuntimeError(f"llama_decode returned {code}")


def outputs(path: Path, tokens: Sequence[int], *, load_mtp: bool = False) -> np.ndarray:
    """Logits [n_tokens, n_vocab] of one sequence, or the final hidden states of a model without output head."""
    model = _load(path, load_mtp=load_mtp)
    context = _context(model, len(tokens), mtp=False)
    _decode(context, tokens)
    if _is_headless(model):
        width, data = llama_cpp.llama_model_n_embd(model), llama_cpp.llama_get_embeddings(context)
    else:
        vocab = llama_cpp.llama_model_get_vocab(model)
        width, data = llama_cpp.llama_vocab_n_tokens(vocab), llama_cpp.llama_get_logits(context)
    result = np.ctypeslib.as_array(data, shape=(len(tokens), width)).copy()
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return result


def mtp_outputs(path: Path, tokens: Sequence[int], *, seed: int = 0) -> np.ndarray:
    """Logits [n_tokens, n_vocab] of the MTP block alone, fed with random hidden states in place of the trunk's."""
    model = _load(path, load_mtp=True)
    context = _context(model, len(tokens), mtp=True)
    width = llama_cpp.llama_model_n_embd_out(model)
    hidden = np.random.default_rng(seed).standard_normal((len(tokens), width), dtype=np.float32)
    _decode(context, tokens, hidden)
    n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    result = np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), shape=(len(tokens), n_vocab)).copy()
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return result


def resave(path: Path, out: Path) -> Path:
    """Write `path` again through llama.cpp's own saver, which spells out every key that it knows, zeros included."""
    model = _load(path)
    llama_cpp.llama_model_save_to_file(model, str(out).encode())
    llama_cpp.llama_model_free(model)
    return out
