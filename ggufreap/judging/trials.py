"""What a loaded model is made to do, and what is told of it beside its control, which does the same once for all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from ggufreap.engine.protocol import Keep
from ggufreap.engine.session import LlamaSession
from ggufreap.judging.masking import mask_of
from ggufreap.model import Model
from ggufreap.options.engine import EngineSettings
from ggufreap.planning import PruningPlan, check_plan

Result = TypeVar("Result")
Told = TypeVar("Told")


@dataclass(frozen=True)
class Done(Generic[Result]):
    """What a model did; `name` is for the reader."""

    name: str
    model: Model
    result: Result


@dataclass(frozen=True)
class Trial(Generic[Result, Told]):
    """`work` is done with a loaded model, all experts or a keep-set, as `model` or `control`; `tell` reports it."""

    settings: EngineSettings
    work: Callable[[LlamaSession, Keep | None, str], Result]
    tell: Callable[[Done[Result], Done[Result] | None], Told]

    def of(self, models: Sequence[Model], control: Model | None) -> tuple[Told, ...]:
        """Each of `models`, one loaded after the other, against the control, which is loaded first and once."""
        settings = replace(self.settings, watched=False)
        base = self._done(control, settings, "control") if control is not None else None
        return tuple(self.tell(self._done(model, settings, "model"), base) for model in models)

    def masked(self, model: Model, plan: PruningPlan) -> Told:
        """What `plan` would make of `model`, against `model` itself: from one load, without writing a file."""
        check_plan(plan, model.identity, model.layout)
        with LlamaSession(model.path, model.layout.nodes, self.settings) as engine:
            control = self.work(engine, None, "control")
            pruned = self.work(engine, mask_of(model, plan), "model")
        name = model.path.name
        return self.tell(Done(f"{name}, {plan.summary}", model, pruned), Done(name, model, control))

    def _done(self, model: Model, settings: EngineSettings, which: str) -> Done[Result]:
        with LlamaSession(model.path, model.layout.nodes, settings) as engine:
            return Done(model.path.name, model, self.work(engine, None, which))
