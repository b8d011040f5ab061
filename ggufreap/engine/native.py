"""What llama-cpp-python does not declare: the ggml tensor struct and the calls to read and write tensors.

The struct is ours to keep in step (ggml/include/ggml.h, struct ggml_tensor), so it is checked against the running
library before anything else: tensors that ggml itself made must read back field by field.
"""

import ctypes
import importlib.metadata
import os
import sys
from collections.abc import Callable, Sequence
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ggufreap import activity
from ggufreap.errors import EngineError
from ggufreap.process import without_folders

_DTYPES = {0: np.float32, 26: np.int32}  # ggml type ids of what the watched nodes hold
OP_OFFSET, FLAGS_OFFSET, NAME_OFFSET = 80, 148, 256
COMPUTE = 16  # GGML_TENSOR_FLAG_COMPUTE, ggml/include/ggml.h
_VIEWS = ("NONE", "RESHAPE", "VIEW", "PERMUTE", "TRANSPOSE")  # ggml-impl.h, ggml_op_is_empty


class GgmlTensor(ctypes.Structure):
    """struct ggml_tensor of ggml/include/ggml.h, 64-bit."""

    _fields_ = (
        ("type", ctypes.c_int32),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int32),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
        ("extra", ctypes.c_void_p),
        ("padding", ctypes.c_char * 8),
    )


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


def bindings() -> Any:
    """The low-level module of llama-cpp-python, self-checked; raises EngineError when it cannot be used."""
    _base()  # the check comes first: nothing may run on a struct that does not match
    from llama_cpp import llama_cpp

    return llama_cpp


@cache
def _base() -> Any:
    # A failed assertion would otherwise start a debugger for its backtrace (ggml/src/ggml.c, ggml_print_backtrace).
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    try:
        library = loaded_with_llama("ggml-base")
    except (ImportError, OSError, RuntimeError, FileNotFoundError) as error:
        raise EngineError(
            f"llama-cpp-python does not load ({error}); reinstall it: pip install --force-reinstall llama-cpp-python"
        ) from None
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    declare(
        library,
        ("ggml_init", [_InitParams], pointer),
        ("ggml_free", [pointer], None),
        ("ggml_new_tensor_4d", [pointer, ctypes.c_int, *[ctypes.c_int64] * 4], pointer),
        ("ggml_view_2d", [pointer, pointer, ctypes.c_int64, ctypes.c_int64, size, size], pointer),
        ("ggml_mul", [pointer, pointer, pointer], pointer),
        ("ggml_set_name", [pointer, ctypes.c_char_p], pointer),
        ("ggml_get_data", [pointer], pointer),
        ("ggml_new_graph", [pointer], pointer),
        ("ggml_build_forward_expand", [pointer, pointer], None),
        ("ggml_nbytes", [pointer], size),
        ("ggml_op_name", [ctypes.c_int], ctypes.c_char_p),
        ("ggml_tensor_overhead", [], size),
        ("ggml_set_abort_callback", [pointer], pointer),
        ("ggml_backend_buffer_is_host", [pointer], ctypes.c_bool),
        ("ggml_backend_tensor_get", [pointer, pointer, size, size], None),
        ("ggml_backend_tensor_set", [pointer, pointer, size, size], None),
    )
    _self_check(library)
    library.ggml_set_abort_callback(_ABORT_CALLBACK)
    return library


def declare(library: Any, *functions: tuple[str, list[Any], Any]) -> None:
    """Declare functions, (name, arguments, result), of a library; raises EngineError where it lacks one."""
    for name, arguments, result in functions:
        try:
            function = getattr(library, name)
        except AttributeError:
            raise _mismatch(f"it has no function {name}") from None
        function.argtypes, function.restype = arguments, result


