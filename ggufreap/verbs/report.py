"""What pruned files are worth: measured against the original on held-out text, compared with their rival, reported."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ggufreap.container import GgufFile, open_gguf
from ggufreap.errors import InputError
from ggufreap.evaluation import Outcome
from ggufreap.files import check_space, claim, private_folder, written_by
from ggufreap.judging import Candidate, Exam, compare_files
from ggufreap.judging.judged import EqualSize, Judged, kind_of
from ggufreap.judging.masking import mask_of
from ggufreap.judging.telling import Known, tell
from ggufreap.model import AnyModel, Model
from ggufreap.observation import AnyStatistics, Stored
from ggufreap.options.engine import EngineSettings
from ggufreap.options.flag import refuse_unused
from ggufreap.options.judgement import Judgement
from ggufreap.options.target import Target
from ggufreap.planning import PruningPlan, check_plan, load_plan
from ggufreap.progress import Progress, silent
from ggufreap.reporting import check_report, facts, write_report
from ggufreap.rewriting.metadata import check_made_by
from ggufreap.selection.methods import calibrates
from ggufreap.showing import published
from ggufreap.verbs.bench import bench_trial
from ggufreap.verbs.coverage import coverage
from ggufreap.verbs.data import TRYING_OUT
from ggufreap.verbs.preview import RATIOS, plans_of
from ggufreap.verbs.probe import probe_trial
from ggufreap.verbs.rival import Rival, make_rival
from ggufreap.verbs.tasks import tasks_trial
from ggufreap.verification import Verification


@dataclass(frozen=True)
class Account:
    """All pruned files, each with its gates, their rival, and the report's files; `gates` are those of the first."""

    files: tuple[Judged, ...]
    equal_size: EqualSize | None
    gates: tuple[Outcome, ...]
    paths: tuple[Path, ...]

    @property
    def ok(self) -> bool:
        """Whether no gate fails."""
        return not any(outcome.failed for each in self.files for outcome in each.gates)


@dataclass(frozen=True)
class Measures:
    """What else is measured of every file: what it writes, its speed, `questions` (format, file) as for `tasks`."""

    probes: bool = False
    speed: bool = False
    questions: tuple[tuple[str, str], ...] = ()


