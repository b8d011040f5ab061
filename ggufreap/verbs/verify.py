"""The proof of a pruned file."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ggufreap.activity import doing
from ggufreap.engine import subprocess_probe
from ggufreap.engine.fitting import insisted
from ggufreap.engine.placement import warn_unused
from ggufreap.engine.protocol import Tokens
from ggufreap.engine.subprocess_probe import Pass, Ran
from ggufreap.model import AnyModel, Model
from ggufreap.narrowing import Narrowing
from ggufreap.options.engine import EngineSettings
from ggufreap.planning import PruningPlan, check_plan, load_plan
from ggufreap.progress import Progress, silent
from ggufreap.verbs.narrowing import opened_narrowing
from ggufreap.verification import N_TOKENS, Verification, check_room, verify_file


def verify(
    model: AnyModel,
    out: str | Path,
    plan: PruningPlan | str | Path,
    *,
    narrowing: Narrowing | str | Path | None = None,
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> Verification:
    """Prove that `out` is `model` without the experts that `plan` drops, and without the neurons that `narrowing` does.

    The comparison is exact: it decides on tokens and precision, `settings` on threads and on where the weights go.
    """
    model = Model.open(model)
    chosen = plan if isinstance(plan, PruningPlan) else load_plan(Path(plan))
    check_plan(chosen, model.identity, model.layout)
    fewer = opened_narrowing(model, chosen, narrowing)
    check_room(model, fewer)
    settings = replace(settings or EngineSettings(), n_ctx=N_TOKENS, n_ubatch=N_TOKENS, n_batch=0, exact=True)
    settings = insisted(model.path, settings)  # one micro-batch a pass, so it takes minutes at the most
    warn_unused(settings)  # the model is loaded in a process that is not heard

    def run(path: Path, tokens: Tokens, passes: Sequence[Pass], folder: Path) -> list[Ran]:
        return subprocess_probe.run(path, tokens, settings, passes, folder)

    with doing("verifying", out):
        return verify_file(model, chosen, Path(out), run, progress, fewer)
