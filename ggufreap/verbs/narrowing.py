"""How many neurons stay, and which: what was asked for, what is on disk already, and what is computed."""

import logging
from dataclasses import replace
from pathlib import Path

from ggufreap import imatrix as matrices
from ggufreap.architecture.width import expert_width, resized
from ggufreap.container import TensorRecord, bits_per_weight, block_size, is_quantized, type_name
from ggufreap.corpus.request import Opened
from ggufreap.errors import InputError
from ggufreap.files import check_free, claim, remove_kept, work_in
from ggufreap.imatrix import Imatrix
from ggufreap.model import Model
from ggufreap.narrowing import Narrowing, check_narrowing, downs_path, load_narrowing, save_narrowing, solves
from ggufreap.narrowing.splitting import split
from ggufreap.narrowing.widths import BLOCK, width_to_keep
from ggufreap.narrowing.workplace import METHOD, Workplace
from ggufreap.options.engine import EngineSettings
from ggufreap.options.flag import refuse_unused
from ggufreap.options.target import AUTO_RATIO, FRIENDLY, Target
from ggufreap.planning import PruningPlan
from ggufreap.planning.counts import feasible_counts
from ggufreap.progress import Progress
from ggufreap.rewriting import Narrow
from ggufreap.verbs.compensation import compensated, task_of

GOOD_BITS = 8  # per weight: what has fewer was quantised for its size, and would lose a second time
AnyNarrowing = Narrowing | str | Path
_LOG = logging.getLogger(__name__)


def opened_narrowing(model: Model, plan: PruningPlan, narrowing: AnyNarrowing | None) -> Narrowing | None:
    """The narrowing, checked against the model and the plan whose experts it narrows.

    Raises UnsupportedModel where experts of this model cannot be narrower, InfeasiblePlan or MismatchError for a
    narrowing that does not belong to it.
    """
    if narrowing is None:
        return None
    opened = narrowing if isinstance(narrowing, Narrowing) else load_narrowing(Path(narrowing), plan)
    check_narrowing(opened, plan, expert_width(model.file, model.layout), _down(model).shape[1])
    return opened


def settled(model: Model, target: Target) -> tuple[Target, int]:
    """The target with a number of experts, and the neurons that stay in each of them; 0 for all of them.

    Says why a width is not what was asked for. Raises InputError for wishes that exclude each other, UnsupportedModel
    where experts cannot be narrower, InfeasiblePlan for what cannot be.
    """
    if target.shrink is None and target.width_ratio is None:
        refuse_unused(
            target, dict.fromkeys(("sequential", "narrow_memory"), "how experts are narrowed, and they are not")
        )
        return target, 0
    if target.shrink is not None and (target.width_ratio, target.ratio, target.keep) != (None, None, None):
        raise InputError("--shrink divides the cut between experts and neurons itself; leave --width-ratio and all out")
    if target.ratio == AUTO_RATIO:
        raise InputError("the ratio auto is found by masking whole experts; name a ratio beside --width-ratio")
    width, layout = expert_width(model.file, model.layout), model.layout
    block = max(BLOCK, block_size(_down(model).type))
    if target.shrink is None:
        found = width_to_keep(width, str(target.width_ratio), block)
        if found.reason:
            _LOG.info("%d of %d neurons stay in every expert, %s", found.width, width, found.reason)
        return target, found.width
    cut = split(
        layout.n_expert,
        width,
        target.shrink,
        block=block if width % block == 0 and width > block else BLOCK,
        n_group=layout.n_group,
        allowed=feasible_counts(layout, friendly=target.round == FRIENDLY).__contains__,
    )
    _LOG.info("--shrink %s %s", target.shrink, cut.reason)
    return replace(target, shrink=None, keep=cut.n_keep), 0 if cut.width == width else cut.width


