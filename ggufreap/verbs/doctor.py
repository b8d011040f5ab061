"""Whether pruning works here: on this machine, and with a model's own file."""

import importlib.metadata
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ggufreap.cache import cache_folder
from ggufreap.engine.build import build
from ggufreap.errors import EngineError, GgufReapError
from ggufreap.inspection import Inspection, described
from ggufreap.memory import memory
from ggufreap.model import AnyModel, Model, name_of
from ggufreap.options.engine import EngineSettings
from ggufreap.progress import Progress, silent
from ggufreap.units import size
from ggufreap.verbs import trust
from ggufreap.verbs.laws import try_out
from ggufreap.verification import Check
from ggufreap.version import __version__

LITTLE = 1_000_000_000  # bytes of memory or disk that are worth a note
PACKAGES = ("numpy", "gguf", "llama-cpp-python")
FOR_GPU = "for a GPU build it anew: CMAKE_ARGS=-DGGML_CUDA=ON pip install --force-reinstall --no-cache-dir"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `not`: it prevents work, and `advice` says what to do; `note`: worth knowing."""

    name: str
    state: Literal["ok", "note", "not"]
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Checkup:
    """What `doctor` found; `laws` are those that were tried out on the model, up to the first that broke."""

    findings: tuple[Finding, ...]
    model: str | None = None
    inspection: Inspection | None = None
    laws: tuple[Check, ...] = ()

    @property
    def broken(self) -> Check | None:
        """The law that does not hold."""
        return next((law for law in self.laws if not law.ok), None)

    @property
    def obstacles(self) -> tuple[Finding, ...]:
        """What prevents work."""
        return tuple(finding for finding in self.findings if finding.state == "not")

    @property
    def verdict(self) -> str:
        """All of it in one line."""
        if self.broken:
            return f"pruning this model is NOT safe: {self.broken.name} does not hold: {self.broken.detail}"
        if self.obstacles:
            first = self.obstacles[0]
            subject = "nothing was shown about this model" if self.model else "this machine is not ready"
            return f"{subject}: {first.name}: {first.found}"
        return "pruning this model is safe: all laws hold" if self.model else "this machine is ready"

    @property
    def exit_code(self) -> int:
        """0 if all is well, 1 if something prevents work, 3 if a law broke."""
        return 3 if self.broken else 1 if self.obstacles else 0


def doctor(
    model: AnyModel | None = None,
    *,
    tmp_dir: str | Path | None = None,
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> Checkup:
    """Look at the machine, and try the laws of pruning out on `model`.

    A trial file of about three quarters of the model is written into `tmp_dir` (the system's temp folder) and removed.
    That the laws held is remembered, for a model of an unknown architecture: `apply` asks for it.
    """
    findings = [finding for look in MACHINE for finding in look()]
    if model is None:
        return Checkup(tuple(findings))
    try:
        opened = Model.open(model)
    except GgufReapError as error:
        return Checkup((*findings, Finding("model", "not", str(error))), name_of(model))
    findings += _of_model(opened)
    inspection = described(opened)
    if any(finding.state == "not" for finding in findings):
        return Checkup(tuple(findings), name_of(model), inspection)
    try:
        laws = try_out(opened, tmp_dir=tmp_dir, settings=settings, progress=progress)
    except GgufReapError as error:
        return Checkup((*findings, Finding("trial", "not", str(error))), name_of(model), inspection)
    if not opened.layout.proven and all(law.ok for law in laws) and not trust.trust(opened):
        fact = f"cannot write to {cache_folder()}, so it is not remembered that the laws held"
        findings.append(Finding("memory of this", "note", fact, "apply will refuse this model; use prune instead"))
    return Checkup(tuple(findings), name_of(model), inspection, laws)


def _versions() -> Iterator[Finding]:
    yield Finding("ggufreap", "ok", f"{__version__}, Python {platform.python_version()} on {platform.platform()}")
    for package in PACKAGES:
        try:
            yield Finding(package, "ok", importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(package, "not", "is not installed", f"pip install {package}")


def _llama_cpp() -> Iterator[Finding]:
    try:
        built = build()
    except EngineError as error:
        yield Finding("llama.cpp", "not", str(error))
        return
    yield Finding("llama.cpp", "ok", f"{built.version}; {built.system}")
    for device in built.devices:
        memory_of_it = f"{size(device.free)} of {size(device.total)} free"
        yield Finding("device", "ok", f"{device.name}, {device.kind}: {device.description}, {memory_of_it}")
    if not built.offload:
        yield Finding("GPU", "note", "this build computes on the CPU alone", f"{FOR_GPU} llama-cpp-python")
    elif not any(device.is_gpu for device in built.devices):
        yield Finding("GPU", "note", "this build can use one and finds none", "look at the driver; or work on the CPU")
    yield _computing()


def _computing() -> Finding:
    from ggufreap.engine.machine import machine

    try:
        this = machine()
    except EngineError as error:
        return Finding("computing", "not", str(error))
    if not this.reason:
        return Finding("computing", "ok", f"llama.cpp computes right on {this.cpu}")
    lacking = "llama.cpp's repacked weights" if not this.extra_buffers else ", ".join(this.devices)
    return Finding("computing", "note", f"{this.cpu} without {lacking}, since it {this.reason}")


def _memory() -> Iterator[Finding]:
    ram = memory()
    if ram is None:
        yield Finding("memory", "note", "this system does not tell")
        return
    free = "" if ram.free is None else f", {size(ram.free)} free"
    limit = ", by the limit of this container or service" if ram.limited else ""
    little = ram.free is not None and ram.free < LITTLE
    advice = "end other programs: a model that does not fit is read from disk over and over" if little else ""
    yield Finding("memory", "note" if little else "ok", f"{size(ram.total)}{limit}{free}", advice)


def _disk() -> Iterator[Finding]:
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    advice = "a pruned file takes nearly as much as its model; write elsewhere with -o" if free < LITTLE else ""
    yield Finding("disk", "note" if advice else "ok", f"{size(free)} free in {here}", advice)


MACHINE: tuple[Callable[[], Iterable[Finding]], ...] = (
    _versions,
    _llama_cpp,
    _memory,
    _disk,
)


def _of_model(model: Model) -> Iterator[Finding]:
    if model.layout.proven:
        yield Finding("architecture", "ok", f"{model.layout.architecture.name} is in the tables")
    else:
        fact = f"{model.layout.architecture.name} is in no table, but all its tensors and keys are: unproven"
        advice = "the laws below decide; what they cannot show is whether the scores mean what they should"
        yield Finding("architecture", "note", fact, advice)
    available = memory()
    if available is None:
        return
    times = available.total // model.file.nbytes
    fits = {0: "does not fit into memory", 1: "fits into memory once"}.get(times, "fits into memory twice")
    advice = "it will be read from disk over and over: slow; a smaller type or more memory helps" if times == 0 else ""
    yield Finding("size", "note" if times == 0 else "ok", f"{size(model.file.nbytes)}, {fits}", advice)
