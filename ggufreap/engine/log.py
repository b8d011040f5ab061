"""llama.cpp's log: kept out of the terminal, passed to `logging`, and asked for the reason of a failure."""

import ctypes
import logging
from collections import deque
from typing import Any

_LOGGER = logging.getLogger("ggufreap.llama_cpp")
_ERROR = 4  # GGML_LOG_LEVEL_ERROR, ggml/include/ggml.h
_errors: deque[str] = deque(maxlen=20)
_installed: list[Any] = []  # llama.cpp holds only the callback's address


def install(llama: Any) -> None:
    """Route the log here; importing llama_cpp, and whoever else uses it, installs a callback too."""
    if not _installed:
        _installed.append(llama.llama_log_callback(_on_line))
    llama.llama_log_set(_installed[0], ctypes.c_void_p(0))
    _errors.clear()


def reason() -> str:
    """What llama.cpp gave as the first error since `install`, in one line."""
    return _errors[0] if _errors else "it gave no reason"


def _on_line(level: int, text: bytes, _data: object) -> None:
    line = text.decode(errors="replace").strip()
    if not line:
        return
    if level == _ERROR:
        _errors.append(line)
    _LOGGER.debug(line)
