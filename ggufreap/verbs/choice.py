"""Which experts stay: the verbs between statistics and plan."""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path

from ggufreap import blending, saliency
from ggufreap import imatrix as matrices
from ggufreap.architecture.layout import MoeLayout
from ggufreap.coverage import Coverage, measure
from ggufreap.errors import InputError, MismatchError
from ggufreap.files import claim, written_by
from ggufreap.observation import DomainStatistics, Provenance, load, save
from ggufreap.observation import merge as merged
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
from ggufreap.verbs import trust
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
    progress: Progress = silent,
) -> PruningPlan:
    """Choose the experts that stay, `ratio` removed or `keep` kept in every block.

    `stats` is what `calibrate` saved; the methods `random` and `weight_norm` need none. `blend` says how the domains of
    the text are weighed, by default `maxmin` where there are several. `from_imatrix` takes a GGUF importance matrix of
    the model instead, which is a weaker guide than any calibration; it is a method of its own.
    """
    method = chosen_method(method, mtp, from_imatrix, blend)
    source, layout, identity = open_model(model)
    trust.warn(source, layout)
    count_to_keep(layout, ratio, keep)
    provenance, how = None, ""
    if method == saliency.IMATRIX and from_imatrix is not None:
        if stats is not None:
            raise InputError("both statistics and an importance matrix were given to choose by; give one of them")
        matrix = matrices.load(from_imatrix)
        matrices.check(matrix, source, layout)
        _LOG.warning("the experts that stay are %s. Calibrate where you can.", NOTES[method])
        scores = saliency.imatrix_scores(matrix, source, layout, progress)
    elif method == saliency.RANDOM:
        scores = saliency.random_scores(len(layout.trunk), layout.n_expert, seed)
    elif method == saliency.WEIGHT_NORM:
        scores = saliency.weight_norms(source, layout, progress)
    elif stats is None:
        raise InputError(f"method {method} needs statistics; make them with calibrate, or use {saliency.WEIGHT_NORM}")
    else:
        statistics, provenance = _statistics_of(Path(stats), identity, layout)
        how = blend or default_blend(statistics.domains)
        scores = blending.blend(statistics, how, method)
    return make_plan(
        layout,
        identity,
        scores,
        method=method,
        ratio=ratio,
        keep=keep,
        mtp=mtp,
        corpus=provenance.corpus if provenance else "",
        datasets=provenance.sources if provenance else (),
        blend=how,
    )


def chosen_method(method: str, mtp: str, from_imatrix: str | Path | None = None, blend: str | None = None) -> str:
    """The method, `imatrix` where there is one to choose from; raises InputError unless all of it is known and fits."""
    if from_imatrix is not None:
        if method not in (DEFAULT_METHOD, saliency.IMATRIX):
            raise InputError(f"method {method} does not work from an importance matrix; leave it or the matrix out")
        method = saliency.IMATRIX
    elif method == saliency.IMATRIX:
        raise InputError("method imatrix needs an importance matrix; name one with --from-imatrix")
    for what, name, known in (("method", method, (*saliency.METHOD_NAMES, saliency.IMATRIX)), ("mtp", mtp, MTP_MODES)):
        if name not in known:
            raise InputError(f"{what} {name!r} is not known; choose one of {', '.join(known)}")
    if blend is not None:
        blending.check_blend(blend)
    return method


def default_blend(domains: Collection[str]) -> str:
    """Every domain's need where there are several; one alone has nothing to be weighed against."""
    return blending.MAXMIN if len(domains) > 1 else blending.TOKENS


def _statistics_of(path: Path, identity: ModelIdentity, layout: MoeLayout) -> tuple[DomainStatistics, Provenance]:
    statistics, provenance = load(path)
    known = provenance.model, provenance.structure, provenance.types
    identity.require(f"{path} was calibrated on model {provenance.model[:12]}", "calibrate this file", *known)
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
    known = provenance.model, provenance.structure, provenance.types
    told = f"{stats} was calibrated on model {provenance.model[:12]}"
    chosen.model.require(told, "give what belongs together", *known)
    method = chosen.method if chosen.method in saliency.METHODS else DEFAULT_METHOD
    return measure(statistics, chosen.keep, method, chosen.blend or blending.TOKENS, chosen.n_group)


@written_by
def merge(stats: Sequence[str | Path], out: str | Path, *, force: bool = False) -> DomainStatistics:
    """Add statistics that were observed apart, and their importance matrices where all have one.

    The matrix is also written beside `out`, as llama-imatrix would have. Other files are replaced with `force` alone.
    """
    paths = [Path(path) for path in stats]
    target = Path(out)
    matrix = matrix_beside(target)
    claim(target, matrix, inputs=paths)
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
