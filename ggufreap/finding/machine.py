"""What this machine has for a model's weights, and whether a model fits."""

import logging
from dataclasses import dataclass

from ggufreap.engine.build import Measured, build
from ggufreap.engine.fitting import FITS
from ggufreap.errors import EngineError
from ggufreap.memory import Memory, memory

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Machine:
    """Its memory, None where the system tells nothing, and its GPUs that have their own, as llama.cpp lists them."""

    memory: Memory | None
    gpus: tuple[Measured, ...]

    @classmethod
    def here(cls) -> "Machine":
        """This one; a llama.cpp that does not load has no GPUs, which is said."""
        try:
            devices = build().devices
        except EngineError as error:
            _LOG.warning("%s: GPUs are not counted", error)
            devices = ()
        return cls(memory(), tuple(device for device in devices if device.kind == "GPU"))

    @property
    def free(self) -> int | None:
        """Bytes of memory that are free, or that there are where no more is told."""
        return None if self.memory is None else self.memory.total if self.memory.free is None else self.memory.free

    @property
    def gpu_free(self) -> int:
        """Bytes that are free on all GPUs together."""
        return sum(device.free for device in self.gpus)

    def fits(self, nbytes: int) -> str:
        """Where weights of `nbytes` fit, with a tenth left for the context: `GPU`, `memory`, `GPU and memory`; or `no`.

        `unknown` where the system does not tell its memory.
        """
        if nbytes <= FITS * self.gpu_free:
            return "GPU"
        if self.free is None:
            return "unknown"
        if nbytes <= FITS * self.free:
            return "memory"
        return "GPU and memory" if nbytes <= FITS * (self.free + self.gpu_free) else "no"
