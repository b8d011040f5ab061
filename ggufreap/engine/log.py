"""llama.cpp's log: kept out of the terminal, passed to `logging`, and asked for what it alone tells."""

import ctypes
import logging
import re
from collections import deque
from functools import cache
from typing import Any

_LOGGER = logging.getLogger("ggufreap.llama_cpp")
_ERROR = 4  # GGML_LOG_LEVEL_ERROR, ggml/include/ggml.h
# Where the weights went (src/llama-model.cpp, load_tensors; src/llama-model-loader.cpp, create_tensor; llama-mmap.cpp).
_OF_PLACEMENT = re.compile("model buffer size|buffer type overridden|failed to mlock")
# What a context takes (src/llama-context.cpp, sched_reserve; llama-kv-cache.cpp; llama-memory-recurrent.cpp).
_OF_CONTEXT = re.compile(r"(?:compute|KV|RS) buffer size =\s*([\d.]+) MiB")
_errors: deque[str] = deque(maxlen=20)
_placement: list[str] = []
_context: list[float] = []
_installed: list[Any] = []  # llama.cpp holds only the callback's address


def install(llama: Any) -> None:
    """Route the log here; importing llama_cpp, and whoever else uses it, installs a callback too."""
    if not _installed:
        _installed.append(llama.llama_log_callback(_on_line))
    llama.llama_log_set(_installed[0], ctypes.c_void_p(0))
    _errors.clear()
    _placement.clear()
    _context.clear()


def reason() -> str:
    """What llama.cpp gave as the first error since `install`, in one line."""
    return _errors[0] if _errors else "it gave no reason"


def placement() -> list[str]:
    """What llama.cpp told since `install` of where the weights went."""
    return list(_placement)


def context_nbytes() -> int:
    """What llama.cpp told since `install` that it took for a context, beside weights and logits."""
    return int(sum(_context) * 2**20)


@cache
def once(level: int, message: str) -> None:
    """Log a note, the first time that it is true: a verb may load a model many times."""
    logging.getLogger(__name__).log(level, "%s", message)


def _on_line(level: int, text: bytes, _data: object) -> None:
    line = text.decode(errors="replace").strip()
    if not line:
        return
    if level == _ERROR:
        _errors.append(line)
    if match := _OF_CONTEXT.search(line):
        _context.append(float(match[1]))
    if _OF_PLACEMENT.search(line):
        _placement.append(line)
    _LOGGER.debug(line)
