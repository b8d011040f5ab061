"""Runs a corpus through an engine and folds what the routers did; can be stopped and goes on where it was.

A chunk counts whole or not at all, and chunks are added in order, so a resumed run ends bit-identical to one that was
never stopped.
"""

import logging
import time
from pathlib import Path

from ggufreap import imatrix
from ggufreap.architecture.nodes import RoutingNodes
from ggufreap.corpus import Corpus
from ggufreap.engine.importance import OUTPUT, ImportanceSums
from ggufreap.engine.protocol import Engine
from ggufreap.errors import MismatchError
from ggufreap.files import check_output
from ggufreap.interrupts import held
from ggufreap.progress import Progress, silent
from ggufreap.statistics import ExpertStatistics, Provenance, load, load_more, save

CHECKPOINT_SECONDS = 10.0
# Saving may take this share of the time at most: an importance matrix can be as large as a few experts.
CHECKPOINT_SHARE = 0.05
_LOG = logging.getLogger(__name__)


def checkpoint_path(out: Path) -> Path:
    """Where an unfinished calibration of `out` waits."""
    return out.with_name(out.name + ".checkpoint")


def observe(
    engine: Engine,
    nodes: RoutingNodes,
    corpus: Corpus,
    provenance: Provenance,
    out: Path,
    *,
    imatrix_out: Path | None = None,
    process_output: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    progress: Progress = silent,
) -> ExpertStatistics:
    """Statistics of `corpus`, saved at `out`, and the importance matrix of the same pass at `imatrix_out`.

    With `process_output` the matrix has the output head too, where the model has one of its own.
    What is already there of the same model, corpus and settings is used: finished files as they are, an unfinished run
    from its last checkpoint.
    Raises MismatchError when either belongs to other work, NumericFailure on NaN or infinite activations.
    """
    check_output(out)
    if out.exists():
        statistics = _load_same(out, provenance, "holds statistics")
        if imatrix_out is None or _is_there(imatrix_out, process_output):
            _LOG.info("using the statistics in %s", out)
            return statistics
    checkpoint = checkpoint_path(out)
    empty = ImportanceSums(output=process_output) if imatrix_out is not None else None
    statistics, sums = _resume(checkpoint, nodes, provenance, empty)
    n_ctx = corpus.chunks.shape[1]
    next_save = time.monotonic() + checkpoint_seconds
    with progress("calibrate", corpus.n_tokens, "tokens", statistics.n_tokens) as bar:
        try:
            for chunk in corpus.chunks[statistics.n_chunks :]:
                found = ImportanceSums(output=process_output) if imatrix_out is not None else None
                batches = engine.route(chunk, found)
                with held():  # both or neither
                    statistics = statistics.observe(batches, n_ctx)
                    if found is not None:
                        sums.add(found)
                bar.update(n_ctx)
                if time.monotonic() >= next_save:
                    took = _save(checkpoint, statistics, provenance, sums)
                    pause = max(checkpoint_seconds, took / CHECKPOINT_SHARE) if checkpoint_seconds else 0
                    next_save = time.monotonic() + pause
        except KeyboardInterrupt:
            _save(checkpoint, statistics, provenance, sums)
            raise
    statistics.check()
    if imatrix_out is not None:
        collected = imatrix.of_sums(sums, corpus.source, statistics.n_chunks, n_ctx)
        imatrix.save(imatrix_out, collected, legacy=imatrix_out.suffix == ".dat")
    save(out, statistics, provenance)
    checkpoint.unlink(missing_ok=True)
    return statistics


def _save(path: Path, statistics: ExpertStatistics, provenance: Provenance, sums: ImportanceSums) -> float:
    """Save a checkpoint; returns the seconds it took."""
    started = time.monotonic()
    save(path, statistics, provenance, sums.to_arrays() if sums.sums else {})
    return time.monotonic() - started


def _is_there(imatrix_out: Path, process_output: bool) -> bool:
    return imatrix_out.exists() and (not process_output or OUTPUT in imatrix.load(imatrix_out).entries)


def _resume(
    checkpoint: Path, nodes: RoutingNodes, provenance: Provenance, empty: ImportanceSums | None
) -> tuple[ExpertStatistics, ImportanceSums]:
    """The unfinished statistics, and its sums where such as `empty` are collected."""
    if not checkpoint.exists():
        blocks = [block.index for block in nodes.blocks]
        used = [block.n_used for block in nodes.blocks]
        return ExpertStatistics.empty(blocks, used, nodes.n_expert), empty or ImportanceSums()
    statistics = _load_same(checkpoint, provenance, "holds an unfinished calibration")
    more = load_more(checkpoint)
    if empty is None or not statistics.n_chunks:
        return statistics, empty or ImportanceSums()
    if not more:
        raise MismatchError(
            f"{checkpoint} holds an unfinished calibration without importance matrix; "
            "finish it with --no-imatrix, delete the file, or choose another -o"
        )
    sums = ImportanceSums.from_arrays(more)
    if sums.output != empty.output:
        raise MismatchError(
            f"{checkpoint} holds an unfinished calibration {'with' if sums.output else 'without'} --process-output; "
            "finish it so, delete the file, or choose another -o"
        )
    return statistics, sums


def _load_same(path: Path, provenance: Provenance, what: str) -> ExpertStatistics:
    statistics, found = load(path)
    differing = provenance.differences(found)
    if differing:
        raise MismatchError(f"{path} {what} with another {', '.join(differing)}; delete the file or choose another -o")
    return statistics