@written_by
def report(
    model: AnyModel,
    pruned: Sequence[str | Path],
    plan: PruningPlan | str | Path,
    judgement: Judgement | None = None,
    *,
    measures: Measures | None = None,
    stats: AnyStatistics | None = None,
    imatrix: str | Path | None = None,
    ratios: Sequence[str] = RATIOS,
    exam: Exam | None = None,
    reproduction: facts.Reproduction | None = None,
    force: bool = False,
    verification: Verification | None = None,
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> Account:
    """Measure the `pruned` files of `model`, and write the report that `judgement` asks for.

    Without held-out texts nothing is measured on text; `exam`: they are read already. With `stats` the report shows
    scores, coverage and what the `ratios` would have cost.

    To compare, the unpruned model is quantised to the size of the first file, with `imatrix` where it is given; the
    gates are on every file. The original is loaded once, and reads the text once, for all files, the rival and the
    ratios (ggufreap.judging.passes); what is written, answered and timed loads it once more each.

    Raises MismatchError where model, plan and files do not belong together. Files that are not of a report on the same
    are replaced with `force` alone.
    """
    judgement, settings, measures = judgement or Judgement(), settings or EngineSettings(), measures or Measures()
    model = Model.open(model)
    chosen = plan if isinstance(plan, PruningPlan) else load_plan(Path(plan))
    files = _belonging(model, pruned, chosen, judgement.compare)
    if imatrix is not None and not judgement.compare:
        raise InputError("--imatrix is for the rival of --compare; leave it out, or compare")
    told_by = (each for each in (plan, stats, imatrix) if isinstance(each, str | Path))
    claim(inputs=(*told_by, *(path for _, path in measures.questions)))
    if judgement.report is not None:
        check_report(Path(judgement.report), chosen.model.fingerprint, chosen.sha256)
    if exam is None:
        _check_text(judgement)
    if exam is None and judgement.files:
        exam = Exam.of(judgement, settings)
    stored = _stored(stats, chosen)
    draws = exam and judgement.report
    wanted = _curve(model, chosen, stored, ratios, progress) if draws and stored else []
    claim(inputs=exam.paths if exam else ())
    judged, curve, rival = _on_text(model, files, exam, wanted, judgement.compare, imatrix, progress)
    judged = _beside_text(model, judged, measures, settings, progress)
    paths: tuple[Path, ...] = ()
    if judgement.report is not None:
        known = Known.of(stored, chosen, coverage(stored, chosen), TRYING_OUT) if stored else None
        told = tell(model, chosen, judged, rival, curve, known)
        if reproduction:
            reproduction = facts.Reproduction(published(reproduction.command), published(reproduction.recipe))
        told = replace(told, reproduction=reproduction, verification=_proof(verification))
        paths = write_report(told, Path(judgement.report))
    return Account(judged, rival, judged[0].gates, paths)


def _stored(stats: AnyStatistics | None, plan: PruningPlan) -> Stored | None:
    if stats is None:
        return None
    if not calibrates(plan.scored_by):
        raise InputError(f"--stats: the plan's method {plan.scored_by} chose without statistics; leave it out")
    return Stored.of(stats)


def _check_text(judgement: Judgement) -> None:
    """Raise InputError where text is asked for that there is none of."""
    if judgement.split is not None:
        raise InputError(
            "--eval-split holds out a part of what is calibrated on; these files are made already: give -f FILE"
        )
    if (judgement.compare or judgement.fail_if) and not judgement.files:
        raise InputError("--compare and --fail-if judge by held-out text; give some, such as --eval-file FILE")
    if not judgement.files:
        refuse_unused(judgement, dict.fromkeys(("chunks", "ctx_size"), "held-out text, of which none was given"))


def _belonging(model: Model, pruned: Sequence[str | Path], plan: PruningPlan, compare: bool) -> list[GgufFile]:
    """The pruned files, once they, the model and the plan belong together, and there is room for the rival."""
    if not pruned:
        raise InputError("no pruned file was given; name one or more")
    check_plan(plan, model.identity, model.layout)
    files = [open_gguf(path) for path in pruned]
    for file in files:
        check_made_by(file, plan)
    claim(inputs=(path for file in (model.file, *files) for path in file.paths))
    if compare:
        check_space(files[0].path.parent, files[0].nbytes)  # the rival is about as large
    return files


def _curve(
    model: Model, plan: PruningPlan, stored: Stored, ratios: Sequence[str], progress: Progress
) -> list[PruningPlan]:
    """The plan's own ratio among others, by the method that chose; a method such as `best` might settle on others."""
    target = Target(method=plan.scored_by, blend=plan.blend or None)
    plans, _ = plans_of(model, [target], sorted({*ratios, plan.ratio}, key=float), stored, progress)
    return [replace(each, method=plan.method, criterion=plan.criterion) for each in plans]


def _on_text(
    model: Model,
    files: Sequence[GgufFile],
    exam: Exam | None,
    plans: Sequence[PruningPlan],
    compare: bool,
    imatrix: str | Path | None,
    progress: Progress,
) -> tuple[tuple[Judged, ...], list[Candidate], EqualSize | None]:
    """What files, plans and the rival lose on held-out text."""
    judged = [Judged(file.path, kind_of(file), file.nbytes) for file in files]
    if exam is None:
        return tuple(judged), [], None
    folder = files[0].path.parent
    with ExitStack() as stack:
        rival = stack.enter_context(_rival(model, judged[0], exam, imatrix, progress)) if compare else None
        asked = [*files, *([open_gguf(rival.path)] if rival else [])]
        masked = [mask_of(model, plan) for plan in plans]
        compared = compare_files(model.file, asked, exam, masked, folder=folder, progress=progress)
    curve = [
        Candidate.of(model, plan, comparison, exam) for plan, comparison in zip(plans, compared.masked, strict=True)
    ]
    measured = [
        replace(each, comparison=comparison, gates=exam.outcomes(comparison))
        for each, comparison in zip(judged, compared.files, strict=False)
    ]
    equal = EqualSize(rival.type, rival.nbytes, compared.files[-1], measured[0]) if rival else None
    return tuple(measured), curve, equal


@contextmanager
def _rival(model: Model, pruned: Judged, exam: Exam, imatrix: str | Path | None, progress: Progress) -> Iterator[Rival]:
    """The unpruned model quantised to the size of a pruned file, for as long as it takes to measure it."""
    with private_folder(pruned.path.parent) as folder:
        yield make_rival(
            model,
            pruned.nbytes,
            folder,
            imatrix=imatrix,
            threads=exam.settings.n_threads,
            progress=progress,
        )


def _beside_text(
    model: Model, judged: Sequence[Judged], measures: Measures, settings: EngineSettings, progress: Progress
) -> tuple[Judged, ...]:
    """The same files with what they write, answer, and how fast they are; each a trial with the original as control."""
    if not (measures.probes or measures.speed or measures.questions):
        return tuple(judged)
    files = [Model.open(each.path) for each in judged]
    free = replace(settings, n_ctx=0, n_parallel=4)  # probes and tasks take what fits
    measured = list(judged)
    if measures.probes:
        probes = probe_trial(files[0], settings=free, progress=progress).of(files, model)
        measured = [replace(each, probes=own) for each, own in zip(measured, probes, strict=True)]
    for name, path in measures.questions:
        answers = tasks_trial(name.replace("_", "-"), Path(path), None, free, progress).of(files, model)
        measured = [replace(each, tasks=(*each.tasks, own)) for each, own in zip(measured, answers, strict=True)]
    if measures.speed:
        speeds = bench_trial(settings=settings, progress=progress).of(files, model)
        measured = [replace(each, speed=own) for each, own in zip(measured, speeds, strict=True)]
    return tuple(measured)


def _proof(verification: Verification | None) -> facts.Verification | None:
    if verification is None:
        return None
    return facts.Verification(verification.ok, tuple(f"{check.name}: {check.detail}" for check in verification.checks))