def loaded_with_llama(name: str) -> Any:
    """The very library `name` that libllama uses, found among its dependencies.

    Wheels hold copies where a build had links, so the file of that name may be another one: with state of its own, in
    which an abort callback is never called. Windows knows libraries by name alone, and finds nothing in dependencies.
    """
    from llama_cpp import llama_cpp
    from llama_cpp._ctypes_extensions import load_shared_library

    if os.name == "posix":
        return ctypes.CDLL(llama_cpp._lib._name)
    return load_shared_library(name, Path(llama_cpp.__file__).parent / "lib")


def _on_abort(message: bytes) -> None:
    """llama.cpp gave up (GGML_ASSERT); the process ends anyway, so at least with one line and exit code 1."""
    assertion = without_folders(message.decode(errors="replace").strip())
    if not activity.gave_up(assertion):
        sys.stderr.write(f"ggufreap: llama.cpp stopped: {assertion}\n")
        sys.stderr.flush()
    os._exit(1)


_ABORT_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(_on_abort)


def _mismatch(fact: str) -> EngineError:
    version = importlib.metadata.version("llama-cpp-python")
    return EngineError(
        f"llama-cpp-python {version} does not match this ggufreap: {fact}; "
        "install the version it was checked with: pip install 'llama-cpp-python==0.3.36'"
    )


def _self_check(library: Any) -> None:
    """Let ggml make tensors, an operation and a view, and read every field that the engine relies on."""
    context = library.ggml_init(_InitParams(1 << 20, None, False))
    try:
        first = library.ggml_new_tensor_4d(context, 26, 3, 5, 7, 11)
        second = library.ggml_new_tensor_4d(context, 26, 3, 5, 7, 11)
        product = library.ggml_mul(context, first, second)
        library.ggml_set_name(product, b"product-7")
        view = library.ggml_view_2d(context, first, 2, 3, 12, 24)
        library.ggml_build_forward_expand(library.ggml_new_graph(context), product)
        a, p, v = tensor_at(first), tensor_at(product), tensor_at(view)
        fields = {
            "type": (a.type, 26),
            "ne": (tuple(a.ne), (3, 5, 7, 11)),
            "nb": (tuple(a.nb), (4, 12, 60, 420)),
            "data": (a.data, library.ggml_get_data(first)),
            "name": (p.name, b"product-7"),
            "op": (library.ggml_op_name(p.op), b"MUL"),
            "flags": ((p.flags, v.flags), (COMPUTE, 0)),
            "src": (tuple(p.src)[:3], (first, second, None)),
            "view_src": (v.view_src, first),
            "view_offs": (v.view_offs, 24),
            "view nb": (tuple(v.nb)[:2], (4, 12)),
            "view data": (v.data, (a.data or 0) + 24),
            # ggml_tensor_overhead is the struct and its 32-byte ggml_object.
            "size": (ctypes.sizeof(GgmlTensor) + 32, library.ggml_tensor_overhead()),
        }
    finally:
        library.ggml_free(context)
    for field, (read, expected) in fields.items():
        if read != expected:
            raise _mismatch(f"field {field} of struct ggml_tensor reads {read!r}, expected {expected!r}")


def tensor_at(pointer: int) -> GgmlTensor:
    """The struct at an address that ggml handed out."""
    return GgmlTensor.from_address(pointer)


def name_at(pointer: int) -> bytes:
    """A node's name; like its operation, read for every node of the graph without building a struct."""
    return ctypes.string_at(pointer + NAME_OFFSET)


def origin_at(pointer: int) -> bytes:
    """The name of a node's input, also where it is a copy for another device, called `CUDA0#ffn_moe_down-3#0`.

    Only inputs are copied, nodes keep their names (ggml-backend.cpp, ggml_backend_sched_split_graph); the name's end
    may be cut off, at 63 bytes.
    """
    name = name_at(pointer)
    return name.split(b"#")[1] if b"#" in name else name


def op_at(pointer: int) -> int:
    """A node's operation."""
    return ctypes.c_int32.from_address(pointer + OP_OFFSET).value


