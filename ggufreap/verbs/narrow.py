"""Writing a file of narrower experts."""

import logging
from dataclasses import dataclass
from pathlib import Path

from ggufreap import imatrix as matrices
from ggufreap import naming
from ggufreap.errors import InputError
from ggufreap.files import check_free, check_space, claim, written_by
from ggufreap.imatrix import Imatrix
from ggufreap.model import AnyModel, Model
from ggufreap.narrowing import Narrowing
from ggufreap.options.engine import EngineSettings
from ggufreap.options.output import Output
from ggufreap.options.target import Target
from ggufreap.planning import PruningPlan, check_plan, load_plan, save_plan
from ggufreap.progress import Progress, silent
from ggufreap.rewriting import Narrow, RewriteScript, execute
from ggufreap.rewriting.metadata import has_origin
from ggufreap.showing import to_copy
from ggufreap.verbs import trust
from ggufreap.verbs.apply import script_of
from ggufreap.verbs.data import Data, asks, open_own_data
from ggufreap.verbs.narrowing import any_narrowing, check_down, columns_nbytes, narrow_by, narrowing_of, settled

_LOG = logging.getLogger(__name__)
EVERYTHING = "all"


@dataclass(frozen=True)
class Narrowed:
    """What `narrow` made: the file, the plan of the experts that stay, and the neurons that stay in each of them."""

    script: RewriteScript
    plan: PruningPlan
    plan_path: Path
    narrowing: Narrowing
    narrowing_path: Path

    def check(self, model: Model) -> str:
        """The command that proves it."""
        made = self.script.files[0].path
        return to_copy("verify", model.path, made, "--plan", self.plan_path, "--narrowing", self.narrowing_path)


@written_by
def narrow(
    model: AnyModel,
    data: Data = None,
    *,
    width_ratio: str | float,
    output: Output | str | Path,
    plan: PruningPlan | str | Path | None = None,
    imatrix: str | Path | None = None,
    allow_requantize: bool = False,
    sequential: bool = False,
    memory: int = 0,
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> Narrowed:
    """Remove the fraction `width_ratio` of the neurons from every expert, and let the others make up for them.

    `data` runs through the model with the experts masked that `plan` drops (None: all stay). The file is written at
    `output`, the narrowing beside it, and the plan where none was given; `imatrix`, of the model, guides how columns of
    down are quantised, which takes `allow_requantize` below 8 bits. `sequential`: block by block, each making up for
    the errors of those before it too; `memory`: bytes for what is summed up at a time, 0: half of what is free.
    Nothing is proven of the file until `verify` has run. Raises UnsupportedModel where experts of this model cannot be
    narrower.
    """
    model = Model.open(model)
    chosen = plan if isinstance(plan, PruningPlan) else load_plan(Path(plan)) if plan is not None else everything(model)
    check_plan(chosen, model.identity, model.layout)
    _, width = settled(model, Target(width_ratio=width_ratio))
    check_down(model, allow_requantize, intermediate=False)
    asked = output if isinstance(output, Output) else Output(output)
    path = _path_of(asked)
    matrix = _matrix_of(imatrix, model)
    stem = naming.stem_of(path)
    plan_path = Path(plan) if isinstance(plan, str | Path) else path.with_name(f"{stem}.plan.json")
    narrowing_path = path.with_name(f"{stem}.narrowing.json")
    foreseen = any_narrowing(model, chosen, width)
    script = script_of(model, chosen, path, asked, Narrow(foreseen))
    opened = open_own_data(data) if asks(data) or not asked.dry_run else None
    if opened is None or asked.dry_run:
        return Narrowed(script, chosen, plan_path, foreseen, narrowing_path)
    trust.require_trust(model)
    named = plan if isinstance(plan, str | Path) else None
    claim(*(file.path for file in script.files), inputs=(*model.file.paths, *opened.paths, imatrix, named))
    for file in script.files:
        check_free(file.path, has_origin(file.path, model.file, chosen))
    check_space(path.parent, script.nbytes + columns_nbytes(model, foreseen))
    if plan is None:
        claim(plan_path)
        check_free(plan_path, _is_same(plan_path, chosen))
    narrowing = narrowing_of(
        model, chosen, width, narrowing_path, opened, settings, progress, sequential=sequential, memory=memory
    )
    script = script_of(model, chosen, path, asked, narrow_by(model, chosen, narrowing, matrix, intermediate=False))
    execute(script, progress)
    if not isinstance(plan, str | Path):
        save_plan(plan_path, chosen)
    made = Narrowed(script, chosen, plan_path, narrowing, narrowing_path)
    _LOG.warning("%s is unproven: %s", script.files[0].path, made.check(model))
    return made


def _matrix_of(imatrix: str | Path | None, model: Model) -> Imatrix | None:
    if imatrix is None:
        return None
    matrix = matrices.load_for(imatrix, model.file)
    matrices.check(matrix, model.file, model.layout)
    return matrix


def _path_of(output: Output) -> Path:
    if output.out is None:
        raise InputError("narrow writes a file; name it with -o")
    path = Path(output.out)
    if path.suffix != ".gguf":
        raise InputError(f"{path} does not end in .gguf; name the file that narrow writes with -o")
    return path


def everything(model: Model) -> PruningPlan:
    """The plan by which every expert stays."""
    layout, ids = model.layout, tuple(range(model.layout.n_expert))
    keep = {block.index: ids for block in layout.blocks}
    return PruningPlan(
        model.identity, EVERYTHING, "0.00", layout.n_expert, layout.n_expert, "mirror", keep, n_group=layout.n_group
    )


def _is_same(path: Path, plan: PruningPlan) -> bool:
    try:
        return load_plan(path) == plan
    except InputError:
        return False
