"""What ggml computes on here, and the buffers that weights are put into."""

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

from ggufreap.engine.native import bindings, declare, loaded_with_llama

# enum ggml_backend_dev_type, ggml/include/ggml-backend.h
KINDS = ("CPU", "GPU", "integrated GPU", "accelerator", "several devices as one")


@dataclass(frozen=True)
class Device:
    """Something that ggml computes on."""

    name: str
    description: str
    kind: str

    @property
    def is_gpu(self) -> bool:
        """Whether layers can be put there with -ngl."""
        return "GPU" in self.kind


def devices() -> dict[int, Device]:
    """Address -> device of this build, the CPU among them (ggml-backend-reg.cpp, ggml_backend_dev_get)."""
    bindings().llama_backend_init()
    registry, base = _libraries()
    there = {}
    for index in range(registry.ggml_backend_dev_count()):
        pointer = registry.ggml_backend_dev_get(index)
        name, description = base.ggml_backend_dev_name(pointer), base.ggml_backend_dev_description(pointer)
        kind = base.ggml_backend_dev_type(pointer)
        known = KINDS[kind] if kind < len(KINDS) else f"device of kind {kind}"
        there[pointer] = Device(name.decode(), description.decode(), known)
    return there


def gpus() -> list[str]:
    """What llama.cpp can compute on beside the CPU, by its own description."""
    return [device.description for device in devices().values() if device.is_gpu]


def memory_of(device: int) -> tuple[int, int]:
    """(free, all) bytes of the device at an address, as its driver tells them, which may start the device."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _libraries()[1].ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
    return free.value, total.value


def buffer_types() -> dict[str, int]:
    """Name -> address of a buffer type, one per device (common/arg.cpp, parse_tensor_buffer_overrides)."""
    base = _libraries()[1]
    types = [base.ggml_backend_dev_buffer_type(device) for device in devices()]
    return {base.ggml_backend_buft_name(each).decode(): each for each in types if each}


def cpu_buffer_type() -> int:
    """The address of the buffer type of the CPU."""
    address: int = _libraries()[1].ggml_backend_cpu_buffer_type()
    return address


def commit() -> str:
    """The commit that ggml was built from."""
    told: bytes = _libraries()[1].ggml_commit()
    return told.decode()


@cache
def _libraries() -> tuple[Any, Any]:
    """libggml, which knows the devices, and libggml-base, which knows about them."""
    pointer, size, text = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p
    registry, base = loaded_with_llama("ggml"), loaded_with_llama("ggml-base")
    declare(registry, ("ggml_backend_dev_count", [], size), ("ggml_backend_dev_get", [size], pointer))
    declare(
        base,
        ("ggml_commit", [], text),
        ("ggml_backend_dev_name", [pointer], text),
        ("ggml_backend_dev_description", [pointer], text),
        ("ggml_backend_dev_type", [pointer], ctypes.c_int),
        ("ggml_backend_dev_memory", [pointer, ctypes.POINTER(size), ctypes.POINTER(size)], None),
        ("ggml_backend_dev_buffer_type", [pointer], pointer),
        ("ggml_backend_buft_name", [pointer], text),
        ("ggml_backend_cpu_buffer_type", [], pointer),
    )
    return registry, base
