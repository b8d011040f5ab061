"""What a model does rather than what it predicts: probes of its writing, tasks, speed; each against another model."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from ggufreap.corpus.chat import ChatTemplate
from ggufreap.engine.footprint import footprint
from ggufreap.engine.generator import Sampling
from ggufreap.engine.protocol import Keep
from ggufreap.engine.session import LlamaSession
from ggufreap.errors import InputError
from ggufreap.evaluation import probes as probing
from ggufreap.evaluation.probes import TEMPERATURES, Probes
from ggufreap.evaluation.prompts import load_prompts
from ggufreap.evaluation.speed import Speed, SpeedReport, measure
from ggufreap.evaluation.tasks import FORMATS, Scored, TaskReport, compare, sample_of, score
from ggufreap.model import AnyModel, Model
from ggufreap.options.engine import ANSWERING, WRITING, EngineSettings
from ggufreap.planning import PruningPlan, check_plan, load_plan
from ggufreap.progress import Progress, silent

SPARE_TOKENS = 16  # that a tokenizer adds to a text
MIN_PARALLEL = 8
Result = TypeVar("Result")
Work = Callable[[LlamaSession, Keep | None, str], Result]


def probe(
    model: AnyModel,
    *,
    reference: AnyModel | None = None,
    plan: PruningPlan | str | Path | None = None,
    prompts: str | Path | None = None,
    n_predict: int = 256,
    temperatures: Sequence[float] = TEMPERATURES,
    seed: int = 0,
    chat_template: bool = True,
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> Probes:
    """Let `model` answer prompts, and tell which answers loop, never end, say nothing or change the language.

    The control is `reference`, the unpruned file; or, with `plan`, `model` itself is the control and what the plan
    would make of it is probed without writing a file. `prompts` is a file (see evaluation.prompts), by default those
    that come with ggufreap; `chat_template` puts each into the model's own. `settings.n_ctx` 0 is what fits.
    """
    model, asked = Model.open(model), load_prompts(prompts)
    template = ChatTemplate.of(model.file) if chat_template else None
    with template.renderer(spans=False) if template else nullcontext() as renderer:
        texts = probing.texts_of(asked, renderer.prompt if renderer else None)
    samplings = [Sampling(n_predict, temperature, seed) for temperature in temperatures]
    longest = max(len(text.encode()) for text in texts) + SPARE_TOKENS  # a token has a byte at least
    settings = settings or WRITING
    settings = replace(settings, n_ctx=settings.n_ctx or settings.n_parallel * (longest + n_predict))

    def work(engine: LlamaSession, keep: Keep | None, which: str) -> probing.Written:
        return probing.write(
            engine, texts, samplings, keep=keep, templated=template is not None, progress=progress, which=which
        )

    names, (written, control) = _both(model, reference, plan, settings, work)
    return Probes(*names, n_predict, probing.judge(asked, written, control))


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

    (ours, theirs), (found, base) = _both(model, reference, plan, settings, work)
    return compare(f"{name}: {path.name}", ours, found, theirs, base or ())


def bench(
    model: AnyModel,
    *,
    reference: AnyModel | None = None,
    n_prompt: int = 512,
    n_gen: int = 128,
    parallel: Sequence[int] = (1, 2, 4),
    repetitions: int = 5,
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> SpeedReport:
    """Measure how fast a model reads and writes and what memory it takes, with the figures of `reference` beside it."""
    if not n_prompt and not n_gen:
        raise InputError("there is nothing to measure: 0 tokens to read and 0 to write; give -p or -n")
    settings = replace(
        settings or EngineSettings(),
        n_ctx=max(n_prompt, n_gen * max(parallel)),
        n_parallel=max(parallel),
        watched=False,
    )

    def work(engine: LlamaSession, _keep: Keep | None, which: str) -> tuple[Speed, ...]:
        return measure(
            engine,
            n_prompt=n_prompt,
            n_gen=n_gen,
            parallel=parallel,
            repetitions=repetitions,
            progress=progress,
            stage=f"speed, {which}",
        )

    (ours, theirs), (found, base) = _both(model, reference, None, settings, work)
    memory, reference_memory = (
        footprint(Model.open(each).path, settings, n_prompt or 1) if each is not None else None
        for each in (model, reference)
    )
    return SpeedReport(ours, found, theirs, base or (), memory, reference_memory)


def _both(
    model: AnyModel,
    reference: AnyModel | None,
    plan: PruningPlan | str | Path | None,
    settings: EngineSettings,
    work: Work[Result],
) -> tuple[tuple[str, str | None], tuple[Result, Result | None]]:
    """The names, and what `work` gives for the model and for its control, which are never loaded together."""
    if reference is not None and plan is not None:
        raise InputError("both a reference and a plan were given; with --plan the model itself is the reference")
    if plan is not None:
        model = Model.open(model)
        chosen = plan if isinstance(plan, PruningPlan) else load_plan(Path(plan))
        check_plan(chosen, model.identity, model.layout)
        keep = {block.index: chosen.keep[block.index] for block in model.layout.trunk}
        with LlamaSession(model.path, model.layout.nodes, settings) as engine:
            control = work(engine, None, "control")
            found = work(engine, keep, "model")
        return (f"{model.path.name}, {chosen.summary}", model.path.name), (found, control)
    settings = replace(settings, watched=False)
    base = _alone(reference, settings, work, "control") if reference is not None else (None, None)
    name, result = _alone(model, settings, work, "model")
    return (name, base[0]), (result, base[1])


def _alone(model: AnyModel, settings: EngineSettings, work: Work[Result], which: str) -> tuple[str, Result]:
    model = Model.open(model)
    with LlamaSession(model.path, model.layout.nodes, settings) as engine:
        return model.path.name, work(engine, None, which)
