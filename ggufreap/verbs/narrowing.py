"""A narrowing as verbs take it: a value, or the file that `narrow` saved."""

from pathlib import Path

from ggufreap.architecture.width import expert_width
from ggufreap.model import Model
from ggufreap.narrowing import Narrowing, check_narrowing, load_narrowing
from ggufreap.planning import PruningPlan

AnyNarrowing = Narrowing | str | Path


def opened_narrowing(model: Model, plan: PruningPlan, narrowing: AnyNarrowing | None) -> Narrowing | None:
    """The narrowing, checked against the model and the plan whose experts it narrows.

    Raises UnsupportedModel where experts of this model cannot be narrower, InfeasiblePlan or MismatchError for a
    narrowing that does not belong to it.
    """
    if narrowing is None:
        return None
    found = narrowing if isinstance(narrowing, Narrowing) else load_narrowing(Path(narrowing), plan)
    down = model.file.by_name[f"blk.{model.layout.blocks[0].index}.ffn_down_exps.weight"]
    check_narrowing(found, plan, expert_width(model.file, model.layout), down.shape[1])
    return found
