"""How fast a model reads and writes, and what memory it takes."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from ggufreap.engine.footprint import footprint
from ggufreap.engine.protocol import Keep
from ggufreap.engine.session import LlamaSession
from ggufreap.errors import InputError
from ggufreap.evaluation.speed import Speed, SpeedReport, measure
from ggufreap.judging.trials import Done, Trial
from ggufreap.model import AnyModel, Model
from ggufreap.options.engine import EngineSettings
from ggufreap.progress import Progress, silent
from ggufreap.verbs.control import run_trial

PARALLEL = (1, 2, 4)


def bench(
    model: AnyModel,
    *,
    reference: AnyModel | None = None,
    n_prompt: int = 512,
    n_gen: int = 128,
    parallel: Sequence[int] | None = None,
    repetitions: int = 5,
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> SpeedReport:
    """Measure how fast a model reads and writes and what memory it takes, with the figures of `reference` beside it.

    `parallel`: how many texts are written at once (None: PARALLEL).
    """
    trial = bench_trial(n_prompt, n_gen, parallel, repetitions, settings, progress)
    return run_trial(trial, Model.open(model), reference)


def bench_trial(
    n_prompt: int = 512,
    n_gen: int = 128,
    parallel: Sequence[int] | None = None,
    repetitions: int = 5,
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> Trial[tuple[Speed, ...], SpeedReport]:
    """The tests of `bench`; memory is measured in a process of its own, once the models are gone from this one."""
    if not n_prompt and not n_gen:
        raise InputError("there is nothing to measure: 0 tokens to read and 0 to write; give -p or -n")
    if parallel is not None and not n_gen:
        raise InputError("-np is for tokens that are written, and -n 0 writes none; leave it out")
    parallel = parallel or PARALLEL
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

    @cache
    def memory(path: Path) -> int | None:
        return footprint(path, settings, n_prompt or 1)

    def tell(done: Done[tuple[Speed, ...]], control: Done[tuple[Speed, ...]] | None) -> SpeedReport:
        peaks = (memory(each.model.path) if each else None for each in (done, control))
        beside = (control.name, control.result) if control else (None, ())
        return SpeedReport(done.name, done.result, *beside, *peaks)

    return Trial(settings, work, tell)
