"""What `prune` is asked for, settled before any work: everything that was named is opened, read and checked."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from ggufreap import imatrix as matrices
from ggufreap import naming
from ggufreap.corpus.request import TEXT_CTX, Opened
from ggufreap.engine.fitting import checked_nbytes
from ggufreap.errors import InputError
from ggufreap.evaluation import parse_gate
from ggufreap.files import claim, make_folder
from ggufreap.imatrix import Imatrix
from ggufreap.judging import Exam
from ggufreap.model import Model
from ggufreap.options.engine import EngineSettings
from ggufreap.options.flag import refuse_unused
from ggufreap.options.judgement import Judgement
from ggufreap.options.output import Output
from ggufreap.options.quantisation import Quantisation
from ggufreap.options.target import AUTO_RATIO, BEST, Target
from ggufreap.progress import Progress
from ggufreap.reporting import check_report
from ggufreap.saliency import RANDOM
from ggufreap.selection.methods import calibrates
from ggufreap.verbs.calibrate import Observed, observed_of
from ggufreap.verbs.data import Data, asks, open_data, split_off
from ggufreap.verbs.laws import require_laws
from ggufreap.verbs.narrowing import settled
from ggufreap.verbs.plan import check_data, chosen_method
from ggufreap.verbs.ratio import limit_of, search
from ggufreap.verbs.rounding import rounded
from ggufreap.verbs.variants import Wanted, resolved

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """All that is wanted: `data` to calibrate on, an `exam` on held-out text, `given` the matrix that was named.

    The method of `target` is the one that will be used, and its number of experts is known where they are to be
    narrower, `width` neurons each (0: as they are); `wanted` are the variants of the pruned file.
    """

    model: Model
    target: Target
    quantisation: Quantisation
    judgement: Judgement
    output: Output
    wanted: Wanted
    data: Opened | None
    exam: Exam | None
    given: Imatrix | None
    settings: EngineSettings | None
    progress: Progress
    width: int = 0

    @property
    def out(self) -> Path | None:
        """The file or folder that was named."""
        return Path(self.output.out) if self.output.out is not None else None

    @property
    def folder(self) -> Path:
        """Where all files go."""
        return naming.target(self.model.path, self.out, "").parent

    @property
    def stats_path(self) -> Path | None:
        """The statistics, where there will be some: any ratio on the same text finds them there."""
        return self.folder / f"{naming.stem_of(self.model.path)}.stats.npz" if self.data else None

    @property
    def collected_path(self) -> Path | None:
        """The importance matrix of the whole model, where calibration collects one."""
        collects = self.data and self.wanted.variants and self.given is None
        return self.folder / f"{naming.stem_of(self.model.path)}.imatrix.gguf" if collects else None

    @property
    def guide_path(self) -> Path | None:
        """The importance matrix of the whole model, given or collected."""
        named = self.quantisation.imatrix or self.target.from_imatrix
        return Path(named) if named is not None else self.collected_path

    def observe(self) -> Observed | None:
        """Calibrate, or find out that it is done; last of what could stop the job, since it runs the model."""
        require_laws(self.model, self.folder, self.settings, self.progress)
        if self.data is None or self.stats_path is None:
            return None
        return observed_of(
            self.model,
            self.stats_path,
            self.data,
            imatrix_out=self.collected_path,
            process_output=self.quantisation.process_output,
            settings=self.settings,
            progress=self.progress,
        )


def settle(
    model: Model,
    data: Data,
    target: Target,
    quantisation: Quantisation,
    judgement: Judgement,
    output: Output,
    settings: EngineSettings | None,
    progress: Progress,
) -> Job:
    """Open and check all of it; raises InputError or OutputError for what would else stop the work later."""
    method = chosen_method(target)
    target, width = settled(model, rounded(model.layout, target))
    check_data(method, asks(data))
    if width and not calibrates(method):
        raise InputError(
            f"neurons are chosen by what text runs through them, and method {method} chooses experts without any; name "
            "another method, or leave out --width-ratio and --shrink"
        )
    data, split = split_off(data, judgement.split, target.seed)
    judges = bool(judgement.files or split)
    if not judges and (target.ratio == AUTO_RATIO or judgement.compare or judgement.fail_if):
        raise InputError("auto ratios, --compare and --fail-if judge by held-out text; give some with --eval-file")
    if target.ratio == AUTO_RATIO:
        limit_of(target)
    if target.ratio == AUTO_RATIO and output.dry_run:
        raise InputError("the ratio auto is found by calibrating and masking; a dry run takes a number")
    if judgement.report is not None:
        check_report(Path(judgement.report), model.identity.fingerprint)
    length = judgement.ctx_size or (settings and settings.n_ctx) or TEXT_CTX
    exam = Exam.of(replace(judgement, ctx_size=length), settings, more=split) if judges else None
    wanted = resolved(quantisation.quant, model.file)
    _refuse_unused(target, quantisation, judgement, output, wanted, judges)
    # Sizes can be told without any data but their names, which stand in the header.
    reads = calibrates(method) and not (output.dry_run and not asks(data))
    opened = open_data(data, target.blend) if reads else None
    guide = quantisation.imatrix if quantisation.imatrix is not None else target.from_imatrix
    given = matrices.load_for(guide, model.file) if guide is not None else None
    if given is not None:
        matrices.check(given, model.file, model.layout)
    if not (method == RANDOM or split or (opened and opened.draws)):
        refuse_unused(target, {"seed": "what is drawn at random, of which there is nothing here"})
    if exam and opened:
        exam.warn_of_seen(opened)
    if (exam or method == BEST) and not output.dry_run:
        checked_nbytes(model.path, settings or EngineSettings())
    data_paths, exam_paths = opened.paths if opened else (), exam.paths if exam else ()
    claim(inputs=(*model.file.paths, *data_paths, *exam_paths, quantisation.imatrix, target.from_imatrix))
    target = replace(target, method=method)
    return Job(model, target, quantisation, judgement, output, wanted, opened, exam, given, settings, progress, width)


def _refuse_unused(
    target: Target, quantisation: Quantisation, judgement: Judgement, output: Output, wanted: Wanted, judges: bool
) -> None:
    """Raise InputError for what was given and would not be used."""
    if target.ratio != AUTO_RATIO:
        refuse_unused(target, {"max_kld": f"--ratio {AUTO_RATIO}"})
    if not judges:
        refuse_unused(judgement, dict.fromkeys(("chunks", "ctx_size"), "held-out text, of which none was given"))
    if not wanted.variants:
        guided = "quantised files, and none is made"
        refuse_unused(quantisation, dict.fromkeys(("process_output", "keep_intermediate", "allow_requantize"), guided))
        if not judgement.compare:
            refuse_unused(quantisation, {"imatrix": guided})
    elif quantisation.imatrix is not None or target.from_imatrix is not None:
        refuse_unused(quantisation, {"process_output": "collecting an importance matrix, and one was given"})


def with_ratio_found(job: Job) -> tuple[Job, Observed | None]:
    """The job with the number of experts that held-out text allows: calibrated, and searched by masking."""
    assert job.exam  # the ratio auto takes one
    make_folder(job.folder)
    observed = job.observe()
    limit = parse_gate(limit_of(job.target))
    alone = replace(job.exam, gates=(limit,))
    preview = search(job.model, job.target, alone, observed.stored if observed else None, job.progress)
    assert preview.recommended  # else it raises
    _LOG.info("%s", preview.reason)
    target = replace(job.target, ratio=None, keep=preview.recommended.plan.n_keep)
    # It was found on the model as it is; what is delivered has to keep to it too.
    return replace(job, target=target, exam=replace(job.exam, gates=(*job.exam.gates, limit))), observed
