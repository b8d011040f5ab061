"""Whether this build of llama.cpp computes on this machine: tried once, in a process that may die of it.

llama.cpp believes what the CPU says of itself. Where a virtual machine claims AMX and has none, the buffers in which
llama.cpp repacks weights kill the process at the first product.
"""

import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ggufreap import cache, process
from ggufreap.engine.devices import gpus
from ggufreap.engine.native import bindings
from ggufreap.errors import EngineError
from ggufreap.memory import memory
from ggufreap.options.engine import EngineSettings

_LOG = logging.getLogger(__name__)
_TRIAL = "ggufreap.engine.machine_trial"
SECONDS = 300.0  # a trial takes one, on a machine that does nothing else
_SAYS_NOTHING = ("SIGKILL", "SIGTERM", "SIGHUP")  # of what the CPU can do: somebody else ended it
MAX_ERROR = 1e-3  # normalised squared error; other kernels round otherwise, a broken one is far off
# What repacked weights are multiplied with faster, as llama.cpp tells of itself. With AVX-512 alone they gain nothing:
# calibration of a model in Q4_K took 1.1 times the processor time (tests/benchmarks/README.md).
_GAINING = ("AMX_INT8", "MATMUL_INT8", "DOTPROD", "SVE")
# What decides on which devices llama.cpp sees, beside those that there are.
_VISIBLE = (
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "GGML_VK_VISIBLE_DEVICES",
    "ONEAPI_DEVICE_SELECTOR",
)
_REBUILD = (
    "CMAKE_ARGS=-DGGML_NATIVE=OFF pip install --force-reinstall --no-cache-dir --no-binary :all: llama-cpp-python"
)

Logits = npt.NDArray[np.float32]
# extra buffers, offload -> the logits of the embedded model, or how the process ended
Trial = Callable[[bool, bool], Logits | str]


@dataclass(frozen=True)
class Machine:
    """What works here.

    `extra_buffers`: llama.cpp's repacked weights, and `gains` whether this CPU has what makes them pay; `offload`:
    `devices`, if there are any; `reason`: what came of what does not work, empty where all does. `library`, `cpu` and
    `devices` are what was tried.
    """

    extra_buffers: bool
    offload: bool
    reason: str = ""
    library: str = ""
    cpu: str = ""
    devices: tuple[str, ...] = ()
    gains: bool = False


@functools.cache
def machine() -> Machine:
    """What works on this machine: as it was found out before, else by trying.

    Raises EngineError where llama.cpp does not compute at all.
    """
    library, cpu, devices = _library(), _cpu(), gpus()
    visible = [os.environ.get(name, "") for name in _VISIBLE]
    key = hashlib.sha256(json.dumps([library, cpu, devices, visible]).encode()).hexdigest()[:16]
    name = f"machine-{key}"
    known = _remembered(name)
    if known is None:
        known = replace(find_out(_trial, library, cpu[0], devices), gains=_gains())
        cache.put(name, asdict(known))
    return known


def find_out(trial: Trial, library: Sequence[object], cpu: str, devices: Sequence[str]) -> Machine:
    """Try, the most first, until something works as it does without extra buffers on the CPU alone."""
    plain = trial(False, False)
    if isinstance(plain, str) or not np.isfinite(plain).all():
        came = f"it {plain}" if isinstance(plain, str) else "its logits are no numbers"
        raise EngineError(f"llama.cpp does not compute on this machine: {came}; build it for this CPU: {_REBUILD}")
    ways = [(True, True), (False, True), (True, False), (False, False)] if devices else [(True, False), (False, False)]
    reason = ""
    for extra_buffers, offload in ways:
        fault = _fault(trial(extra_buffers, offload), plain) if extra_buffers or offload else ""
        if not fault:
            break
        reason = reason or fault
    if devices and not offload:
        _LOG.warning("llama.cpp does not compute on %s: it %s; going without", ", ".join(devices), reason)
    if not extra_buffers:
        _LOG.warning("llama.cpp's repacked buffers do not work on this machine: it %s; going without them", reason)
    return Machine(extra_buffers, offload, reason, str(library[0]), cpu, tuple(devices))


def chooses_repack(nbytes: int, repack: bool | None, known: Machine) -> bool:
    """Whether a model of `nbytes` is loaded into repacked buffers: they hold a second copy of it.

    Where nobody says, if the CPU gains by them and the model fits twice into all the memory of the machine, not only
    what is free now: the same machine always decides the same, and a run that goes on later stays bit-identical.
    Raises EngineError where they are wanted and do not work.
    """
    if repack and not known.extra_buffers:
        raise EngineError(
            f"llama.cpp's repacked buffers do not work on this machine: it {known.reason}; use --no-repack"
        )
    if repack is not None:
        return repack
    limits = memory()
    return known.extra_buffers and known.gains and (limits is None or 2 * nbytes <= limits.total)


def offloading(settings: EngineSettings, known: Machine) -> EngineSettings:
    """The settings, but without devices where those that there are do not work; EngineError where they are wanted."""
    if not known.devices or known.offload:
        return settings
    if wanted := settings.wants_offload:
        raise EngineError(
            f"{wanted}: llama.cpp does not compute on {', '.join(known.devices)}: it {known.reason}; use -ngl 0"
        )
    return replace(settings, n_gpu_layers=0, device="none")


def _fault(logits: Logits | str, plain: Logits) -> str:
    """What is wrong with a trial, as the rest of a sentence that begins with `it`; empty if nothing is."""
    if isinstance(logits, str):
        return logits
    if not np.isfinite(logits).all():
        return "computed what is no number"
    error = float(np.square(logits - plain).sum() / np.square(plain).sum())
    return "" if error < MAX_ERROR else f"computed something else, with an error of {error:.1e}"


def _trial(extra_buffers: bool, offload: bool) -> Logits | str:
    job = json.dumps({"extra_buffers": extra_buffers, "offload": offload})
    done = process.run(_TRIAL, given=job, seconds=SECONDS)
    if done.ending.signal in _SAYS_NOTHING and done.ending.seconds is None:
        words = process.last_words(done.ending)
        raise EngineError(f"llama.cpp was tried on this machine, but the trial {words}; run the same command again")
    if not done.ending.ok:
        return process.last_words(done.ending, done.err.splitlines())
    return np.asarray(json.loads(done.out), np.float32)


def _remembered(name: str) -> Machine | None:
    with suppress(ValueError, TypeError, KeyError):
        saved = cache.get(name) or {}
        known = Machine(**{**saved, "devices": tuple(saved["devices"])})
        if isinstance(known.extra_buffers, bool) and isinstance(known.offload, bool):
            return known
    return None


def _gains() -> bool:
    told: str = bindings().llama_print_system_info().decode()
    return any(f"{name} = 1" in told for name in _GAINING)


def _library() -> list[object]:
    """The version, and every file that computes: its path, size and time."""
    spec = importlib.util.find_spec("llama_cpp")
    folders = [Path(folder) / "lib" for folder in (spec and spec.submodule_search_locations) or ()]
    files = sorted(file for folder in folders if folder.is_dir() for file in folder.glob("*ggml*"))
    marks = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return [f"llama-cpp-python {importlib.metadata.version('llama-cpp-python')}", *marks]


def _cpu() -> list[str]:
    """The name of the CPU, and what it says it can do."""
    with suppress(OSError):
        said = dict(re.findall(r"^(model name|flags|Features)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M))
        if said:
            return [said.get("model name", platform.machine()), said.get("flags", said.get("Features", ""))]
    return [platform.processor() or platform.machine(), platform.machine()]
