"""What llama.cpp takes beside the weights: it tells without allocating them, in a process of its own.

Run as `python -m ggufreap.engine.buffers` with a job as JSON on standard input; answers in JSON.
"""

import ctypes
import json
import os
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ggufreap import process
from ggufreap.engine import placement
from ggufreap.engine.native import bindings
from ggufreap.errors import EngineError, GgufReapError
from ggufreap.options.engine import CACHE_TYPES, FLASH_ATTENTION, EngineSettings

# Field of Buffers -> the lines that tell it. Without allocation the buffer of the KV cache has no size in the log, but
# its tensors have (src/llama-kv-cache.cpp; llama-memory-recurrent.cpp and llama-kv-cache-dsv4.cpp, the state that does
# not grow with the context; llama-context.cpp, sched_reserve and the constructor).
_TOLD = {
    "kv_cache": re.compile(r"llama_kv_cache: size =\s*([\d.]+) MiB"),
    "recurrent": re.compile(r"(?:RS|state) buffer size =\s*([\d.]+) MiB"),
    "compute": re.compile(r"compute buffer size =\s*([\d.]+) MiB"),
    "output": re.compile(r"output buffer size =\s*([\d.]+) MiB"),
}
_NO_MAP = 0  # LLAMA_LOAD_MODE_NONE, include/llama.h
_ERROR = 4  # GGML_LOG_LEVEL_ERROR, ggml/include/ggml.h


@dataclass(frozen=True)
class Buffers:
    """In bytes, on all devices together: the KV cache, the state of recurrent blocks, the largest graph's tensors, and
    the logits of one token."""

    kv_cache: int
    recurrent: int
    compute: int
    output: int

    @property
    def nbytes(self) -> int:
        """All of it."""
        return self.kv_cache + self.recurrent + self.compute + self.output


def buffers(model: Path, settings: EngineSettings) -> Buffers:
    """What a context takes as `settings` say (n_ctx, n_ubatch, n_parallel, the types of the cache, the devices).

    llama.cpp reads the header alone and lays its graphs out as when it fits a model to a device (common/fit.cpp,
    common_get_device_memory_data). Fewer experts need no more than all. Raises EngineError with its reason where it
    does not load the model.
    """
    job = json.dumps({"model": str(model), "settings": asdict(settings)})
    done = process.run(__name__, given=job)
    if not done.ending.ok:
        lines = [line.strip() for line in done.err.splitlines() if line.strip()]
        why = lines[-1] if lines and done.ending.code == 1 else f"it {process.last_words(done.ending, lines)}"
        raise EngineError(f"llama.cpp does not tell how much memory {model} takes: {why}")
    return Buffers(**json.loads(done.out.splitlines()[-1]))


# --- the process itself -----------------------------------------------------------------------------------------------


def _main() -> None:
    job = json.load(sys.stdin)
    llama = bindings()
    lines: list[str] = []
    errors: list[str] = []

    def on_line(level: int, text: bytes, _data: object) -> None:
        line = text.decode(errors="replace").strip()
        (errors if level == _ERROR and line else lines).append(line)

    callback = llama.llama_log_callback(on_line)
    llama.llama_log_set(callback, ctypes.c_void_p(0))
    llama.llama_backend_init()
    if not _opens(llama, job["model"], EngineSettings(**job["settings"])):
        raise EngineError(errors[0] if errors else "it gave no reason")
    sys.stdout.write(json.dumps({name: _sum(pattern, lines) for name, pattern in _TOLD.items()}) + "\n")


def _opens(llama: Any, model: str, settings: EngineSettings) -> bool:
    """Load the model without its weights and open a context; whether both went well."""
    parameters = llama.llama_model_default_params()
    kept = placement.place(parameters, settings, repack=False)
    parameters.no_alloc, parameters.load_mode = True, _NO_MAP
    loaded = llama.llama_model_load_from_file(os.fsencode(model), parameters)
    if not loaded:
        return False
    parameters = llama.llama_context_default_params()
    parameters.n_ctx, parameters.n_ubatch, parameters.n_seq_max = settings.n_ctx, settings.n_ubatch, settings.n_parallel
    type_k, type_v, flash_attn = settings.attention
    parameters.type_k, parameters.type_v = CACHE_TYPES[type_k], CACHE_TYPES[type_v]
    parameters.flash_attn_type = FLASH_ATTENTION[flash_attn]
    parameters.swa_full = False  # as llama.cpp's programs have it (common/common.h), the library's own default is True
    context = llama.llama_init_from_model(loaded, parameters)
    if context:
        llama.llama_free(context)
    llama.llama_model_free(loaded)
    kept.clear()  # C held only its addresses until now
    return bool(context)


def _sum(pattern: re.Pattern[str], lines: list[str]) -> int:
    return int(sum(float(match[1]) for match in map(pattern.search, lines) if match) * 2**20)


if __name__ == "__main__":
    try:
        _main()
    except GgufReapError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
