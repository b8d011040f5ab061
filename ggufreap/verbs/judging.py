"""One pruned file against the original, by all the means there are."""

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from ggufreap import naming
from ggufreap.container import GgufFile, open_gguf, type_name
from ggufreap.evaluation import Comparison, Outcome
from ggufreap.evaluation.probes import Probes
from ggufreap.evaluation.speed import SpeedReport
from ggufreap.evaluation.tasks import TaskReport
from ggufreap.files import private_folder
from ggufreap.options.engine import EngineSettings
from ggufreap.progress import Progress, silent
from ggufreap.quantization.request import FILE_TYPES
from ggufreap.verbs.evaluation import eval
from ggufreap.verbs.probing import bench, probe, tasks
from ggufreap.verbs.rival import make_rival


@dataclass(frozen=True)
class Measures:
    """What to measure: meters on held-out texts `files` (as for `eval`), probes, speed, `questions` (format, file)."""

    files: tuple[str, ...] = ()
    chunks: int | None = None
    probes: bool = False
    speed: bool = False
    questions: tuple[tuple[str, str], ...] = ()
    fail_if: tuple[str, ...] = ()
    settings: EngineSettings = field(default_factory=EngineSettings)


@dataclass(frozen=True)
class Judged:
    """One pruned file and what it lost; `kind` is its type."""

    path: Path
    kind: str
    nbytes: int
    comparison: Comparison | None = None
    probes: Probes | None = None
    tasks: tuple[TaskReport, ...] = ()
    speed: SpeedReport | None = None
    gates: tuple[Outcome, ...] = ()


@dataclass(frozen=True)
class EqualSize:
    """The unpruned model in the type whose size is nearest to that of the first pruned file."""

    kind: str
    nbytes: int
    comparison: Comparison
    pruned: Judged

    @property
    def loses(self) -> bool:
        """Whether pruning costs more than quantising the whole model to that size."""
        return bool(self.pruned.comparison and self.pruned.comparison.mean.kld > self.comparison.mean.kld)


def judge(source: GgufFile, path: Path, measures: Measures, progress: Progress = silent) -> Judged:
    """Measure a pruned file of `source`."""
    settings, file = measures.settings, open_gguf(path)
    found = None
    if measures.files:
        found = eval(
            path,
            files=measures.files,
            reference=source.path,
            chunks=measures.chunks,
            fail_if=measures.fail_if,
            settings=settings,
            progress=progress,
        )
    free = replace(settings, n_ctx=0, n_parallel=4)  # probes and tasks take what fits
    probes = speed = None
    if measures.probes:
        probes = probe(path, reference=source.path, settings=free, progress=progress)
    answered = tuple(
        tasks(path, **{name: file}, reference=source.path, settings=free, progress=progress)  # type: ignore[arg-type]  # one of its formats
        for name, file in measures.questions
    )
    if measures.speed:
        speed = bench(path, reference=source.path, settings=settings, progress=progress)
    return Judged(
        path,
        kind_of(file),
        file.nbytes,
        found.comparison if found else None,
        probes,
        answered,
        speed,
        found.gates if found else (),
    )


def judge_rival(
    source: GgufFile, pruned: Judged, measures: Measures, imatrix: str | Path | None, progress: Progress = silent
) -> EqualSize:
    """Quantise the unpruned model to the size of a pruned file, for as long as it takes to measure it."""
    with private_folder(pruned.path.parent) as folder:
        made = make_rival(
            source.path,
            pruned.nbytes,
            folder,
            imatrix=imatrix,
            threads=measures.settings.n_threads,
            progress=progress,
        )
        judged = judge(
            source, made.path, replace(measures, probes=False, speed=False, questions=(), fail_if=()), progress
        )
        assert judged.comparison  # there is held-out text
        return EqualSize(made.type, made.nbytes, judged.comparison, pruned)


def kind_of(file: GgufFile) -> str:
    """The type that its name ends with, else the one that the file says it is, else that of most of its bytes."""
    if match := naming.ENCODING.search(naming.stem_of(file.path)):
        return str(match["encoding"])
    names = {number: name for name, number in FILE_TYPES.items()}
    if (kind := names.get(file.get("general.file_type"))) is not None:
        return kind
    sizes: Counter[str] = Counter()
    for record in file.tensors:
        sizes[type_name(record.type)] += record.nbytes
    return max(sizes, key=lambda name: sizes[name])
