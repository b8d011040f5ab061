"""One verb per stage, each a short composition; the only place that chooses llama.cpp as the engine."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ggufreap import imatrix as matrices
from ggufreap.activity import doing
from ggufreap.architecture.layout import MoeLayout, bind
from ggufreap.container import GgufFile, check_target, open_gguf
from ggufreap.corpus.request import Opened
from ggufreap.engine import subprocess_probe
from ggufreap.engine.importance import OUTPUT
from ggufreap.engine.placement import warn_unused
from ggufreap.engine.protocol import Tokens
from ggufreap.engine.session import LlamaSession
from ggufreap.engine.subprocess_probe import Pass, Ran
from ggufreap.errors import GgufReapError
from ggufreap.files import check_free, claim, discard, private_folder, same_bytes, written_by
from ggufreap.inspection import Inspection, inspect_file
from ggufreap.observation import DomainStatistics, Importance, Provenance, checkpoint_path, finished, observe
from ggufreap.options.engine import CALIBRATING, EngineSettings
from ggufreap.planning import (
    ModelIdentity,
    PruningPlan,
    check_plan,
    load_plan,
)
from ggufreap.progress import Progress, silent
from ggufreap.rewriting import RewriteScript, execute, lower
from ggufreap.verbs import trust
from ggufreap.verbs.data import Data, open_data
from ggufreap.verification import N_TOKENS, Verification, check_room, verify_file
from ggufreap.version import __version__

_LOG = logging.getLogger(__name__)


def open_model(model: str | Path) -> tuple[GgufFile, MoeLayout, ModelIdentity]:
    """A model, its layout, and who it is."""
    file = open_gguf(model)
    layout = bind(file)
    name = str(file.get("general.name") or file.path.stem)
    return file, layout, ModelIdentity(file.fingerprint, layout.architecture.name, name, file.structure, file.types)


def inspect(model: str | Path) -> Inspection:
    """Describe a model from its header alone."""
    file, layout, _ = open_model(model)
    return inspect_file(file, layout)


@written_by
def calibrate(
    model: str | Path,
    out: str | Path,
    data: Data = None,
    *,
    shard: str = "1/1",
    imatrix_out: str | Path | None = None,
    process_output: bool = False,
    force: bool = False,
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> DomainStatistics:
    """Run `data` (a file, or all that a Request can name) and save what the experts did at `out`.

    Without data the built-in mix of public data sets is read. `settings.n_ctx` 0: 512 tokens per chunk of text, 2048
    of rows. With `imatrix_out` the same pass gives the importance matrix too, as llama-imatrix would write it; with
    `process_output` also of the output head, where it is a weight of its own. `shard` 2/3 is the second third of the
    chunks, to be merged with the others. An interrupted run goes on where it was when it is called again with the same
    arguments. A finished one is used again, without loading the model, where `out` holds all that is wanted; else it
    is said what is missing, and calibration runs again. Files of other work are replaced with `force` alone.
    """
    source, layout, identity = open_model(model)
    opened = open_data(data)
    beside = [Path(imatrix_out)] if imatrix_out is not None else []
    claim(Path(out), checkpoint_path(Path(out)), *beside, inputs=(*source.paths, *opened.paths))
    settings = settings or CALIBRATING
    settings = replace(settings, n_ctx=opened.chunk_length(settings.n_ctx))
    provenance = _provenance(identity, opened, settings, shard)
    process_output = process_output and OUTPUT in source.by_name
    importance = Importance(process_output) if imatrix_out is not None else None
    ready = finished(Path(out), layout.nodes, provenance, importance)
    older = imatrix_out is not None and is_matrix_of(Path(out), Path(imatrix_out))
    if ready:
        statistics = ready.domain_statistics()
    else:
        for path in beside:
            check_free(path, older)
        with (
            LlamaSession(source.path, layout.nodes, settings) as engine,
            opened.chunks(engine, source, settings.n_ctx) as chunks,
            doing("calibrating with", source.path, kept=checkpoint_path(Path(out))),
        ):
            many = "an unknown number of" if chunks.estimate is None else f"about {chunks.estimate:,}"
            _LOG.info("calibrating with %s: %s tokens in chunks of %d", provenance.source, many, settings.n_ctx)
            statistics = observe(
                engine, layout.nodes, chunks, provenance, Path(out), importance=importance, progress=progress
            )
    if imatrix_out is not None:
        export_matrix(Path(out), Path(imatrix_out), process_output, own=older)
    return statistics


def _provenance(identity: ModelIdentity, opened: Opened, settings: EngineSettings, shard: str) -> Provenance:
    return Provenance(
        identity.fingerprint,
        opened.identity,
        settings.n_ctx,
        settings.graph_tokens,
        opened.names,
        __version__,
        opened.records,
        shard,
        opened.request.reading.count,
        identity.structure,
        identity.types,
    )


def export_matrix(stats: Path, path: Path, process_output: bool, own: bool = False) -> None:
    """Write the importance matrix that `stats` holds, as llama-imatrix would have; `own` as for files.replacing."""
    matrices.save(path, matrices.collected(stats, process_output), legacy=path.suffix == ".dat", own=own)


def is_matrix_of(stats: Path, path: Path) -> bool:
    """Whether the file `path` is what `stats` gives as a matrix, with the output head or without."""
    if not (stats.exists() and path.exists()):
        return False
    with private_folder() as folder, suppress(GgufReapError):
        for output in (True, False):
            export_matrix(stats, folder / path.name, output)
            if same_bytes(folder / path.name, path):
                return True
            discard(folder / path.name)
    return False


@written_by
def apply(
    model: str | Path,
    plan: PruningPlan | str | Path,
    out: str | Path,
    *,
    dry_run: bool = False,
    split_max_size: int | None = None,
    keep_split: bool = False,
    force: bool = False,
    progress: Progress = silent,
) -> RewriteScript:
    """Write the file that `plan` asks for; with `dry_run` only tell exactly what it would be.

    Nothing is proven of it until `verify` has run. Files of other work are replaced with `force` alone.

    Raises UnsupportedModel for a model of an unknown architecture that `doctor` has not tried out.
    """
    source, layout, identity = open_model(model)
    chosen = plan if isinstance(plan, PruningPlan) else load_plan(Path(plan))
    check_plan(chosen, identity, layout)
    script = lower(source, layout, chosen, Path(out), split_max_size=split_max_size, keep_split=keep_split)
    if not dry_run:
        trust.require_trust(source, layout)
        check_target(script.files, *source.paths, None if isinstance(plan, PruningPlan) else plan)
        execute(script, progress)
        _LOG.warning(
            "%s is unproven: ggufreap verify %s %s --plan %s shows whether it is what the plan promised",
            *(script.files[0].path, source.path, script.files[0].path),
            "P.json" if isinstance(plan, PruningPlan) else plan,
        )
    return script


def verify(
    model: str | Path,
    out: str | Path,
    plan: PruningPlan | str | Path,
    *,
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> Verification:
    """Prove that `out` is `model` without the experts that `plan` drops.

    The comparison is exact: it decides on tokens and precision, `settings` on threads and on where the weights go.
    """
    source, layout, identity = open_model(model)
    chosen = plan if isinstance(plan, PruningPlan) else load_plan(Path(plan))
    check_plan(chosen, identity, layout)
    check_room(source, layout)
    settings = replace(settings or EngineSettings(), n_ctx=N_TOKENS, n_ubatch=N_TOKENS, n_batch=0, exact=True)
    warn_unused(settings)  # the model is loaded in a process that is not heard

    def run(path: Path, tokens: Tokens, passes: Sequence[Pass], folder: Path) -> list[Ran]:
        return subprocess_probe.run(path, tokens, settings, passes, folder)

    with doing("verifying", out):
        return verify_file(source, layout, chosen, Path(out), run, progress)
