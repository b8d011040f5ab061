"""What a model writes: probes for loops, answers without end and changed languages."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from ggufreap.corpus.chat import ChatTemplate
from ggufreap.engine.generator import Sampling
from ggufreap.engine.protocol import Keep
from ggufreap.engine.session import LlamaSession
from ggufreap.errors import InputError
from ggufreap.evaluation import probes as probing
from ggufreap.evaluation.probes import TEMPERATURES, Probes
from ggufreap.evaluation.prompts import load_prompts
from ggufreap.judging.trials import Done, Trial
from ggufreap.model import AnyModel, Model
from ggufreap.options.engine import WRITING, EngineSettings
from ggufreap.options.flag import MOST
from ggufreap.planning import PruningPlan
from ggufreap.progress import Progress, silent
from ggufreap.verbs.control import run_trial

SAMPLINGS = tuple(Sampling(256, each, 0) for each in TEMPERATURES)
SPARE_TOKENS = 16  # that a tokenizer adds to a text


def probe(
    model: AnyModel,
    *,
    reference: AnyModel | None = None,
    plan: PruningPlan | str | Path | None = None,
    prompts: str | Path | None = None,
    n_predict: int = 256,
    temperatures: Sequence[float] = TEMPERATURES,
    seed: int | None = None,
    chat_template: bool = True,
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> Probes:
    """Let `model` answer prompts, and tell which answers loop, never end, say nothing or change the language.

    The control is `reference`, the unpruned file; or, with `plan`, `model` itself is the control and what the plan
    would make of it is probed without writing a file. `prompts` is a file (see evaluation.prompts), by default those
    that come with ggufreap; `chat_template` puts each into the model's own. `seed` (None: 0) draws at temperatures
    above 0. `settings.n_ctx` 0 is what fits.
    """
    model = Model.open(model)
    if seed is not None and not any(temperatures):
        raise InputError("--seed draws at temperatures above 0, and there is none; leave it out, or add a --temp")
    samplings = [Sampling(n_predict, temperature, seed or 0) for temperature in temperatures]
    return run_trial(probe_trial(model, prompts, samplings, chat_template, settings, progress), model, reference, plan)


def probe_trial(
    model: Model,
    prompts: str | Path | None = None,
    samplings: Sequence[Sampling] = SAMPLINGS,
    chat_template: bool = True,
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> Trial[probing.Written, Probes]:
    """The prompts, in the template of `model`, which its control gets too."""
    asked = load_prompts(prompts)
    template = ChatTemplate.of(model.file) if chat_template else None
    with template.renderer(spans=False) if template else nullcontext() as renderer:
        texts = probing.texts_of(asked, renderer.prompt if renderer else None)
    n_predict = samplings[0].n_predict
    longest = max(len(text.encode()) for text in texts) + SPARE_TOKENS  # a token has a byte at least
    settings = settings or WRITING
    if (n_ctx := settings.n_parallel * (longest + n_predict)) > MOST:
        raise InputError(f"-n {n_predict}: {n_ctx:,} tokens for {settings.n_parallel} texts at once; give a smaller -n")
    settings = replace(settings, n_ctx=settings.n_ctx or n_ctx)

    def work(engine: LlamaSession, keep: Keep | None, which: str) -> probing.Written:
        return probing.write(
            engine, texts, samplings, keep=keep, templated=template is not None, progress=progress, which=which
        )

    def tell(done: Done[probing.Written], control: Done[probing.Written] | None) -> Probes:
        judged = probing.judge(asked, done.result, control.result if control else None)
        return Probes(done.name, control.name if control else None, n_predict, judged)

    return Trial(settings, work, tell)
