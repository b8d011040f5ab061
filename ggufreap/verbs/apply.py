"""Writing the file that a plan asks for."""

import logging
from pathlib import Path

from ggufreap.container import check_target
from ggufreap.files import written_by
from ggufreap.model import AnyModel, Model
from ggufreap.options.output import Output
from ggufreap.planning import PruningPlan, check_plan, load_plan
from ggufreap.progress import Progress, silent
from ggufreap.rewriting import Narrow, RewriteScript, execute, parse_size
from ggufreap.showing import to_copy
from ggufreap.sizing import Rewriter, rewriter
from ggufreap.verbs import trust

_LOG = logging.getLogger(__name__)


@written_by
def apply(
    model: AnyModel, plan: PruningPlan | str | Path, output: Output | str | Path, *, progress: Progress = silent
) -> RewriteScript:
    """Write the file that `plan` asks for; with a dry run only tell exactly what it would be.

    `output` is the file, or that with how it is to be cut. Raises UnsupportedModel for a model of an unknown
    architecture that `doctor` has not tried out. Nothing is proven of the file until `verify` has run.
    """
    model = Model.open(model)
    chosen = plan if isinstance(plan, PruningPlan) else load_plan(Path(plan))
    check_plan(chosen, model.identity, model.layout)
    asked = output if isinstance(output, Output) else Output(output)
    script = script_of(model, chosen, Path(asked.out or model.path), asked)
    if not asked.dry_run:
        model.check_weights()
        trust.require_trust(model)
        check_target(script.files, *model.file.paths, None if isinstance(plan, PruningPlan) else plan)
        execute(script, progress)
        named = "P.json" if isinstance(plan, PruningPlan) else plan
        ran = "" if chosen.corpus else f", and llama.cpp has not run {model.path.name} for this plan"
        first = script.files[0].path
        _LOG.warning("%s is unproven: %s%s", first, to_copy("verify", model.path, first, "--plan", named), ran)
    return script


def script_of(
    model: Model, plan: PruningPlan, path: Path, asked: Output, narrow: Narrow | None = None
) -> RewriteScript:
    """What would be written at `path`, with `narrow` experts, cut into files as `asked`."""
    return scripts_of(model, plan, path, asked, narrow)(plan.n_keep)


def scripts_of(model: Model, plan: PruningPlan, path: Path, asked: Output, narrow: Narrow | None = None) -> Rewriter:
    """The same for any number of experts, told of as the plan is."""
    if asked.keep_split and len(model.file.paths) == 1:
        model.warn(f"--keep-split: no effect, {model.path.name} is one file")
    split = asked.split_max_size
    nbytes = parse_size(split) if isinstance(split, str) else split
    return rewriter(model, plan, path, split_max_size=nbytes, keep_split=asked.keep_split, narrow=narrow)