def is_computed(pointer: int) -> bool:
    """Whether the graph computes a node at all (ggml.c, ggml_visit_parents_graph, leaves unselected branches out)."""
    return bool(ctypes.c_int32.from_address(pointer + FLAGS_OFFSET).value & COMPUTE)


def set_computed(pointer: int, computed: bool) -> None:
    """Let the graph compute a node, or pass it over."""
    flags = ctypes.c_int32.from_address(pointer + FLAGS_OFFSET)
    flags.value = flags.value | COMPUTE if computed else flags.value & ~COMPUTE


def is_view_op(code: int) -> bool:
    """Whether an operation only looks at its input in another way."""
    return code in _view_codes()


@cache
def _view_codes() -> frozenset[int]:
    return frozenset(map(op_code, _VIEWS))


@cache
def op_code(name: str) -> int:
    """The number of an operation in this build, by ggml's own name of it, which must exist."""
    base = _base()
    return next(code for code in count() if base.ggml_op_name(code) == name.encode())


class TensorReader:
    """Reads and patches tensors from the eval callback, wherever their buffer lives.

    On the CPU an array is a view of ggml's own memory, valid only until the callback returns; from a device it is
    copied into the one buffer that all reads share, so it is valid only until the next one. Whatever is to last longer
    is copied by the caller.
    """

    def __init__(self) -> None:
        self._base = _base()
        self._staging = np.empty(0, np.uint8)

    def read(self, pointer: int) -> npt.NDArray[Any]:
        """The tensor with its true strides, always `[ne3, ne2, ne1, ne0]`."""
        tensor = tensor_at(pointer)
        return self._array(tensor, self._bytes(pointer, tensor))

    def fill(self, pointer: int, columns: Sequence[npt.NDArray[np.intp]], value: float) -> None:
        """Set columns of every row, in place; the rows are in as many equal parts as there are `columns`, in order."""

        def change(array: npt.NDArray[Any]) -> None:
            count = array.shape[-2] // len(columns)
            for part, of_part in enumerate(columns):
                array[..., part * count : (part + 1) * count, of_part] = value

        self._change(pointer, change)

    def write(self, pointer: int, values: npt.ArrayLike) -> None:
        """Put `values` in place of the whole tensor's."""

        def change(array: npt.NDArray[Any]) -> None:
            array[...] = values

        self._change(pointer, change)

    def _change(self, pointer: int, change: Callable[[npt.NDArray[Any]], None]) -> None:
        tensor = tensor_at(pointer)
        data = self._bytes(pointer, tensor)
        change(self._array(tensor, data))
        if not self._is_host(tensor):
            self._base.ggml_backend_tensor_set(pointer, data.ctypes.data, 0, data.nbytes)

    def _is_host(self, tensor: GgmlTensor) -> bool:
        buffer = tensor_at(tensor.view_src).buffer if tensor.view_src else tensor.buffer
        return bool(self._base.ggml_backend_buffer_is_host(buffer))

    def _bytes(self, pointer: int, tensor: GgmlTensor) -> npt.NDArray[np.uint8]:
        nbytes = self._base.ggml_nbytes(pointer)
        if self._is_host(tensor):
            return np.frombuffer((ctypes.c_uint8 * nbytes).from_address(tensor.data), np.uint8)
        if nbytes > self._staging.nbytes:
            self._staging = np.empty(nbytes, np.uint8)
        staging = self._staging[:nbytes]
        self._base.ggml_backend_tensor_get(pointer, staging.ctypes.data, 0, nbytes)
        return staging

    def _array(self, tensor: GgmlTensor, data: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        if tensor.type not in _DTYPES:
            raise EngineError(f"node {tensor.name.decode()} has ggml type {tensor.type}; F32 or I32 was expected")
        shape, strides = tuple(tensor.ne)[::-1], tuple(tensor.nb)[::-1]
        return np.ndarray(shape, _DTYPES[tensor.type], data.data, strides=strides)
