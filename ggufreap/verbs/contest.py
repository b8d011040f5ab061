"""Files that are made and measured against each other, and what they lost, which is remembered.

So a run that is done again makes the best file alone: the others were measured before, and would only lose again.
"""

import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, Self

from ggufreap import cache
from ggufreap.container import open_gguf
from ggufreap.corpus.request import Opened
from ggufreap.evaluation import Comparison, Meters
from ggufreap.fitting import Prospect
from ggufreap.judging import Exam, compare_files
from ggufreap.options.flag import Options
from ggufreap.options.target import BEST
from ggufreap.verbs.job import Job
from ggufreap.verbs.prune import Pruned
from ggufreap.version import __version__

_LOG = logging.getLogger(__name__)
# Options that change no file and no loss; how many experts stay and the size are the prospect's.
_INDIFFERENT = ("given", "n_threads", "n_threads_batch", "keep", "fit")


@dataclass(frozen=True)
class Made:
    """A prospect that was made at `path`, what it lost on held-out text where that was measured, and how it was made
    (None: of the whole model)."""

    prospect: Prospect
    path: Path
    comparison: Comparison | None = None
    pruned: Pruned | None = None

    @property
    def loss(self) -> float:
        """Mean KLD in nats: as measured, else the estimate."""
        return self.prospect.loss if self.comparison is None else self.comparison.mean.kld

    @property
    def proven(self) -> bool:
        """Whether nothing that was checked of it fails."""
        return self.pruned is None or self.pruned.verification is None or self.pruned.verification.ok


def compete(job: Job, chosen: Sequence[Prospect], make: Callable[[Prospect], Made], fast: bool) -> list[Made]:
    """The best of `chosen` first; those that were measured before are made only where they are the best.

    What is not proven comes last, and is not measured; with `fast` nothing is, and the estimate decides.
    """
    exam = None if fast else job.exam
    memory = _Memory.of(job, exam) if exam is not None else None
    known = memory.known(job.folder, chosen) if memory else []
    if known:
        _LOG.info("%d of %d files were measured before, and are made only to be kept", len(known), len(chosen))
    before = {each.prospect for each in known}
    files = _measured(job, [make(each) for each in chosen if each not in before], exam)
    if memory:
        memory.keep([each for each in files if each.comparison])
    ranked = _ranked([*files, *known])
    while (best := ranked[0]).prospect in before:
        before.remove(best.prospect)
        ranked = _ranked([replace(make(best.prospect), comparison=best.comparison), *ranked[1:]])
    return ranked


def _ranked(files: Sequence[Made]) -> list[Made]:
    return sorted(files, key=lambda each: (not each.proven, each.loss))


def _measured(job: Job, files: list[Made], exam: Exam | None) -> list[Made]:
    """With what they lost, where they are proven."""
    proven = [each for each in files if each.proven]
    if exam is not None and proven:
        opened = [open_gguf(each.path) for each in proven]
        compared = compare_files(job.model.file, opened, exam, folder=job.folder, progress=job.progress).files
        proven = [replace(each, comparison=comparison) for each, comparison in zip(proven, compared, strict=True)]
    return proven + [each for each in files if not each.proven]


@dataclass(frozen=True)
class _Memory:
    """What the prospects of one job lost: `name` is of all that decides on it but the prospect."""

    name: str

    @classmethod
    def of(cls, job: Job, exam: Exam) -> Self | None:
        """None for the method `best`: what it chooses depends on the time it has."""
        if job.target.method == BEST:
            return None
        matrices = [Path(path) for path in (job.quantisation.imatrix, job.target.from_imatrix) if path is not None]
        facts = {
            "versions": (__version__, importlib.metadata.version("llama-cpp-python")),
            "model": job.model.identity.fingerprint,
            "data": job.data.identity if job.data else "",
            "matrices": [hashlib.sha256(path.read_bytes()).hexdigest() for path in matrices],
            "process_output": job.quantisation.process_output,
            "target": _plain(job.target),
            "settings": [_plain(each) for each in (job.settings, exam.settings) if each],
            "exam": ({name: _identity(text) for name, text in exam.texts.items()}, exam.chunks),
        }
        return cls(f"contest-{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}")

    def known(self, folder: Path, prospects: Sequence[Prospect]) -> list[Made]:
        """Those that were measured, with the paths in `folder` that they had."""
        told = cache.get(self.name) or {}
        found = [(each, _read(told.get(_key(each)))) for each in prospects]
        return [Made(each, folder / known[0], known[1]) for each, known in found if known]

    def keep(self, files: Sequence[Made]) -> None:
        """Add what was measured."""
        told = {_key(each.prospect): _written(each.path.name, each.comparison) for each in files if each.comparison}
        cache.put(self.name, (cache.get(self.name) or {}) | told)


def _plain(options: Options) -> dict[str, str]:
    return {name: str(value) for name, value in vars(options).items() if name not in _INDIFFERENT}


def _identity(text: str | Opened) -> str:
    return text.identity if isinstance(text, Opened) else hashlib.sha256(text.encode()).hexdigest()


def _key(prospect: Prospect) -> str:
    return f"{prospect.label}, {prospect.width}, {prospect.nbytes} bytes"


def _written(name: str, comparison: Comparison) -> dict[str, Any]:
    return {"file": name, "domains": [(domain, asdict(meters)) for domain, meters in comparison.domains.items()]}


def _read(value: Any) -> tuple[str, Comparison] | None:
    """What `_written` wrote, None for anything else."""
    try:
        meters = {name: Meters(**{key: _finite(each) for key, each in told.items()}) for name, told in value["domains"]}
        return str(value["file"]), Comparison(meters)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _finite(value: Any) -> Any:
    if not isinstance(value, int | float) or not isfinite(value):
        raise ValueError(value)
    return value
