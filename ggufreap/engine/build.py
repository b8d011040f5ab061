"""What this llama.cpp is and where it can compute, asked in a process of its own: loading it may be what fails.

Run as `python -m ggufreap.engine.build`; answers in JSON.
"""

import json
import sys
from dataclasses import asdict, dataclass

from ggufreap import process
from ggufreap.engine.devices import Device, commit, devices, memory_of
from ggufreap.engine.native import bindings
from ggufreap.errors import EngineError, GgufReapError


@dataclass(frozen=True)
class Measured(Device):
    """A device and its memory in bytes, as the driver tells it."""

    free: int
    total: int


@dataclass(frozen=True)
class Build:
    """The llama.cpp inside llama-cpp-python; `system` is its own line of what it was compiled for."""

    version: str
    system: str
    offload: bool
    devices: tuple[Measured, ...]


def build() -> Build:
    """Ask llama.cpp; raises EngineError when it does not load, does not match, or dies."""
    done = process.run(__name__)
    if not done.ending.ok:
        lines = [line.strip() for line in done.err.splitlines() if line.strip()]
        raise EngineError(lines[-1] if lines else f"llama.cpp {process.last_words(done.ending)}")
    told = json.loads(done.out.splitlines()[-1])
    return Build(**told | {"devices": tuple(Measured(**device) for device in told["devices"])})


def _main() -> None:
    llama = bindings()
    there = tuple(
        Measured(device.name, device.description, device.kind, *memory_of(address))
        for address, device in devices().items()
    )
    version = f"{llama.llama_version().decode()} (ggml {commit()})"
    system = llama.llama_print_system_info().decode().strip(" |\n")
    told = Build(version, system, bool(llama.llama_supports_gpu_offload()), there)
    sys.stdout.write(json.dumps(asdict(told)) + "\n")


if __name__ == "__main__":
    try:
        _main()
    except GgufReapError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
