"""Which experts stay."""

import logging
from collections.abc import Collection
from pathlib import Path

from ggufreap import blending, saliency
from ggufreap import imatrix as matrices
from ggufreap.errors import InputError, MismatchError
from ggufreap.model import AnyModel, Model
from ggufreap.observation import AnyStatistics, DomainStatistics, Floats, Stored
from ggufreap.options.target import REAP, Target
from ggufreap.planning import NOTES, PruningPlan, count_to_keep, make_plan
from ggufreap.progress import Progress, silent
from ggufreap.verbs import trust

_LOG = logging.getLogger(__name__)


def plan(
    model: AnyModel, target: Target, *, stats: AnyStatistics | None = None, progress: Progress = silent
) -> PruningPlan:
    """Choose the experts that stay.

    `stats` is what `calibrate` saved; the methods `random` and `weight_norm`, and an importance matrix, need none.
    """
    method = chosen_method(target)
    model = Model.open(model)
    trust.warn(model)
    count_to_keep(model.layout, target.ratio, target.keep)
    model.check_weights()
    if stats is not None and method not in saliency.METHODS:
        what = "an importance matrix" if method == saliency.IMATRIX else f"method {method}, which needs none,"
        raise InputError(f"both statistics and {what} were given to choose by; give one of them")
    stored, how = None, ""
    if method == saliency.IMATRIX:
        scores = _of_matrix(model, Path(str(target.from_imatrix)), progress)
    elif method == saliency.RANDOM:
        scores = saliency.random_scores(len(model.layout.trunk), model.layout.n_expert, target.seed)
    elif method == saliency.WEIGHT_NORM:
        scores = saliency.weight_norms(model.file, model.layout, progress)
    elif stats is None:
        raise InputError(f"method {method} needs statistics; make them with calibrate, or use {saliency.WEIGHT_NORM}")
    else:
        stored = Stored.of(stats)
        statistics = _statistics_of(stored, model)
        how = target.blend or default_blend(statistics.domains)
        scores = blending.blend(statistics, how, method)
    return make_plan(
        model.layout,
        model.identity,
        scores,
        method=method,
        ratio=target.ratio,
        keep=target.keep,
        mtp=target.mtp,
        corpus=stored.provenance.corpus if stored else "",
        datasets=stored.provenance.sources if stored else (),
        blend=how,
    )


def _of_matrix(model: Model, path: Path, progress: Progress) -> Floats:
    matrix = matrices.load_for(path, model.file)
    matrices.check(matrix, model.file, model.layout)
    _LOG.warning("the experts that stay are %s. Calibrate where you can.", NOTES[saliency.IMATRIX])
    return saliency.imatrix_scores(matrix, model.file, model.layout, progress)


def chosen_method(target: Target) -> str:
    """The method, `imatrix` where there is one to choose from; raises InputError unless all of it is known and fits."""
    method = target.method
    if target.blend is not None:
        blending.check_blend(target.blend)
    if target.from_imatrix is not None:
        if method not in (REAP, saliency.IMATRIX):
            raise InputError(f"method {method} does not work from an importance matrix; leave it or the matrix out")
        return saliency.IMATRIX
    if method == saliency.IMATRIX:
        raise InputError("method imatrix needs an importance matrix; name one with --from-imatrix")
    if method not in saliency.METHOD_NAMES:
        known = ", ".join((*saliency.METHOD_NAMES, saliency.IMATRIX))
        raise InputError(f"method {method!r} is not known; choose one of {known}")
    return method


def check_data(method: str, is_given: bool) -> None:
    """Raise InputError where text was given to a method that runs none."""
    if is_given and method not in saliency.METHODS:
        what = "an importance matrix to choose from" if method == saliency.IMATRIX else f"method {method}"
        raise InputError(f"both {what} and a text were given, which is not run for it; give one of them")


def default_blend(domains: Collection[str]) -> str:
    """Every domain's need where there are several; one alone has nothing to be weighed against."""
    return blending.MAXMIN if len(domains) > 1 else blending.TOKENS


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
    statistics = stored.domain_statistics()
    statistics.check()
    if mute := statistics.total.mute:
        _LOG.warning(
            "%d experts gave exactly nothing for all of their tokens, first expert %d of block %d: they have zero "
            "weights, or never act. If that is not meant so, the model file is not whole",
            len(mute),
            *mute[0][::-1],
        )
    return statistics
