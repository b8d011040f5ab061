"""Multiple-choice questions, answered by log-likelihood."""

from dataclasses import replace
from pathlib import Path

from ggufreap.engine.protocol import Keep
from ggufreap.engine.session import LlamaSession
from ggufreap.errors import InputError
from ggufreap.evaluation.tasks import FORMATS, Scored, TaskReport, compare, sample_of, score
from ggufreap.judging.trials import Done, Trial
from ggufreap.model import AnyModel, Model
from ggufreap.options.engine import ANSWERING, EngineSettings
from ggufreap.planning import PruningPlan
from ggufreap.progress import Progress, silent
from ggufreap.verbs.control import run_trial
from ggufreap.verbs.probe import SPARE_TOKENS

MIN_PARALLEL = 8


def tasks(
    model: AnyModel,
    *,
    hellaswag: str | Path | None = None,
    winogrande: str | Path | None = None,
    multiple_choice: str | Path | None = None,
    jsonl: str | Path | None = None,
    n: int | None = None,
    reference: AnyModel | None = None,
    plan: PruningPlan | str | Path | None = None,
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> TaskReport:
    """Answer the multiple-choice questions of one file, `n` of them at random or all, and compare with the control.

    The formats are those of llama-perplexity's flags of the same names, and JSON lines (see evaluation.tasks).
    `reference` and `plan` as in `probe`; `settings.n_ctx` 0 is what fits.
    """
    given = {"hellaswag": hellaswag, "winogrande": winogrande, "multiple-choice": multiple_choice, "jsonl": jsonl}
    chosen = [(name, Path(path)) for name, path in given.items() if path is not None]
    if len(chosen) != 1:
        raise InputError(
            f"{len(chosen)} files of questions were given; give one of {', '.join(f'--{n}' for n in given)}"
        )
    ((name, path),) = chosen
    return run_trial(tasks_trial(name, path, n, settings, progress), Model.open(model), reference, plan)


def tasks_trial(
    name: str, path: Path, n: int | None = None, settings: EngineSettings | None = None, progress: Progress = silent
) -> Trial[list[Scored], TaskReport]:
    """The questions of `path`, in the format `name`."""
    questions = sample_of(FORMATS[name](path), n)
    most = max(len(question.choices) for question in questions)
    bytes_of = (sum(len((q.context + c + q.tail).encode()) + SPARE_TOKENS for c in q.choices) for q in questions)
    settings = settings or ANSWERING
    settings = replace(
        settings,
        n_ctx=settings.n_ctx or max(max(bytes_of), settings.n_ubatch),
        n_parallel=max(settings.n_parallel, most, MIN_PARALLEL),
    )

    def work(engine: LlamaSession, keep: Keep | None, which: str) -> list[Scored]:
        return score(engine, questions, keep=keep, progress=progress, stage=f"{name}, {which}")

    def tell(done: Done[list[Scored]], control: Done[list[Scored]] | None) -> TaskReport:
        beside = (control.name, control.result) if control else (None, ())
        return compare(f"{name}: {path.name}", done.name, done.result, *beside)

    return Trial(settings, work, tell)
