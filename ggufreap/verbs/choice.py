"""Which experts stay: the verbs between statistics and plan."""

import logging
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ggufreap import blending, saliency
from ggufreap import imatrix as matrices
from ggufreap.architecture.layout import MoeLayout
from ggufreap.container import GgufFile
from ggufreap.coverage import Coverage, measure
from ggufreap.errors import InputError, MismatchError
from ggufreap.files import check_output
from ggufreap.observation import DomainStatistics, Floats, Provenance, load, save
from ggufreap.observation import merge as merged
from ggufreap.options.engine import EngineSettings
from ggufreap.planning import (
    MTP_MODES,
    NOTES,
    ModelIdentity,
    PruningPlan,
    count_to_keep,
    load_plan,
    make_plan,
)
from ggufreap.progress import Progress, silent
from ggufreap.selection.choosing import choose
from ggufreap.selection.methods import JOINT, method_of
from ggufreap.selection.portfolio import BEST, Candidate
from ggufreap.verbs import trust
from ggufreap.verbs.best import best_method
from ggufreap.verbs.stages import export_matrix, open_model

_LOG = logging.getLogger(__name__)
DEFAULT_METHOD = "reap"


def plan(
    model: str | Path,
    *,
    stats: str | Path | None = None,
    from_imatrix: str | Path | None = None,
    ratio: str | float | None = None,
    keep: int | None = None,
    method: str = DEFAULT_METHOD,
    blend: str | None = None,
    mtp: str = "mirror",
    seed: int = 0,
    budget: float | None = None,
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> PruningPlan:
    """Choose the experts that stay, `ratio` removed or `keep` kept in every block.

    `stats` is what `calibrate` saved; the methods `random` and `weight_norm` need none. `blend` says how the domains of
    the text are weighed, by default all alike. `from_imatrix` takes a GGUF importance matrix of the model instead,
    which is a weaker guide than any calibration; it is a method of its own.

    The method `best` loads the model, with `settings`, and judges methods on what calibration held out, for `budget`
    minutes at most; then the winner chooses from all of the text.
    """
    method = chosen_method(method, mtp, from_imatrix, blend)
    source, layout, identity = open_model(model)
    trust.warn(source, layout)
    n_keep = count_to_keep(layout, ratio, keep)
    found: Mapping[str, Any]
    if method in (saliency.IMATRIX, saliency.RANDOM, saliency.WEIGHT_NORM):
        found = {"scores": _scores_without(method, source, layout, stats, from_imatrix, seed, progress)}
    elif stats is None:
        raise InputError(f"method {method} needs statistics; make them with calibrate, or use {saliency.WEIGHT_NORM}")
    else:
        path = Path(stats)
        statistics, provenance = _statistics_of(path, identity, layout)
        by = Candidate(method, blend or default_blend(statistics.domains))
        remarks: tuple[str, ...] = ()
        if method == BEST:
            judging = partial(best_method, budget=budget, settings=settings, progress=progress)
            verdict, choice = judging(source, layout, path, statistics, n_keep)
            by, remarks = verdict.chosen, (verdict.line,)
        else:
            choice = choose(statistics, by.method, by.blend, n_keep, layout.n_group)
        found = {
            "scores": method_of(by.method).score(statistics, by.blend),
            "chosen": choice.rows,
            "blend": by.blend,
            "remarks": (*remarks, *filter(None, [choice.note])),
            "criterion": by.method if method == BEST else "",
            "corpus": provenance.corpus,
            "datasets": provenance.sources,
        }
    return make_plan(layout, identity, method=method, ratio=ratio, keep=keep, mtp=mtp, **found)


def _scores_without(
    method: str,
    source: GgufFile,
    layout: MoeLayout,
    stats: str | Path | None,
    from_imatrix: str | Path | None,
    seed: int,
    progress: Progress,
) -> Floats:
    """The scores of a method that needs no statistics."""
    if method == saliency.RANDOM:
        return saliency.random_scores(len(layout.trunk), layout.n_expert, seed)
    if method == saliency.WEIGHT_NORM:
        return saliency.weight_norms(source, layout, progress)
    assert from_imatrix is not None  # chosen_method has seen to it
    if stats is not None:
        raise InputError("both statistics and an importance matrix were given to choose by; give one of them")
    matrix = matrices.load(from_imatrix)
    matrices.check(matrix, source, layout)
    _LOG.warning("the experts that stay are %s. Calibrate where you can.", NOTES[method])
    return saliency.imatrix_scores(matrix, source, layout, progress)


def calibrates(method: str) -> bool:
    """Whether a method chooses by statistics."""
    return method in (*saliency.METHODS, *JOINT, BEST)


def chosen_method(
    method: str,
    mtp: str,
    from_imatrix: str | Path | None = None,
    blend: str | None = None,
    ratio: str | float | None = None,
) -> str:
    """The method, `imatrix` where there is one to choose from; raises InputError unless all of it is known and fits."""
    if from_imatrix is not None:
        if method not in (DEFAULT_METHOD, saliency.IMATRIX):
            raise InputError(f"method {method} does not work from an importance matrix; leave it or the matrix out")
        method = saliency.IMATRIX
    elif method == saliency.IMATRIX:
        raise InputError("method imatrix needs an importance matrix; name one with --from-imatrix")
    methods = (*saliency.METHOD_NAMES, *JOINT, BEST, saliency.IMATRIX)
    for what, name, known in (("method", method, methods), ("mtp", mtp, MTP_MODES)):
        if name not in known:
            raise InputError(f"{what} {name!r} is not known; choose one of {', '.join(known)}")
    if blend is not None:
        blending.check_blend(blend)
        if method == BEST:
            raise InputError(f"method {BEST} chooses the blend too; leave out --blend {blend}, or name a method")
    if method == BEST and ratio == "auto":
        raise InputError(f"the ratio auto is searched with one method; name one instead of {BEST}")
    return method


def default_blend(domains: Collection[str]) -> str:
    """All domains alike, however much text each has; one alone has nothing to be weighed against."""
    return blending.UNIFORM if len(domains) > 1 else blending.TOKENS


def _statistics_of(path: Path, identity: ModelIdentity, layout: MoeLayout) -> tuple[DomainStatistics, Provenance]:
    statistics, provenance = load(path)
    if provenance.model != identity.fingerprint:
        raise MismatchError(
            f"{path} was calibrated on model {provenance.model[:12]}, this one is {identity.fingerprint[:12]}; "
            "calibrate this file"
        )
    missing = [block.index for block in layout.nodes.blocks if block.index not in statistics.blocks]
    if missing:
        raise MismatchError(
            f"{path} holds {len(statistics.blocks)} of the {len(layout.nodes.blocks)} MoE blocks, not block "
            f"{missing[0]}; merge it with the statistics of the others"
        )
    statistics.check()
    return statistics, provenance


def coverage(stats: str | Path, plan: PruningPlan | str | Path) -> Coverage:
    """What a plan leaves of each domain of the text, and whether there was enough of it to plan by."""
    chosen = plan if isinstance(plan, PruningPlan) else load_plan(Path(plan))
    statistics, provenance = load(Path(stats))
    if provenance.model != chosen.model.fingerprint:
        raise MismatchError(
            f"{stats} was calibrated on model {provenance.model[:12]}, the plan is for "
            f"{chosen.model.fingerprint[:12]}; give what belongs together"
        )
    if statistics.n_expert != chosen.n_expert:
        raise MismatchError(
            f"{stats} has {statistics.n_expert} experts in each block, the plan chooses among {chosen.n_expert}; "
            "give what belongs together"
        )
    method = method_of(chosen.scored_by).criterion if calibrates(chosen.scored_by) else DEFAULT_METHOD
    return measure(statistics, chosen.keep, method, chosen.blend or blending.TOKENS, chosen.n_group)


def merge(stats: Sequence[str | Path], out: str | Path) -> DomainStatistics:
    """Add statistics that were observed apart, and their importance matrices where all have one.

    The matrix is also written beside `out`, as llama-imatrix would have.
    """
    paths = [Path(path) for path in stats]
    target = Path(out)
    matrix = matrix_beside(target)
    for path in (target, matrix):
        check_output(path, *paths)
    found = merged(paths)
    save(target, *found)
    if found.sums is not None:
        export_matrix(target, matrix, found.sums.output)
    elif left := [str(matrix_beside(path)) for path in paths if matrix_beside(path).exists()]:
        _LOG.warning(
            "not merged: %s; statistics without importance sums do not tell whether a matrix beside them is theirs. "
            "To add matrices up by themselves: ggufreap imatrix %s -o %s",
            ", ".join(left),
            " ".join(left),
            matrix,
        )
    return found.statistics


def matrix_beside(stats: Path) -> Path:
    """Where the importance matrix of the same pass is written: S.imatrix.gguf beside S.npz."""
    return stats.with_name(f"{stats.name.removesuffix('.npz')}.imatrix.gguf")
