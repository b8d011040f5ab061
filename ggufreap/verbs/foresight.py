"""What `prune` will make, to the byte and by name, before anything runs."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from ggufreap import imatrix as matrices
from ggufreap import naming, saliency
from ggufreap.container import check_target
from ggufreap.errors import InputError, OutputError
from ggufreap.files import check_space, make_folder
from ggufreap.options.target import BEST
from ggufreap.planning import PruningPlan, load_plan, make_plan
from ggufreap.quantization import Quantized
from ggufreap.rewriting import RewriteScript
from ggufreap.sizing import Sizer
from ggufreap.verbs.apply import scripts_of
from ggufreap.verbs.job import Job
from ggufreap.verbs.plan import default_blend
from ggufreap.verbs.variants import VariantJobs

_KNOWN = ("model", "method", "n_keep", "mtp", "corpus", "blend")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Foreseen:
    """The byte-exact file `script`, a plan of the same counts as the real one, and the variants."""

    script: RewriteScript
    plan: PruningPlan
    jobs: VariantJobs
    quantized: tuple[Quantized, ...]

    @property
    def plan_path(self) -> Path:
        """Where the plan goes."""
        return self.jobs.result.with_name(f"{naming.stem_of(self.jobs.result)}.plan.json")


def foresee(job: Job) -> Foreseen:
    """All files, and whether they may be written there.

    Which experts stay does not change a single size: any plan of the same count tells the whole story beforehand.
    Raises OutputError for want of space or where another plan's file would be overwritten, and whatever the quantiser
    would for want of importance or of leave to quantise twice.
    """
    model = job.model
    plan = _any_plan(job)
    result = naming.target(model.path, job.out, plan.label)
    scripts = scripts_of(model, plan, result, job.output)
    script = scripts(plan.n_keep)
    n_threads = job.settings.n_threads if job.settings else 0
    jobs = VariantJobs(job.wanted.variants, model.layout, result, job.quantisation.allow_requantize, n_threads)
    jobs.check_names(script)
    with Sizer(model.file, scripts) as sizer:
        quantized = jobs.foresee(sizer, plan, job.given, job.data.names if job.data else None)
    foreseen = Foreseen(script, plan, jobs, quantized)
    if not job.output.dry_run:
        make_folder(result.parent)
        check_target(script.files, *model.file.paths, *(job.data.request.paths if job.data else ()))
        _check_plan(foreseen.plan_path, plan)
        # The importance sums lie there with the statistics, as a matrix, and sliced.
        more = 3 * matrices.full_nbytes(model.file) if job.wanted.variants else 0
        check_space(result.parent, script.nbytes + more + sum(made.nbytes for made in quantized))
    _tell(job, foreseen)
    return foreseen


def _any_plan(job: Job) -> PruningPlan:
    target, layout, records = job.target, job.model.layout, job.data.records if job.data else ()
    return make_plan(
        layout,
        job.model.identity,
        saliency.random_scores(len(layout.trunk), layout.n_expert, target.seed),
        method=target.method,
        ratio=target.ratio,
        keep=target.keep,
        mtp=target.mtp,
        corpus=job.data.identity if job.data else "",
        datasets=[replace(record, sha256="0" * 64) for record in records],
        blend=target.blend or default_blend({record.domain for record in records}) if job.data else "",
    )


def _check_plan(path: Path, plan: PruningPlan) -> None:
    """Raise OutputError where the files of this name were made by another plan, as far as that is known already."""
    if not path.exists():
        return
    try:
        before = load_plan(path)
    except InputError as error:
        raise OutputError(f"{error}; it lies where the plan would go: remove it or choose another -o") from error
    # Only chance chooses without having seen anything.
    known = (*_KNOWN, "keep") if plan.method == saliency.RANDOM else _KNOWN
    # What the method best settles on is not known before.
    open_yet = {"blend"} if plan.method == BEST else set()
    differing = [name for name in known if name not in open_yet and getattr(before, name) != getattr(plan, name)]
    if differing:
        raise OutputError(
            f"{path} and its file are of another plan, with another {', '.join(differing)}; remove them or choose "
            "another -o"
        )


def _tell(job: Job, foreseen: Foreseen) -> None:
    plan, script, source = foreseen.plan, foreseen.script, job.model.file
    first = script.files[0].path
    _LOG.info("%s in each of %d MoE blocks", plan.summary, len(plan.keep))
    _LOG.info("%s -> %s (%s bytes -> %s)", source.path.name, first, f"{source.nbytes:,}", f"{script.nbytes:,}")
    for made in foreseen.quantized:
        _LOG.info("%s -> %s (%s bytes)", first.name, made.paths[0], f"{made.nbytes:,}")
