"""A model beside its control: another file, or itself with all experts where a plan masks some."""

from pathlib import Path
from typing import TypeVar

from ggufreap.errors import InputError
from ggufreap.judging.trials import Trial
from ggufreap.model import AnyModel, Model
from ggufreap.planning import PruningPlan, load_plan

Result = TypeVar("Result")
Told = TypeVar("Told")


def run_trial(
    trial: Trial[Result, Told],
    model: Model,
    reference: AnyModel | None = None,
    plan: PruningPlan | str | Path | None = None,
) -> Told:
    """The trial of one model; raises InputError where two controls are named."""
    if reference is not None and plan is not None:
        raise InputError("both a reference and a plan were given; with --plan the model itself is the reference")
    if plan is not None:
        return trial.masked(model, plan if isinstance(plan, PruningPlan) else load_plan(Path(plan)))
    (told,) = trial.of([model], Model.open(reference) if reference is not None else None)
    return told
