"""The best file for a memory: prospects are estimated, the best of them made and measured, and one is kept."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from ggufreap import fitting, naming
from ggufreap.errors import EngineError, InputError
from ggufreap.files import check_space, claim, discard, make_folder, written_by
from ggufreap.fitting import Budget, Curve, Pool, Prospect
from ggufreap.handover import Handover
from ggufreap.model import AnyModel, Model
from ggufreap.narrowing import downs_path
from ggufreap.options.engine import EngineSettings
from ggufreap.options.fit import Fit
from ggufreap.options.judgement import Judgement
from ggufreap.options.output import Output
from ggufreap.options.quantisation import KEEP, Quantisation
from ggufreap.options.target import Target
from ggufreap.progress import Progress, silent
from ggufreap.units import size
from ggufreap.verbs.calibrate import Observed
from ggufreap.verbs.contest import Made, compete
from ggufreap.verbs.data import Data
from ggufreap.verbs.foresight import any_plan, foresee
from ggufreap.verbs.job import Job, settle
from ggufreap.verbs.prospects import Making, measured_curve, with_curve
from ggufreap.verbs.prune import judged, made
from ggufreap.verbs.quantize import Guide, make
from ggufreap.verbs.report import Account
from ggufreap.verbs.variants import Wanted
from ggufreap.verbs.widths import announce, widths_for

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fitted:
    """What `fit` made, the best first; of the others the files are gone.

    `curve`: what pruning loses, and whether that was measured; `account`: what the best is worth, where a report or
    gates were asked for; `handover`: how it is run and given away; `not_narrowed`: why no narrower experts were looked
    at.
    """

    model: str
    budget: Budget
    n_prospects: int
    curve: Curve
    made: tuple[Made, ...]
    account: Account | None = None
    handover: Handover | None = None
    not_narrowed: str = ""

    @property
    def best(self) -> Made:
        """The one that was kept."""
        return self.made[0]


@written_by
def fit(
    model: AnyModel,
    data: Data = None,
    *,
    target: Target,
    fit: Fit | None = None,
    quantisation: Quantisation | None = None,
    judgement: Judgement | None = None,
    output: Output | None = None,
    command: str = "",
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> Fitted:
    """The file of `model` that loses least among those that fit the memory `target.fit`; see ggufreap.options.fit.

    Prospects are all numbers of experts of several widths in all types, the unpruned model among them. What pruning
    costs is measured by masking on held-out text, what fewer neurons and types cost is tabulated, and the sum is an
    estimate: so a few prospects are made and measured, the best stays and the files of the others are removed. With
    `fit.fast` the lowest estimate alone is made. Where the model fits as it is, nothing is. Raises InfeasiblePlan where
    nothing fits, before any work.
    """
    model, fit, output = Model.open(model), fit or Fit(), output or Output()
    wishes = quantisation or Quantisation(), judgement or Judgement(), output
    _check(target, fit, *wishes)
    assert target.fit is not None  # as was checked
    budget = fitting.budget_of(model.path, target.fit, fit, settings)
    _LOG.info("%s", budget.told)
    job = _settled(model, data, target, *wishes, settings, progress)
    making, widths = _making(job), widths_for(job, fit.narrow)
    pool = making.pool(widths, target.round)
    first = fitting.contenders(pool, budget.room)[0]
    if not first.pruned and first.mix.type is None:
        _warn_unaccounted(job.judgement)
        return Fitted(str(model.path), budget, pool.size, Curve.tabulated(), (Made(first, model.path),))
    most = 1 if fit.fast else fitting.MADE
    announce(job, widths, fitting.contenders(pool, budget.room, most))
    make_folder(job.folder)
    observed = job.observe()
    pool, curve = _with_curve(job, pool, observed)
    chosen = fitting.contenders(pool, budget.room, most)
    for prospect in chosen:
        _tell(prospect)
    best, *others = compete(job, chosen, lambda prospect: _made(job, making, prospect, observed), fit.fast)
    for path in {path for other in others for path in _files(other)} - _files(best):
        discard(path)
    account = _account(job, best, observed, command)
    handover = _handed_over(job, best)
    found = best, *others
    return Fitted(str(model.path), budget, pool.size, curve, found, account, handover, widths.reason)


def _settled(
    model: Model,
    data: Data,
    target: Target,
    quantisation: Quantisation,
    judgement: Judgement,
    output: Output,
    settings: EngineSettings | None,
    progress: Progress,
) -> Job:
    """The job of a plan that removes nothing, which collects an importance matrix if anything can be quantised."""
    mixes = fitting.possible_mixes(model.file, fitting.table(), allow_requantize=quantisation.allow_requantize)
    example = next((mix.variant(model.layout) for mix in mixes if mix.type is not None), KEEP)
    everything = replace(target, fit=None, keep=model.layout.n_expert)
    wanted = replace(quantisation, quant=(example,))
    return settle(model, data, everything, wanted, judgement, output, settings, progress)


def _tell(prospect: Prospect) -> None:
    _LOG.info("estimated mean KLD %.4f: %s, %s", prospect.loss, prospect.label, size(prospect.nbytes))


def _check(target: Target, fit: Fit, quantisation: Quantisation, judgement: Judgement, output: Output) -> None:
    """Raise InputError for what has no meaning where a size decides."""
    if target.fit is None or target.ratio is not None or target.keep is not None:
        raise InputError("a size decides how many experts go: give --fit, and neither --ratio nor --keep")
    if not (fit.fast or judgement.files or judgement.split):
        raise InputError(
            "--fit makes several files and measures them on held-out text; give some with --eval-file or --eval-split, "
            "or go by the estimate with --fast"
        )
    for given, flag, why in (
        (bool(target.width_ratio) or bool(target.shrink), "--width-ratio and --shrink", "widths follow from the size"),
        (bool(quantisation.quant) and quantisation.told("quant"), "--quant", "the types follow from the size"),
        (quantisation.keep_intermediate, "--keep-intermediate", "what does not fit is not kept"),
        (bool(output.split_max_size) or output.keep_split, "--split-max-size and --keep-split", "it makes one file"),
        (output.dry_run, "--dry-run", "ggufreap frontier tells what it would choose from"),
        (
            output.out is not None and Path(output.out).suffix == ".gguf",
            "-o FILE",
            "several files are made; name a folder",
        ),
    ):
        if given:
            raise InputError(f"--fit goes without {flag}: {why}")


def _making(job: Job) -> Making:
    name = job.guide_path.name if job.guide_path else ""
    n_threads = job.settings.n_threads if job.settings else 0
    dataset = job.data.names if job.data and job.given is None else None
    return Making(
        job.model, any_plan(job), job.out, job.given, dataset, name, n_threads, job.quantisation.allow_requantize
    )


def _with_curve(job: Job, pool: Pool, observed: Observed | None) -> tuple[Pool, Curve]:
    """The pool with what pruning loses as it was measured, where there is text to measure it on."""
    if job.exam is None:
        _LOG.warning("what pruning loses is taken from a table of another model; --eval-file has it measured")
        return pool, Curve.tabulated()
    stored = observed.stored if observed else None
    curve = measured_curve(job.model, job.target, job.exam, stored, pool.counts, job.progress)
    return with_curve(pool, curve), curve


def _made(job: Job, making: Making, prospect: Prospect, observed: Observed | None) -> Made:
    """Make a prospect as `prune` and `quantize` would; raises EngineError where it is not as large as foretold."""
    make_one = _made_pruned if prospect.pruned else _made_whole
    result = make_one(job, making, prospect, observed)
    if result.proven and result.path.stat().st_size != prospect.nbytes:
        raise EngineError(f"{result.path} has not the {prospect.nbytes:,} bytes that were foretold; report this")
    return result


def _made_pruned(job: Job, making: Making, prospect: Prospect, observed: Observed | None) -> Made:
    mix = prospect.mix
    wanted = Wanted((), True) if mix.type is None else Wanted((making.variant(prospect.n_keep, mix),), False)
    width = prospect.width if prospect.narrowed else 0
    own = replace(job, target=replace(job.target, keep=prospect.n_keep), wanted=wanted, width=width)
    pruned = made(own, foresee(own), observed)
    path = pruned.quantized[0].paths[0] if pruned.quantized else pruned.script.files[0].path
    return Made(prospect, path, None, pruned)


def _made_whole(job: Job, making: Making, prospect: Prospect, observed: Observed | None) -> Made:
    suffix = making.variant(None, prospect.mix).suffix
    path = job.folder / naming.pruned_name(job.model.path, "", suffix)
    imatrix = job.given or (observed.matrix if observed else None)
    guide = Guide.of(imatrix, making.whole_imatrix, job.model.file) if imatrix is not None else Guide()
    check_space(job.folder, prospect.nbytes)
    claim(path)
    make(job.model.file, path, making.ask(None, prospect.mix), guide, job.progress)
    return Made(prospect, path)


def _files(made: Made) -> set[Path]:
    """All files that came of making it."""
    if made.pruned is None:
        return {made.path}
    beside = [made.pruned.plan_path, *filter(None, [made.pruned.imatrix_path])]
    if path := made.pruned.narrowing_path:
        beside += [path, downs_path(path)]
    return {made.path, *beside, *(file.path for file in made.pruned.script.files)}


def _handed_over(job: Job, best: Made) -> Handover | None:
    """How the best is run, with its Modelfile beside it, if it is what was promised."""
    if not best.proven:
        return None
    imatrix, report = best.pruned and best.pruned.imatrix_path, job.judgement.report
    card = Path(report) if report is not None and best.pruned else None
    handover = Handover(((best.path,),), (imatrix,) if imatrix else (), card)
    claim(handover.modelfile_path)
    handover.write()
    return handover


def _account(job: Job, best: Made, observed: Observed | None, command: str) -> Account | None:
    """The report and the gates, of a pruned file; of an unpruned one it is said that there are none."""
    if not _asking(job.judgement):
        return None
    if best.pruned is None or not best.proven:
        _warn_unaccounted(job.judgement)
        return None
    own = replace(job, target=replace(job.target, keep=best.prospect.n_keep))
    return judged(own, best.pruned, observed, command, stays=not best.pruned.quantized).account


def _asking(judgement: Judgement) -> list[str]:
    """The flags that were given of those that ask for an account."""
    flags = ("--report", judgement.report), ("--fail-if", judgement.fail_if), ("--compare", judgement.compare)
    return [flag for flag, given in flags if given]


def _warn_unaccounted(judgement: Judgement) -> None:
    if asking := _asking(judgement):
        _LOG.warning("%s: no effect, they tell of pruned files and the best one is not", ", ".join(asking))
