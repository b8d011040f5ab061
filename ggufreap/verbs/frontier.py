"""Size against estimated loss, of the whole model and of pruned ones: shown without making anything."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ggufreap import fitting, naming
from ggufreap import imatrix as matrices
from ggufreap.errors import InputError
from ggufreap.fitting import Budget, Curve, Step
from ggufreap.judging import Exam
from ggufreap.model import AnyModel, Model
from ggufreap.observation import AnyStatistics, Stored
from ggufreap.options.engine import ATTENTION, BATCH, PLACEMENT, EngineSettings
from ggufreap.options.fit import Fit
from ggufreap.options.flag import flags_of, refuse_unused
from ggufreap.options.judgement import HeldOut
from ggufreap.options.target import Target
from ggufreap.planning import PruningPlan, make_plan
from ggufreap.progress import Progress, silent
from ggufreap.saliency import random_scores
from ggufreap.selection.methods import calibrates
from ggufreap.units import size
from ggufreap.verbs.plan import chosen_method, default_blend, warn_of_mtp
from ggufreap.verbs.prospects import Making, measured_curve, with_curve
from ggufreap.verbs.widths import widths_of

STEPS = 12
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Frontier:
    """The lowest estimates within sizes from small to large, of a model of `nbytes`.

    `curve`: what pruning loses, and whether that was measured; `budget` and `fitting`, where a memory was named: what
    is left of it for the file, and the lowest estimates within that. `verdict`: where pruning is worth it, in words;
    `not_narrowed`: why no narrower experts are among them.
    """

    model: str
    nbytes: int
    n_prospects: int
    steps: tuple[Step, ...]
    curve: Curve
    budget: Budget | None
    fitting: Step | None
    verdict: str
    not_narrowed: str = ""


def frontier(
    model: AnyModel,
    held_out: HeldOut | None = None,
    *,
    target: Target | None = None,
    fit: Fit | None = None,
    stats: AnyStatistics | None = None,
    steps: int = STEPS,
    allow_requantize: bool = False,
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> Frontier:
    """What `prune --fit` would choose from, at `steps` sizes, and within `target.fit` where it is set.

    With held-out text and statistics what pruning loses is measured, by masking experts in the loaded model; without
    both it is taken from a table of another model, and nothing is loaded. Raises InfeasiblePlan where nothing fits.
    """
    target, fit = target or Target(), fit or Fit()
    held_out = held_out or HeldOut()
    refuse_unused(held_out, {"fail_if": "files that are judged, and the frontier makes none"})
    judged = bool(held_out.files)
    if judged != (stats is not None or target.from_imatrix is not None) or (held_out.told("chunks") and not judged):
        raise InputError(
            "what pruning loses is measured with statistics and held-out text: give both, --stats (or --from-imatrix) "
            "and -f, or none of them for an estimate from a table"
        )
    if not judged:
        _refuse_unused(target, settings or EngineSettings())
    model = Model.open(model)
    warn_of_mtp(model, target)
    target = replace(target, method=chosen_method(target))
    exam = Exam.of(held_out, settings) if judged else None
    budget = fitting.budget_of(model.path, target.fit, fit, settings) if target.fit is not None else None
    if budget is not None and not judged:
        _LOG.info("sizes are without what the header will tell of calibration data, some hundred bytes")
    known = None if stats is None else Stored.of(stats)
    making = _making(model, target, known, allow_requantize)
    widths = widths_of(model, fit.narrow, text=calibrates(target.method))
    pool = making.pool(widths, target.round)
    if exam is not None:
        curve = measured_curve(model, target, exam, known, pool.counts, progress)
        pool = with_curve(pool, curve)
    else:
        curve = Curve.tabulated()
    shown = fitting.frontier(pool, fitting.spread(pool, steps))
    within = None
    if budget is not None:
        if fitting.lowest(pool, budget.room) is None:
            _LOG.info("%s", budget.told)
        fitting.contenders(pool, budget.room)  # raises where nothing fits
        (within,) = fitting.frontier(pool, [budget.room])
    size_of_it = str(model.path), model.file.nbytes, pool.size
    return Frontier(*size_of_it, tuple(shown), curve, budget, within, verdict(shown), widths.reason)


def _refuse_unused(target: Target, settings: EngineSettings) -> None:
    """Raise InputError for what was given to measure with, where nothing is."""
    measuring = "measuring what pruning loses, for which --stats and -f are needed"
    refuse_unused(target, dict.fromkeys(("method", "blend"), measuring))
    sized = () if target.fit is None else (BATCH, PLACEMENT, ATTENTION)  # which decide on buffers
    refuse_unused(settings, {name: measuring for name, flag in flags_of(settings).items() if flag.group not in sized})


def _making(model: Model, target: Target, known: Stored | None, allow_requantize: bool) -> Making:
    """As `prune --fit` makes it of the same text or matrix, so that every header has the same bytes."""
    path = target.from_imatrix
    given = None if path is None else matrices.load_for(path, model.file)
    name = f"{naming.stem_of(model.path)}.imatrix.gguf" if path is None else Path(path).name
    dataset = "" if known is None else known.provenance.source
    return Making(model, whole_plan(model, target, known), None, given, dataset, name, 0, allow_requantize)


def whole_plan(model: Model, target: Target, known: Stored | None = None) -> PruningPlan:
    """A plan that removes nothing, by statistics where they are `known`: from one of any count the sizes of all others
    follow."""
    layout, provenance = model.layout, known and known.provenance
    scores = random_scores(len(layout.trunk), layout.n_expert, target.seed)
    return make_plan(
        layout,
        model.identity,
        scores,
        method=target.method,
        n_keep=layout.n_expert,
        mtp=target.mtp,
        corpus=provenance.corpus if provenance else "",
        datasets=provenance.sources if provenance else (),
        blend=target.blend or (default_blend({each.domain for each in provenance.sources}) if provenance else ""),
    )


def verdict(steps: Sequence[Step]) -> str:
    """Where pruning is estimated to lose less than fewer bits alone, in words."""
    better = [step for step in steps if step.winner and step.winner.pruned]
    if not better:
        return "pruning is not estimated to be better at any size: quantise the model as it is (ggufreap quantize)"
    if all(step.unpruned is None for step in better):
        return f"pruning is estimated to be better only where no unpruned file is so small: {size(better[-1].nbytes)}"
    if len(better) == len(steps):
        return "pruning is estimated to lose less than fewer bits alone at every size"
    return (
        f"pruning is estimated to lose less than fewer bits alone up to {size(better[-1].nbytes)}; "
        "above, quantise the model as it is (ggufreap quantize)"
    )
