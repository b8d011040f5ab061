"""The whole job over the stages: prune."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ggufreap.coverage import Coverage
from ggufreap.files import written_by
from ggufreap.handover import Handover
from ggufreap.model import AnyModel, Model
from ggufreap.narrowing import Narrowing
from ggufreap.options.engine import EngineSettings
from ggufreap.options.judgement import Judgement
from ggufreap.options.output import Output
from ggufreap.options.quantisation import Quantisation
from ggufreap.options.target import AUTO_RATIO, Target
from ggufreap.planning import PruningPlan, save_plan
from ggufreap.progress import Progress, silent
from ggufreap.quantization import Quantized
from ggufreap.reporting import facts
from ggufreap.rewriting import Narrow, RewriteScript
from ggufreap.verbs.apply import script_of
from ggufreap.verbs.calibrate import Observed
from ggufreap.verbs.coverage import coverage
from ggufreap.verbs.data import Data
from ggufreap.verbs.exact import exact_file
from ggufreap.verbs.foresight import Foreseen, foresee
from ggufreap.verbs.job import Job, settle, with_ratio_found
from ggufreap.verbs.narrowing import narrow_by, narrowing_of
from ggufreap.verbs.plan import plan
from ggufreap.verbs.report import Account, report
from ggufreap.verbs.verify import verify
from ggufreap.verification import Verification


@dataclass(frozen=True)
class Pruned:
    """What `prune` made: the files, the plan and what it leaves of each domain, and the proof (None if turned off).

    `script` tells of the byte-exact file, which `quantized` variants were made from; `imatrix_path` is the importance
    matrix of the pruned model that guided them; `coverage` is None where no expert goes; `narrowing` names the neurons
    that stay, where not all do; `account` tells what the files are worth, where there was held-out text; `handover` how
    they are run and given away. After a dry run all of it is what would be made.
    """

    script: RewriteScript
    plan: PruningPlan
    plan_path: Path
    statistics_path: Path | None
    verification: Verification | None
    coverage: Coverage | None = None
    account: Account | None = None
    quantized: tuple[Quantized, ...] = ()
    imatrix_path: Path | None = None
    handover: Handover | None = None
    narrowing: Narrowing | None = None
    narrowing_path: Path | None = None

    @property
    def summary(self) -> str:
        """What was done, in the words that every verb prints."""
        return f"{self.plan.summary}; {self.narrowing.summary}" if self.narrowing else self.plan.summary


@written_by
def prune(
    model: AnyModel,
    data: Data = None,
    *,
    target: Target,
    quantisation: Quantisation | None = None,
    judgement: Judgement | None = None,
    output: Output | None = None,
    command: str = "",
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> Pruned:
    """The whole job: calibrate on `data`, plan, apply, verify, quantise, judge, report.

    The options say what is wanted (see their classes). With held-out text every file is measured against the original,
    and the ratio `auto` finds out how many experts may go. `command` is told in the report. A model of an unknown
    architecture is first tried out as by `doctor`, beside the output.

    Whatever could fail for want of space, of experts or of leave to quantise twice fails before the calibration.
    Statistics that are already there for the same model, text and settings are used again; files of other work are
    replaced with `output.force` alone. The byte-exact file gets its name when it is proven.
    A Modelfile for Ollama lies beside what was made.

    The model's header is read once. llama.cpp loads the model once to calibrate, if the statistics are not there yet;
    once to search, for the ratio `auto`, or to judge methods, for `best`; once to verify, in a process of its own, as
    it does the pruned file; and once to judge the files, whatever is judged of them. Nothing else loads it: neither
    planning by a method that was named nor writing needs to.
    """
    model = Model.open(model)
    wishes = quantisation or Quantisation(), judgement or Judgement(), output or Output()
    job, observed = settle(model, data, target, *wishes, settings, progress), None
    if target.ratio == AUTO_RATIO:
        job, observed = with_ratio_found(job)
    foreseen = foresee(job)
    if job.output.dry_run:
        return Pruned(foreseen.script, foreseen.plan, foreseen.plan_path, None, None, quantized=foreseen.quantized)
    observed = observed or job.observe()
    pruned = judged(job, made(job, foreseen, observed), observed, command, foreseen.stays)
    return _handed_over(job, foreseen, pruned)


def made(job: Job, foreseen: Foreseen, observed: Observed | None) -> Pruned:
    """Plan, write, prove and quantise what was foreseen; nothing is quantised of what is not as the plan promised."""
    pruned = _planned(job, foreseen, observed)
    narrow = _narrow(job, foreseen, pruned)
    prove = partial(
        verify,
        job.model,
        plan=pruned.plan,
        narrowing=pruned.narrowing,
        settings=job.settings,
        progress=job.progress,
    )
    lowered = partial(script_of, job.model, pruned.plan, asked=job.output, narrow=narrow)
    verified = prove if job.output.verify else None
    with exact_file(pruned.script, lowered, verified, foreseen.stays, job.progress) as (exact, proof):
        pruned = replace(pruned, verification=proof)
        if proof and not proof.ok:
            return pruned
        return _quantised(job, foreseen, observed, pruned, exact)


def _planned(job: Job, foreseen: Foreseen, observed: Observed | None) -> Pruned:
    """The plan, what it leaves, and how the byte-exact file will be."""
    stored = observed.stored if observed else None
    chosen = plan(job.model, job.target, stats=stored, settings=job.settings, progress=job.progress)
    covered = coverage(stored, chosen) if stored and chosen.n_keep < chosen.n_expert else None
    save_plan(foreseen.plan_path, chosen)
    pruned = Pruned(foreseen.script, chosen, foreseen.plan_path, job.stats_path, None, covered)
    if job.width and job.data:
        path = foreseen.narrowing_path
        narrowing = narrowing_of(
            *(job.model, chosen, job.width, path, job.data, job.settings, job.progress),
            sequential=job.target.sequential,
            memory=job.target.narrow_memory,
        )
        pruned = replace(pruned, narrowing=narrowing, narrowing_path=path)
    script = script_of(job.model, chosen, foreseen.jobs.result, job.output, _narrow(job, foreseen, pruned))
    return replace(pruned, script=script)


def _narrow(job: Job, foreseen: Foreseen, pruned: Pruned) -> Narrow | None:
    """How the byte-exact file gets narrower, if it does."""
    if pruned.narrowing is None:
        return None
    return narrow_by(job.model, pruned.plan, pruned.narrowing, job.given, foreseen.intermediate)


def _quantised(job: Job, foreseen: Foreseen, observed: Observed | None, pruned: Pruned, exact: Path) -> Pruned:
    """The variants, made of the byte-exact file."""
    if not job.wanted.variants:
        return pruned
    matrix = job.given or (observed.matrix if observed else None)
    quantized, sliced = foreseen.jobs.make(exact, pruned.plan, matrix, job.progress, pruned.narrowing)
    return replace(pruned, quantized=quantized, imatrix_path=sliced)


def _handed_over(job: Job, foreseen: Foreseen, pruned: Pruned) -> Pruned:
    """The same with the Modelfile beside it, if it is what the plan promised."""
    if pruned.verification is not None and not pruned.verification.ok:
        return pruned
    report, more = job.judgement.report, foreseen.jobs.imatrix_paths if pruned.imatrix_path else ()
    handover = replace(foreseen.handover, more=more, card=None if report is None else Path(report))
    handover.write()
    return replace(pruned, handover=handover)


def judged(job: Job, pruned: Pruned, observed: Observed | None, command: str, stays: bool) -> Pruned:
    """What the files are worth, the byte-exact one too where it `stays`, if they are what the plan promised."""
    failed = pruned.verification is not None and not pruned.verification.ok
    if failed or (job.exam is None and job.judgement.report is None):
        return pruned
    exact = [pruned.script.files[0].path] if stays else []
    account = report(
        job.model,
        [*exact, *(made.paths[0] for made in pruned.quantized)],
        pruned.plan,
        job.judgement,
        exam=job.exam,
        stats=observed.stored if observed else None,
        imatrix=job.guide_path if job.judgement.compare else None,
        reproduction=facts.Reproduction(command) if command else None,
        verification=pruned.verification,
        settings=job.exam.settings if job.exam else job.settings,
        progress=job.progress,
    )
    return replace(pruned, account=account)
