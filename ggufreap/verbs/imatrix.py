"""Importance matrices by themselves: what they hold, merged, checked against a model, sliced by a plan."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from ggufreap import imatrix as matrices
from ggufreap.errors import InputError
from ggufreap.files import claim, same_bytes, written_by
from ggufreap.imatrix import Coverage, Filled, ImatrixSummary
from ggufreap.model import AnyModel, Model, file_of
from ggufreap.planning import PruningPlan, check_plan, load_plan
from ggufreap.verbs.narrowing import AnyNarrowing, opened_narrowing, sliced


@dataclass(frozen=True)
class ImatrixReport:
    """What an importance matrix holds, how far it covers a model, and which gaps were filled; `path` has it if saved.

    `coverage` and `filled` are of the unpruned model; the rest is of the matrix as it came out.
    """

    summary: ImatrixSummary
    coverage: Coverage | None = None
    filled: tuple[Filled, ...] = ()
    path: Path | None = None


@written_by
def imatrix(
    files: Sequence[str | Path],
    *,
    out: str | Path | None = None,
    model: AnyModel | None = None,
    plan: PruningPlan | str | Path | None = None,
    narrowing: AnyNarrowing | None = None,
    force: bool = False,
) -> ImatrixReport:
    """Describe the importance matrix in `files`, GGUF or .dat, several of them added up, and save it at `out`.

    `model`: check that it fits. `plan`: fill experts without data and slice to the experts that stay, of `model`, the
    unpruned one, and with `narrowing` to the neurons that stay; what `prune` does. `out` ending in .dat gets the
    legacy format; another file there is replaced with `force` alone.
    """
    if out is not None:
        named = [each for each in (plan, narrowing) if isinstance(each, str | Path)]
        shards = file_of(model).paths if model is not None else []
        claim(Path(out), inputs=(*files, *shards, *named))
    for one, other in combinations(map(Path, files), 2):
        if same_bytes(one, other):
            raise InputError(f"{one} and {other} hold the same; it would count twice, name it once")
    matrix = matrices.merged([matrices.load(file) for file in files])
    coverage: Coverage | None = None
    filled: tuple[Filled, ...] = ()
    if model is not None:
        model = Model.open(model)
        matrix = matrices.adapted(matrix, model.file)
        coverage = matrices.check(matrix, model.file, model.layout)
        if plan is not None:
            chosen = plan if isinstance(plan, PruningPlan) else load_plan(Path(plan))
            check_plan(chosen, model.identity, model.layout)
            fewer = opened_narrowing(model, chosen, narrowing)
            _, filled = matrices.filled(matrix)
            matrix = sliced(model, chosen, fewer, matrix)
    elif plan is not None:
        raise InputError("a plan was given without the model it was made for; name the unpruned one with --model")
    if narrowing is not None and (plan is None or model is None):
        raise InputError("a narrowing was given without the plan whose experts it narrows; name it with --plan")
    if out is not None:
        matrices.save(out, matrix, legacy=Path(out).suffix == ".dat")
    return ImatrixReport(matrices.describe(matrix), coverage, filled, Path(out) if out is not None else None)
