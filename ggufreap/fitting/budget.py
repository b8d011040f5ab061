"""How large a file may be: the memory there is, less all that is in it beside the weights."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ggufreap.engine.buffers import Buffers, buffers
from ggufreap.engine.build import Measured, build
from ggufreap.engine.fitting import free_memory
from ggufreap.errors import InputError
from ggufreap.options.engine import EngineSettings
from ggufreap.options.fit import AUTO_SIZE, Fit
from ggufreap.units import size

GPU = "GPU"  # one with memory of its own: an integrated one shares the machine's


@dataclass(frozen=True)
class Budget:
    """In bytes: `total` there is, where `source` tells; a context of `n_ctx` tokens takes `buffers`, the vision part
    `mmproj`, and `margin` stays free."""

    total: int
    source: str
    n_ctx: int
    buffers: Buffers
    mmproj: int
    margin: int

    @property
    def room(self) -> int:
        """The largest file that fits; below zero where nothing does."""
        return self.total - self.margin - self.buffers.nbytes - self.mmproj

    @property
    def told(self) -> str:
        """All of it in one line."""
        parts = {
            "KV cache": self.buffers.kv_cache,
            "state": self.buffers.recurrent,
            "compute buffers": self.buffers.compute + self.buffers.output,
            "vision part": self.mmproj,
            "margin": self.margin,
        }
        taken = ", ".join(f"{size(nbytes)} {what}" for what, nbytes in parts.items() if nbytes)
        left = f"leave {size(self.room)} for the file" if self.room > 0 else "leave nothing for the file"
        return f"{size(self.total)} ({self.source}); {self.n_ctx:,} tokens of context: {taken}: {left}"


def budget_of(model: Path, wanted: int | str, fit: Fit, settings: EngineSettings | None = None) -> Budget:
    """The budget of `wanted` bytes, or of what is free where it is `auto`, for `model` as `settings` would run it.

    Weights count as their file, which llama.cpp maps. Raises InputError where a file cannot be read or nothing tells
    what is free, EngineError where llama.cpp does not load the model.
    """
    total, source = available() if wanted == AUTO_SIZE else (int(wanted), "as asked")
    taken = buffers(model, replace(settings or EngineSettings(), n_ctx=fit.ctx))
    return Budget(total, source, fit.ctx, taken, _nbytes(fit.mmproj), fit.margin)


def available() -> tuple[int, str]:
    """The bytes that are free for a model, and what they are: those of all GPUs, and of the machine, where experts that
    do not fit there can stay (--n-cpu-moe)."""
    ram = free_memory()
    if ram is None:
        raise InputError("this system does not tell how much memory is free; give a size instead of auto")
    return counted(build().devices, ram)


def counted(devices: Sequence[Measured], ram: int) -> tuple[int, str]:
    """The same of known devices and free memory of the machine."""
    own = [device for device in devices if device.kind == GPU]
    parts = [f"{size(device.free)} free on {device.name}" for device in own] + [f"{size(ram)} free in memory"]
    return sum(device.free for device in own) + ram, " and ".join(parts)


def _nbytes(path: str | Path | None) -> int:
    if path is None:
        return 0
    try:
        return Path(path).stat().st_size
    except OSError as error:
        raise InputError(f"cannot read --mmproj {path}: {error.strerror}; name the file of the vision part") from None