def check_down(model: Model, allow_requantize: bool, intermediate: bool) -> None:
    """Raise InputError where down would be quantised a second time below 8 bits without leave."""
    down = _down(model)
    if not is_quantized(down.type) or intermediate or bits_per_weight(down.type) >= GOOD_BITS or allow_requantize:
        return
    raise InputError(
        f"{model.path}: narrower experts have down encoded anew, and it is {type_name(down.type)}, which would lose "
        "twice; start from F16, BF16 or Q8_0, or do it all the same with --allow-requantize"
    )


def any_narrowing(model: Model, plan: PruningPlan, width: int) -> Narrowing:
    """A narrowing of this width, which changes no size of what the real one gives."""
    return Narrowing.of_first(expert_width(model.file, model.layout), width, plan.keep, plan.n_keep, METHOD)


def columns_nbytes(model: Model, narrowing: Narrowing | None) -> int:
    """The most that the columns of down take on disk: where they wait while they are computed, and where they stay."""
    if narrowing is None:
        return 0
    return sum(2 * 4 * ids.size * _down(model).shape[1] for ids in narrowing.neurons.values())


def narrowing_of(
    model: Model,
    plan: PruningPlan,
    width: int,
    path: Path,
    data: Opened,
    settings: EngineSettings | None,
    progress: Progress,
    sequential: bool = False,
    memory: int = 0,
) -> Narrowing:
    """The narrowing at `path`, where it is that of the same text and plan; else it is computed and saved there.

    An interrupted run goes on where it was: solved blocks wait in a folder beside it. Where only the columns are gone,
    they are computed again.
    """
    task = task_of(model, plan, width, data, settings, sequential)
    claim(path, downs_path(path), inputs=model.file.paths)
    folder = path.with_suffix("")
    solved = solves(path, task.sha256, plan)
    if solved and (known := _loaded(path, plan)):
        remove_kept(folder)  # of a run that died when all was saved
        return known
    check_free(path, solved and not downs_path(path).exists())  # what was edited or damaged is not what was made here
    work_in(folder)
    if not Workplace(folder, task).complete:  # else columns that lie there are compared with them, byte by byte
        check_free(downs_path(path))
    solution = compensated(
        *(model, plan, width, folder, data),
        memory=memory,
        sequential=sequential,
        settings=settings,
        progress=progress,
    )
    save_narrowing(path, solution.narrowing, plan, task=task.sha256, progress=progress)
    del solution  # whose columns are mapped from the folder
    Workplace(folder, task).remove()
    return load_narrowing(path, plan)


def _loaded(path: Path, plan: PruningPlan) -> Narrowing | None:
    """The narrowing at `path` with what is to be known of it, None where its files are not whole any more."""
    try:
        known = load_narrowing(path, plan)
    except InputError as error:
        _LOG.warning("narrowing again: %s", error)
        return None
    _LOG.info("using the narrowing in %s", path)
    for remark in known.remarks:
        _LOG.warning("%s", remark)
    return known


def narrow_by(
    model: Model, plan: PruningPlan, narrowing: Narrowing, matrix: Imatrix | None, intermediate: bool
) -> Narrow:
    """How the file gets narrower, with the importance of down from the `matrix` of the whole model."""
    importance = {}
    if matrix is not None:
        part = sliced(model, plan, narrowing, matrix)
        importance = {
            name: matrices.means(entry).reshape(plan.n_keep, narrowing.width)
            for name, entry in part.entries.items()
            if name.endswith("ffn_down_exps.weight")
        }
    return Narrow(narrowing, intermediate, importance)


def sliced(model: Model, plan: PruningPlan, narrowing: Narrowing | None, matrix: Imatrix) -> Imatrix:
    """The importance matrix of what stays, gaps filled: of the kept experts, and of their kept neurons."""
    complete, _ = matrices.filled(matrix)
    part = matrices.sliced(complete, model.layout, plan.keep)
    if narrowing is None:
        return part
    return matrices.narrowed(part, narrowing.neurons, resized(model.file, model.layout, narrowing.width).shared)


def _down(model: Model) -> TensorRecord:
    return model.file.by_name[f"blk.{model.layout.blocks[0].index}.ffn_down_exps.weight"]
