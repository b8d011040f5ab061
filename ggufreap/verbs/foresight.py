"""What `prune` will make, to the byte and by name, before anything runs."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from ggufreap import naming, saliency
from ggufreap.files import claim, make_folder
from ggufreap.handover import Handover
from ggufreap.options.flag import refuse_unused
from ggufreap.planning import PruningPlan, make_plan
from ggufreap.quantization import Quantized
from ggufreap.rewriting import Narrow, RewriteScript
from ggufreap.sizing import Sizer
from ggufreap.verbs.apply import scripts_of
from ggufreap.verbs.exact import Planned
from ggufreap.verbs.job import Job
from ggufreap.verbs.narrowing import any_narrowing, check_down, columns_nbytes
from ggufreap.verbs.plan import default_blend
from ggufreap.verbs.rounding import tell_unfriendly
from ggufreap.verbs.variants import VariantJobs
from ggufreap.verification import check_room

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Foreseen:
    """The byte-exact file `script`, and whether it `stays`; a plan of the same counts as the real one; the variants.

    Where they are made of it alone, it is `intermediate`.
    """

    script: RewriteScript
    plan: PruningPlan
    jobs: VariantJobs
    quantized: tuple[Quantized, ...]
    stays: bool

    @property
    def handover(self) -> Handover:
        """How the files that stay are run and given away."""
        exact = [tuple(file.path for file in self.script.files)] if self.stays else []
        return Handover((*(tuple(made.paths) for made in self.quantized), *exact))

    @property
    def intermediate(self) -> bool:
        """Whether the byte-exact file is only there to be quantised."""
        return bool(self.jobs.variants) and not self.stays

    @property
    def narrowing_path(self) -> Path:
        """Where the neurons that stay are named."""
        return self.jobs.result.with_name(f"{naming.stem_of(self.jobs.result)}.narrowing.json")

    @property
    def plan_path(self) -> Path:
        """Where the plan goes."""
        return self.jobs.result.with_name(f"{naming.stem_of(self.jobs.result)}.plan.json")


def foresee(job: Job) -> Foreseen:
    """All files, and whether they may be written there.

    Which experts stay does not change a single size: any plan of the same count tells the whole story beforehand.
    Raises OutputError for want of space or where a file of other work lies in the way, and whatever the quantiser
    would for want of importance or of leave to quantise twice.
    """
    model, asked = job.model, job.quantisation
    plan = any_plan(job)
    narrowing = any_narrowing(model, plan, job.width) if job.width else None
    result = naming.target(model.path, job.out, narrowing.full_label(plan) if narrowing else plan.label)
    stays = not job.wanted.variants or job.wanted.keep_exact or asked.keep_intermediate or result == job.out
    if narrowing:
        check_down(model, asked.allow_requantize, not stays)
    scripts = scripts_of(model, plan, result, job.output, Narrow(narrowing, not stays) if narrowing else None)
    script = scripts(plan.n_keep)
    n_threads = job.settings.n_threads if job.settings else 0
    jobs = VariantJobs(job.wanted.variants, model, result, asked.allow_requantize, n_threads, asked.imatrix_dat)
    jobs.check_names(script)
    with Sizer(model.file, scripts) as sizer:
        quantized = jobs.foresee(sizer, plan, job.given, job.data.names if job.data else None, narrowing)
    if not stays:
        exact = "the byte-exact file, which is only an intermediate here"
        refuse_unused(job.output, dict.fromkeys(("split_max_size", "keep_split"), exact))
    foreseen = Foreseen(script, plan, jobs, quantized, stays)
    if not job.output.dry_run:
        make_folder(result.parent)
        sliced = jobs.imatrix_paths if job.wanted.variants and (job.given or job.collected_path) else ()
        if asked.imatrix_dat and not sliced:
            _LOG.warning("--imatrix-dat: no effect, no importance matrix guides what is made here")
        downs = foreseen.narrowing_path if narrowing else None
        places = Planned(foreseen.plan_path, script.files if stays else (), quantized, sliced, downs)
        places.claim(model.file, plan, job.stats_path, job.collected_path)
        claim(foreseen.handover.modelfile_path)
        places.check_room(model.file, script, job.judgement.compare, columns_nbytes(model, narrowing))
        if job.output.verify:
            check_room(model)
    _tell(job, foreseen)
    return foreseen


def any_plan(job: Job) -> PruningPlan:
    """A plan of the count that is wanted, by no method: all but the choice itself is as it will be."""
    target, layout, records = job.target, job.model.layout, job.data.records if job.data else ()
    return make_plan(
        layout,
        job.model.identity,
        saliency.random_scores(len(layout.trunk), layout.n_expert, target.seed),
        method=target.method,
        ratio=target.ratio,
        n_keep=target.keep,
        mtp=target.mtp,
        corpus=job.data.identity if job.data else "",
        datasets=[replace(record, sha256="0" * 64) for record in records],
        blend=target.blend or default_blend({record.domain for record in records}) if job.data else "",
    )


def _tell(job: Job, foreseen: Foreseen) -> None:
    plan, script, source = foreseen.plan, foreseen.script, job.model.file
    first = script.files[0].path
    _LOG.info("%s in each of %d MoE blocks", plan.summary, len(plan.keep))
    tell_unfriendly(job.model.layout, plan.n_keep)
    _LOG.info("%s -> %s (%s bytes -> %s)", source.path.name, first, f"{source.nbytes:,}", f"{script.nbytes:,}")
    for made in foreseen.quantized:
        _LOG.info("%s -> %s (%s bytes)", first.name, made.paths[0], f"{made.nbytes:,}")
