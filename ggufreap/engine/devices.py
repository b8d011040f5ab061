"""What this llama.cpp is and where it can compute, asked in a process of its own: loading it may be what fails.

Run as `python -m ggufreap.engine.devices`; answers in JSON.
"""

import ctypes
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ggufreap import process
from ggufreap.engine.native import bindings
from ggufreap.errors import EngineError, GgufReapError

# enum ggml_backend_dev_type, ggml/include/ggml-backend.h
KINDS = ("CPU", "GPU", "integrated GPU", "accelerator", "several devices as one")


@dataclass(frozen=True)
class Device:
    """Something that ggml computes on; memory in bytes, as the driver tells it."""

    name: str
    description: str
    kind: str
    free: int
    total: int

    @property
    def is_gpu(self) -> bool:
        """Whether layers can be put there with -ngl."""
        return "GPU" in self.kind


@dataclass(frozen=True)
class Build:
    """The llama.cpp inside llama-cpp-python; `system` is its own line of what it was compiled for."""

    version: str
    system: str
    offload: bool
    devices: tuple[Device, ...]


def build() -> Build:
    """Ask llama.cpp; raises EngineError when it does not load, does not match, or dies."""
    done = process.run(__name__)
    if not done.ending.ok:
        lines = [line.strip() for line in done.err.splitlines() if line.strip()]
        raise EngineError(lines[-1] if lines else f"llama.cpp {process.last_words(done.ending)}")
    told = json.loads(done.out.splitlines()[-1])
    return Build(**told | {"devices": tuple(Device(**device) for device in told["devices"])})


def _library(name: str) -> Any:
    import llama_cpp
    from llama_cpp._ctypes_extensions import load_shared_library

    return load_shared_library(name, Path(llama_cpp.__file__).parent / "lib")


def _functions() -> dict[str, Any]:
    pointer, size, text = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p
    functions = {}
    for library, declared in (
        ("ggml", (("ggml_backend_dev_count", [], size), ("ggml_backend_dev_get", [size], pointer))),
        (
            "ggml-base",
            (
                ("ggml_commit", [], text),
                ("ggml_backend_dev_name", [pointer], text),
                ("ggml_backend_dev_description", [pointer], text),
                ("ggml_backend_dev_type", [pointer], ctypes.c_int),
                ("ggml_backend_dev_memory", [pointer, ctypes.POINTER(size), ctypes.POINTER(size)], None),
            ),
        ),
    ):
        loaded = _library(library)
        for name, arguments, result in declared:
            functions[name] = function = getattr(loaded, name)
            function.argtypes, function.restype = arguments, result
    return functions


def _devices(call: dict[str, Any]) -> list[Device]:
    devices = []
    for index in range(call["ggml_backend_dev_count"]()):
        device = call["ggml_backend_dev_get"](index)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        call["ggml_backend_dev_memory"](device, ctypes.byref(free), ctypes.byref(total))
        name, description = (call[f"ggml_backend_dev_{what}"](device).decode() for what in ("name", "description"))
        kind = call["ggml_backend_dev_type"](device)
        known = KINDS[kind] if kind < len(KINDS) else f"device of kind {kind}"
        devices.append(Device(name, description, known, free.value, total.value))
    return devices


def _main() -> None:
    llama = bindings()
    llama.llama_backend_init()
    call = _functions()
    version = f"{llama.llama_version().decode()} (ggml {call['ggml_commit']().decode()})"
    system = llama.llama_print_system_info().decode().strip(" |\n")
    told = Build(version, system, bool(llama.llama_supports_gpu_offload()), tuple(_devices(call)))
    sys.stdout.write(json.dumps(asdict(told)) + "\n")


if __name__ == "__main__":
    try:
        _main()
    except GgufReapError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
