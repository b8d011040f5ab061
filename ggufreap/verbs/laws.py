"""The laws of pruning, tried out on a user's own file: what no table can promise, this file has to show.

Identity: keeping all experts changes no byte. Permutation and masking, in one go: a file of three quarters of the
experts, in another order, computes what the original computes with the others masked. A tensor that has one entry per
expert and was not known to have, or a router that finds its experts by other means than their order, breaks it.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ggufreap.architecture.layout import MoeLayout
from ggufreap.container import Piece, open_gguf
from ggufreap.errors import InfeasiblePlan, VerificationFailed
from ggufreap.files import check_space, private_folder
from ggufreap.model import AnyModel, Model
from ggufreap.options.engine import EngineSettings
from ggufreap.planning import PruningPlan
from ggufreap.progress import Progress, silent
from ggufreap.rewriting import execute, lower, write_skeleton
from ggufreap.verbs import trust
from ggufreap.verbs.verify import verify
from ggufreap.verification import FREE, Check

_LOG = logging.getLogger(__name__)
SHARE_KEPT = 0.75
TRIAL = "trial.gguf"


def try_out(
    model: AnyModel,
    *,
    tmp_dir: str | Path | None = None,
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> tuple[Check, ...]:
    """Check the laws on this very file, up to the first that does not hold.

    For that a pruned file is written into `tmp_dir` (the system's temp folder) and removed again. Raises OutputError
    where it has no room, EngineError when llama.cpp does not run the model.
    """
    model = Model.open(model)
    with private_folder(None if tmp_dir is None else Path(tmp_dir)) as folder:
        checks: list[Check] = []
        for check in _checks(model, folder, settings, progress):
            checks.append(check)
            if not check.ok:
                break
        return tuple(checks)


def require_laws(model: Model, folder: Path, settings: EngineSettings | None, progress: Progress) -> None:
    """Try the laws out on a file that nothing is known of, in `folder`; raises VerificationFailed if one breaks."""
    if trust.is_trusted(model):
        return
    _LOG.warning("%s: the laws are tried out on it first", trust.unproven(model))
    for check in try_out(model, tmp_dir=folder, settings=settings, progress=progress):
        if not check.ok:
            raise VerificationFailed(
                f"{model.path}: pruning this model is not safe, {check.name} does not hold: {check.detail}; "
                "nothing was pruned"
            )
    trust.trust(model)


def _checks(
    model: Model,
    folder: Path,
    settings: EngineSettings | None,
    progress: Progress,
) -> Iterator[Check]:
    yield _identity(model, folder)
    plan = shuffled(model)
    script = lower(model, plan, folder / TRIAL)
    check_space(folder, script.nbytes)
    _LOG.info("trial: %s, shuffled; %s bytes in %s for a while", plan.summary, f"{script.nbytes:,}", folder)
    execute(script, progress)
    proof = verify(model, script.files[0].path, plan, settings=settings, progress=progress)
    for check in proof.checks:
        yield Check(f"permutation and masking, {check.name}", check.ok, check.detail)


def _identity(model: Model, folder: Path) -> Check:
    """Whether keeping all experts would write the same bytes; no data is written for that."""
    source, layout = model.file, model.layout
    keep = {block.index: tuple(range(layout.n_expert)) for block in layout.blocks}
    script = lower(model, _plan(model, keep), folder / "identity.gguf")
    skeleton = open_gguf(write_skeleton(script, folder))
    script.files[0].path.unlink()
    for key in source.metadata | skeleton.metadata:
        before, after = source.metadata.get(key), skeleton.metadata.get(key)
        if not key.startswith(FREE) and (before and before.raw) != (after and after.raw):
            return Check("identity", False, f"metadata key {key} changes although all experts stay")
    written = {tensor.name: tensor for tensor in script.files[0].tensors}
    for record in source.tensors:
        tensor, after_record = written.get(record.name), skeleton.by_name.get(record.name)
        whole = Piece(source.headers[record.shard].path, record.offset, record.nbytes)
        described = after_record and (after_record.shape, after_record.type)
        if tensor is None or tensor.pieces != (whole,) or described != (record.shape, record.type):
            return Check("identity", False, f"tensor {record.name} changes although all experts stay")
    return Check("identity", True, f"keeping all experts writes the same {len(written)} tensors, byte for byte")


def shuffled(model: Model) -> PruningPlan:
    """A plan that keeps three quarters of the experts, or as few more as llama.cpp allows, in random order."""
    layout = model.layout
    n_keep = next(count for count in range(layout.n_group, layout.n_expert + 1, layout.n_group) if _fits(layout, count))
    rng = np.random.default_rng(0)
    keep = {}
    for block in layout.blocks:
        groups = np.arange(layout.n_expert).reshape(layout.n_group, layout.group_size)
        drawn = [rng.permutation(group)[: n_keep // layout.n_group] for group in groups]
        keep[block.index] = tuple(int(expert) for expert in np.concatenate(drawn))
    return _plan(model, keep)


def _fits(layout: MoeLayout, n_keep: int) -> bool:
    try:
        layout.check_keep(n_keep)
    except InfeasiblePlan:
        return False
    return n_keep >= SHARE_KEPT * layout.n_expert


def _plan(model: Model, keep: dict[int, tuple[int, ...]]) -> PruningPlan:
    layout = model.layout
    n_keep = len(keep[layout.blocks[0].index])
    ratio = f"{(layout.n_expert - n_keep) / layout.n_expert:.2f}"
    return PruningPlan(
        model.identity, "random", ratio, layout.n_expert, n_keep, mtp="mirror", keep=keep, n_group=layout.n_group
    )
