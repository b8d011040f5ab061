"""Where llama.cpp puts the weights: from the settings to llama_model_params, and what came of it."""

import ctypes
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ggufreap.engine import log, rpc
from ggufreap.engine.devices import buffer_types, cpu_buffer_type, devices, gpus
from ggufreap.engine.native import bindings
from ggufreap.errors import EngineError
from ggufreap.options.engine import SPLIT_MODES, EngineSettings
from ggufreap.options.flag import split_names, split_overrides, split_proportions
from ggufreap.units import size

EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"  # common/common.h, LLM_FFN_EXPS_REGEX
# (mmap, mlock) -> enum llama_load_mode, include/llama.h
_LOAD_MODES = {
    (None, False): -1,
    (False, False): 0,
    (True, False): 1,
    (False, True): 2,
    (None, True): 3,
    (True, True): 3,
}
_BUFFER = re.compile(r"(\S+) model buffer size =\s*([\d.]+) MiB")
_OVERRIDDEN = re.compile(r"tensor (\S+) .*buffer type overridden")


class _Override(ctypes.Structure):
    """struct llama_model_tensor_buft_override of include/llama.h."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


def place(parameters: Any, settings: EngineSettings, repack: bool) -> list[Any]:
    """Set the fields of llama_model_params; returns what C holds only by address, to be kept as long as the model.

    Raises EngineError where a device or buffer is unknown to this build, or a server does not answer.
    `override_tensor` comes before `cpu_moe` and `n_cpu_moe`, and of several patterns the first that matches counts.
    """
    if settings.rpc is not None:
        rpc.add_servers(settings.rpc)
    warn_unused(settings)
    parameters.n_gpu_layers = settings.n_gpu_layers
    parameters.use_extra_bufts = repack
    parameters.load_mode = _LOAD_MODES[settings.mmap, settings.mlock]
    if settings.split_mode is not None:
        parameters.split_mode = SPLIT_MODES[settings.split_mode]
    if settings.main_gpu is not None:
        parameters.main_gpu = settings.main_gpu
    kept: list[Any] = []
    if settings.device is not None:
        kept.append(_chosen(settings.device))
        parameters.devices = ctypes.cast(kept[-1], ctypes.c_void_p)
    if settings.tensor_split is not None:
        kept.append(_shares(settings.tensor_split))
        parameters.tensor_split = kept[-1]
    if overrides := _overrides(settings):
        table = (_Override * (len(overrides) + 1))(*(_Override(*each) for each in overrides))  # the last one stays NULL
        kept += [overrides, table]
        parameters.tensor_buft_overrides = ctypes.cast(kept[-1], ctypes.c_void_p)
    return kept


def _chosen(names: str) -> Any:
    """A NULL-terminated list (common/arg.cpp, parse_device_list)."""
    known = {device.name: address for address, device in devices().items() if device.kind != "CPU"}
    wanted = [] if names == "none" else split_names(names)
    for name in wanted:
        if name not in known:
            there = ", ".join(known) or "none but the CPU, see 'Installation for a GPU' in the README"
            raise EngineError(f"-dev {names}: there is no device {name}; this build of llama.cpp has {there}")
    return (ctypes.c_void_p * (len(wanted) + 1))(*(known[name] for name in wanted))


def _shares(text: str) -> Any:
    most: int = bindings().llama_max_devices()
    shares = split_proportions(text)
    if len(shares) > most:
        raise EngineError(f"-ts {text}: {len(shares)} proportions, but llama.cpp knows at most {most} devices")
    return (ctypes.c_float * most)(*shares)


def _overrides(settings: EngineSettings) -> list[tuple[bytes, int]]:
    """(regex, buffer type) in the order in which llama.cpp tries them."""
    overrides: list[tuple[bytes, int]] = []
    if settings.override_tensor is not None:
        known = buffer_types()
        for pattern, buffer in split_overrides(settings.override_tensor):
            if buffer not in known:
                raise EngineError(f"-ot {pattern}={buffer}: there is no such buffer; choose from {', '.join(known)}")
            overrides.append((pattern.encode(), known[buffer]))
    experts = [EXPERTS] if settings.cpu_moe else []
    experts += [rf"blk\.{block}{EXPERTS}" for block in range(settings.n_cpu_moe)]
    if experts:
        cpu = cpu_buffer_type()
        overrides += [(pattern.encode(), cpu) for pattern in experts]
    return overrides


def warn_unused(settings: EngineSettings) -> None:
    """Say what was asked for and cannot have an effect here."""
    if not (settings.of_gpus or settings.mmap or settings.mlock):
        return
    llama = bindings()
    if settings.of_gpus and not gpus():
        log.once(
            logging.WARNING,
            f"{', '.join(settings.of_gpus)}: no effect, this llama-cpp-python was built without GPU support or finds "
            "no GPU; see 'Installation for a GPU' in the README",
        )
    for flag, asked, supported in (
        ("--mmap", settings.mmap, llama.llama_supports_mmap),
        ("--mlock", settings.mlock, llama.llama_supports_mlock),
    ):
        if asked and not supported():
            log.once(logging.WARNING, f"{flag}: no effect, this system cannot do it")


def tell(path: Path, settings: EngineSettings, lines: Sequence[str]) -> None:
    """Say where the weights of the model `path` went, from what llama.cpp logged while it loaded them."""
    sizes: dict[str, float] = {}
    for buffer, mebibytes in (match.groups() for match in map(_BUFFER.search, lines) if match):
        sizes[buffer] = sizes.get(buffer, 0.0) + float(mebibytes) * 2**20  # a shard has one each
    told = ", ".join(f"{size(nbytes)} in {buffer}" for buffer, nbytes in sizes.items())
    log.once(logging.INFO, f"weights of {path.name}: {told}")
    moved = [match[1] for match in map(_OVERRIDDEN.search, lines) if match]
    for pattern, buffer in split_overrides(settings.override_tensor or ""):
        if pattern and not any(re.search(pattern, name) for name in moved):
            log.once(logging.WARNING, f"-ot {pattern}={buffer}: no effect on {path.name}, no tensor's name matches")
    if any("failed to mlock" in line for line in lines):
        log.once(logging.WARNING, "--mlock: the system does not lock so much memory; raise its limit (ulimit -l)")
