"""Running text through a model and recording what every expert does."""

import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ggufreap import imatrix as matrices
from ggufreap.activity import doing
from ggufreap.corpus.request import Opened
from ggufreap.engine.fitting import insisted
from ggufreap.engine.importance import OUTPUT
from ggufreap.engine.session import LlamaSession
from ggufreap.errors import GgufReapError, InputError
from ggufreap.files import check_free, claim, discard, private_folder, remove_kept, same_bytes, written_by
from ggufreap.imatrix import Imatrix
from ggufreap.model import AnyModel, Model, warn_of_context
from ggufreap.observation import (
    DomainStatistics,
    Importance,
    Provenance,
    Shard,
    Stored,
    checkpoint_path,
    finished,
    hidden_path,
    observe,
)
from ggufreap.options.engine import ALL_BLOCKS, CALIBRATING, FITTING_TEXTS, MOST_SEQUENCES, EngineSettings
from ggufreap.progress import Progress, silent
from ggufreap.verbs.blockwise import calibrate_blockwise, goes_blockwise
from ggufreap.verbs.data import Data, open_own_data
from ggufreap.version import __version__

_LOG = logging.getLogger(__name__)


@written_by
def calibrate(
    model: AnyModel,
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
    is said what is missing, and calibration runs again. The matrix is always written from what `out` holds. With
    `settings.blockwise`, or if the model does not fit into memory, it is computed block by block, with the same result.
    Else `settings.n_together` chunks run at once, or as many as fit into memory: the same result up to rounding.
    Files of other work are replaced with `force` alone.
    """
    model = Model.open(model)
    opened = open_own_data(data)
    if process_output and imatrix_out is None:
        raise InputError("--process-output is for an importance matrix, and none is collected; leave it out")
    observed = observed_of(
        model,
        Path(out),
        opened,
        shard=shard,
        imatrix_out=Path(imatrix_out) if imatrix_out is not None else None,
        process_output=process_output,
        settings=settings,
        progress=progress,
    )
    return observed.stored.domain_statistics()


@dataclass(frozen=True)
class Observed:
    """The statistics as they lie on disk, and the importance matrix of the same pass where one was wanted."""

    stored: Stored
    matrix: Imatrix | None


def observed_of(
    model: Model,
    out: Path,
    data: Opened,
    *,
    shard: str = "1/1",
    imatrix_out: Path | None = None,
    process_output: bool = False,
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> Observed:
    """What `calibrate` does, for opened values: out of the file at `out` where all is there, else from the model."""
    beside = [imatrix_out] if imatrix_out is not None else []
    claim(out, checkpoint_path(out), *beside, inputs=(*model.file.paths, *data.paths))
    settings = settings or CALIBRATING
    settings = replace(settings, n_ctx=data.chunk_length(settings.n_ctx))
    data.check_length(settings.n_ctx)
    Shard.parse(shard)
    provenance = Provenance(
        model.identity.fingerprint,
        data.identity,
        settings.n_ctx,
        settings.graph_tokens,
        data.names,
        __version__,
        data.records,
        shard,
        data.request.reading.count,
        model.identity.structure,
        model.identity.types,
    )
    process_output = process_output and OUTPUT in model.file.by_name
    importance = Importance(process_output) if imatrix_out is not None else None
    blockwise = goes_blockwise(model.file, settings, out)
    stored = finished(out, model.layout.nodes, provenance, importance, blockwise)
    older = imatrix_out is not None and is_matrix_of(out, imatrix_out)
    if stored is None:
        for path in beside:
            check_free(path, older)
        model.check_weights()
        warn_of_context(model.file, settings.n_ctx)
        run = calibrate_blockwise if blockwise else _run
        run(model, out, data, provenance, importance, settings, progress)
        stored = Stored.open(out)
    remove_kept(hidden_path(out))  # of a run in another order, or one that died when all was saved
    matrix = export_matrix(stored, imatrix_out, process_output, older) if imatrix_out is not None else None
    return Observed(stored, matrix)


def _run(
    model: Model,
    out: Path,
    data: Opened,
    provenance: Provenance,
    importance: Importance | None,
    settings: EngineSettings,
    progress: Progress,
) -> None:
    nodes = model.layout.nodes
    if settings.blockwise == ALL_BLOCKS:
        settings = insisted(model.path, settings)
    settings = _as_begun(settings, checkpoint_path(out))
    with (
        LlamaSession(model.path, nodes, settings, together=MOST_SEQUENCES) as engine,
        data.chunks(engine, model.file, settings.n_ctx) as chunks,
        doing("calibrating with", model.path, kept=checkpoint_path(out)),
    ):
        many = "an unknown number of" if chunks.estimate is None else f"about {chunks.estimate:,}"
        _LOG.info(
            "calibrating with %s: %s tokens in chunks of %d, %d at once",
            provenance.source,
            many,
            settings.n_ctx,
            engine.n_together,
        )
        observe(engine, nodes, chunks, provenance, out, importance=importance, progress=progress)


def _as_begun(settings: EngineSettings, checkpoint: Path) -> EngineSettings:
    """The settings with as many chunks at once as the unfinished run had: so it ends as if it had never stopped."""
    if not checkpoint.exists():
        return settings
    begun = Stored.open(checkpoint).provenance.n_together
    if settings.n_together not in (FITTING_TEXTS, begun):
        _LOG.warning(
            "-np %d: the unfinished calibration ran %d chunks at once; what it ends with differs in rounding from that "
            "of one run",
            settings.n_together,
            begun,
        )
        return settings
    return replace(settings, n_together=begun)


def export_matrix(stored: Stored, path: Path, process_output: bool, own: bool = False) -> Imatrix:
    """Write the importance matrix that statistics hold, as llama-imatrix would have; `own` as for files.replacing."""
    matrix = matrices.collected(stored, process_output)
    matrices.save(path, matrix, legacy=path.suffix == ".dat", own=own)
    return matrix


def is_matrix_of(stats: Path, path: Path) -> bool:
    """Whether the file `path` is what `stats` gives as a matrix, with the output head or without."""
    if not (stats.exists() and path.exists()):
        return False
    with private_folder() as folder, suppress(GgufReapError):
        for output in (True, False):
            export_matrix(Stored.open(stats), folder / path.name, output)
            if same_bytes(folder / path.name, path):
                return True
            discard(folder / path.name)
    return False
