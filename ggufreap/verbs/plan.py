"""Which experts stay."""

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ggufreap import blending, saliency
from ggufreap import imatrix as matrices
from ggufreap.errors import InputError, MismatchError
from ggufreap.evidence import require_scores
from ggufreap.model import AnyModel, Model
from ggufreap.observation import AnyStatistics, DomainStatistics, Floats, Stored
from ggufreap.options.engine import EngineSettings
from ggufreap.options.flag import refuse_unused
from ggufreap.options.target import AUTO_RATIO, BEST, DEFAULT_METHOD, MIRROR, Target
from ggufreap.planning import NOTES, PruningPlan, count_to_keep, make_plan
from ggufreap.progress import Progress, silent
from ggufreap.selection.choosing import choose
from ggufreap.selection.methods import calibrates, check_weighing, method_names, method_of
from ggufreap.selection.portfolio import Contender
from ggufreap.verbs import trust
from ggufreap.verbs.best import best_method
from ggufreap.verbs.rounding import rounded

_LOG = logging.getLogger(__name__)


def plan(
    model: AnyModel,
    target: Target,
    *,
    stats: AnyStatistics | None = None,
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> PruningPlan:
    """Choose the experts that stay.

    `stats` is what `calibrate` saved; the methods `random` and `weight_norm`, and an importance matrix, need none. The
    method `best` loads the model, with `settings`, and judges methods on what calibration held back; the plan says
    which won, and by how much.
    """
    method = chosen_method(target)
    model = Model.open(model)
    trust.warn(model)
    target = rounded(model.layout, target)
    n_keep = count_to_keep(model.layout, target.ratio, target.keep)
    model.check_weights()
    warn_of_mtp(model, target)
    if stats is not None and not calibrates(method):
        what = "an importance matrix" if method == saliency.IMATRIX else f"method {method}, which needs none,"
        raise InputError(f"both statistics and {what} were given to choose by; give one of them")
    basis: Mapping[str, Any]
    if not calibrates(method):
        basis = {"scores": _scores_without(model, target, method, progress)}
    elif stats is None:
        raise InputError(f"method {method} needs statistics; make them with calibrate, or use {saliency.WEIGHT_NORM}")
    else:
        basis = _by_statistics(model, target, Stored.of(stats), n_keep, settings, progress)
    return make_plan(
        model.layout,
        model.identity,
        method=method,
        ratio=target.ratio,
        n_keep=target.keep,
        mtp=target.mtp,
        **basis,
    )


def _scores_without(model: Model, target: Target, method: str, progress: Progress) -> Floats:
    """The scores of a method that needs no statistics."""
    if method == saliency.RANDOM:
        return saliency.random_scores(len(model.layout.trunk), model.layout.n_expert, target.seed)
    if method == saliency.WEIGHT_NORM:
        return saliency.weight_norms(model.file, model.layout, progress)
    return _of_matrix(model, Path(str(target.from_imatrix)), progress)


def _by_statistics(
    model: Model, target: Target, stored: Stored, n_keep: int, settings: EngineSettings | None, progress: Progress
) -> Mapping[str, Any]:
    """What a method that calibrates tells a plan."""
    statistics = _statistics_of(stored, model)
    if "blend" in target.given and len(statistics.domains) == 1:
        model.warn(f"--blend {target.blend}: no effect, {stored.path} tells of one domain")
    remarks: tuple[str, ...] = ()
    if target.method == BEST:
        verdict = best_method(
            model, stored, statistics, n_keep, budget=target.budget, settings=settings, progress=progress
        )
        by, remarks = verdict.chosen, (verdict.line,)
    else:
        by = Contender(target.method, target.blend or default_blend(statistics.domains))
    choice = choose(statistics, by.method, by.blend, n_keep, model.layout.n_group)
    row = method_of(by.method)
    # Ranks tell any experts apart, so what they rank has to.
    evidence = blending.blend(statistics, by.blend, row.criterion)
    require_scores(evidence, statistics.blocks, n_keep, by.method)
    return {
        "scores": row.score(statistics, by.blend),
        "chosen": choice.rows,
        "blend": by.blend,
        "remarks": (*remarks, *filter(None, [blending.remark(by.method, by.blend), choice.note])),
        "criterion": by.method if target.method == BEST else "",
        "corpus": stored.provenance.corpus,
        "datasets": stored.provenance.sources,
    }


def _of_matrix(model: Model, path: Path, progress: Progress) -> Floats:
    matrix = matrices.load_for(path, model.file)
    matrices.check(matrix, model.file, model.layout)
    model.warn(f"the experts that stay are {NOTES[saliency.IMATRIX]}. Calibrate where you can.")
    return saliency.imatrix_scores(matrix, model.file, model.layout, progress)


def chosen_method(target: Target) -> str:
    """The method, `imatrix` where there is one to choose from; raises InputError unless all of it is known and fits."""
    method = target.method
    if target.blend is not None:
        blending.check_blend(target.blend)
    if method != BEST:
        refuse_unused(target, {"budget": f"judging methods, which --method {BEST} does and {method} does not"})
    if target.from_imatrix is not None:
        if method not in (DEFAULT_METHOD, saliency.IMATRIX):
            raise InputError(f"method {method} does not work from an importance matrix; leave it or the matrix out")
        refuse_unused(target, {"blend": "methods that choose by statistics"})
        return saliency.IMATRIX
    if method == saliency.IMATRIX:
        raise InputError("method imatrix needs an importance matrix; name one with --from-imatrix")
    if method in (saliency.RANDOM, saliency.WEIGHT_NORM):
        refuse_unused(target, {"blend": "methods that choose by statistics"})
    if method not in method_names():
        known = ", ".join((*method_names(), saliency.IMATRIX))
        raise InputError(f"method {method!r} is not known; choose one of {known}")
    check_weighing(method, target.blend)
    if method == BEST and target.blend is not None:
        raise InputError(f"method {BEST} chooses the blend too; leave out --blend {target.blend}, or name a method")
    if method == BEST and target.ratio == AUTO_RATIO:
        raise InputError(f"the ratio {AUTO_RATIO} is searched with one method; name one instead of {BEST}")
    return method


def warn_of_mtp(model: Model, target: Target) -> None:
    """Say where there are no MTP blocks to be left out."""
    if target.mtp != MIRROR and model.layout.n_trunk == model.layout.n_block:
        model.warn(f"--mtp {target.mtp}: no effect, {model.path.name} has no MTP blocks")


def check_data(method: str, is_given: bool) -> None:
    """Raise InputError where text was given to a method that runs none."""
    if is_given and not calibrates(method):
        what = "an importance matrix to choose from" if method == saliency.IMATRIX else f"method {method}"
        raise InputError(f"both {what} and a text were given, which is not run for it; give one of them")


def default_blend(domains: Collection[str]) -> str:
    """All domains alike, however much text each has; one alone has nothing to be weighed against."""
    return blending.UNIFORM if len(domains) > 1 else blending.TOKENS


def _statistics_of(stored: Stored, model: Model) -> DomainStatistics:
    provenance = stored.provenance
    known = provenance.model, provenance.structure, provenance.types
    told = f"{stored.path} was calibrated on model {provenance.model[:12]}"
    model.identity.require(told, "calibrate this file", *known)
    blocks = model.layout.nodes.blocks
    missing = [block.index for block in blocks if block.index not in stored.blocks]
    if missing:
        raise MismatchError(
            f"{stored.path} holds {len(stored.blocks)} of the {len(blocks)} MoE blocks, not block {missing[0]}; merge "
            "it with the statistics of the others"
        )
    if provenance.missing:
        model.warn(f"{stored.path} holds {provenance.missing}")
    statistics = stored.domain_statistics()
    statistics.check()
    if mute := statistics.total.mute:
        block, expert = mute[0]
        model.warn(
            f"{len(mute)} experts gave exactly nothing for all of their tokens, first expert {expert} of block "
            f"{block}: they have zero weights, or never act. If that is not meant so, the model file is not whole"
        )
    return statistics
