"""Whether a model fits into memory, and what to do where it does not.

What does not fit is read from disk anew for every micro-batch, for hours. So it is refused, unless a flag says where
its weights go (--mmap: in the file, as they are), or there is a GPU that may hold a part of it.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ggufreap.container.gguf_file import shards_of
from ggufreap.engine.devices import gpus
from ggufreap.errors import EngineError
from ggufreap.memory import memory
from ggufreap.options.engine import PLACEMENT, EngineSettings
from ggufreap.options.flag import flags_of
from ggufreap.units import size

FITS = 0.9  # of the memory that is free; the rest is for activations and for other programs
# What comes to the same as saying nothing, where the CPU computes and weights lie in the file.
_SAME: Mapping[str, Any] = {"n_gpu_layers": 0, "device": "none", "mmap": True, "repack": False}
_LOG = logging.getLogger(__name__)


def free_memory() -> int | None:
    """Bytes that are free, or that there are where the system tells no more; None where it tells nothing."""
    there = memory()
    return there if there is None else there.total if there.free is None else there.free


def moved(settings: EngineSettings) -> list[str]:
    """The flags that were given to have weights elsewhere than in the file."""
    usual = EngineSettings()
    return [
        flag.names[0] if getattr(settings, name) is not False else f"--no-{flag.names[0].removeprefix('--')}"
        for name, flag in flags_of(settings).items()
        if flag.group == PLACEMENT and getattr(settings, name) not in (getattr(usual, name), _SAME.get(name))
    ]


def fits(nbytes: int, settings: EngineSettings) -> bool:
    """Whether a model of `nbytes` can be loaded as the settings say, without reading it over and over."""
    if settings.mmap or moved(settings):
        return True
    free = free_memory()
    return free is None or nbytes <= FITS * free or bool(gpus())


def checked_nbytes(path: Path, settings: EngineSettings) -> int:
    """The bytes of the model `path`; raises EngineError where it does not fit into memory and nobody insists."""
    nbytes = sum(map(os.path.getsize, shards_of(path)))
    if not fits(nbytes, settings):
        raise EngineError(
            f"{path.name} has {size(nbytes)}, {size(free_memory() or 0)} of memory are free: it would be read "
            "from disk over and over; take a smaller file or end other programs, or say --mmap to do it all the same "
            "(calibrate needs no more memory with --blockwise fit)"
        )
    return nbytes


def insisted(path: Path, settings: EngineSettings) -> EngineSettings:
    """The settings with which a model is loaded though it does not fit, which is said."""
    nbytes = sum(map(os.path.getsize, shards_of(path)))
    if fits(nbytes, settings):
        return settings
    _LOG.warning("%s has %s, more than fits into memory: it is read from disk again and again", path.name, size(nbytes))
    return replace(settings, mmap=True)
