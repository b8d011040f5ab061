"""Runs a corpus through an engine and folds what the routers did; can be stopped and goes on where it was.

A chunk counts whole or not at all, and chunks are added in order, so a resumed run ends bit-identical to one that was
never stopped.
"""

import logging
import time
from pathlib import Path

from ggufreap.architecture.nodes import RoutingNodes
from ggufreap.corpus import Corpus
from ggufreap.engine.protocol import Engine
from ggufreap.errors import MismatchError
from ggufreap.files import check_output
from ggufreap.progress import Progress, silent
from ggufreap.statistics import ExpertStatistics, Provenance, load, save

CHECKPOINT_SECONDS = 10.0
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
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    progress: Progress = silent,
) -> ExpertStatistics:
    """Statistics of `corpus`, saved at `out`.

    What is already there of the same model, corpus and settings is used: a finished file as it is, an unfinished run
    from its last checkpoint.
    Raises MismatchError when either belongs to other work, NumericFailure on NaN or infinite activations.
    """
    check_output(out)
    if out.exists():
        _LOG.info("using the statistics in %s", out)
        return _load_same(out, provenance, "holds statistics")
    checkpoint = checkpoint_path(out)
    statistics = _resume(checkpoint, nodes, provenance)
    n_ctx, done = corpus.chunks.shape[1], statistics.n_tokens
    saved = time.monotonic()
    with progress("calibrate", corpus.n_tokens, "tokens", done) as bar:
        try:
            for chunk in corpus.chunks[statistics.n_chunks :]:
                statistics = statistics.observe(engine.route(chunk), n_ctx)
                bar.update(n_ctx)
                if time.monotonic() - saved >= checkpoint_seconds:
                    save(checkpoint, statistics, provenance)
                    saved = time.monotonic()
        except KeyboardInterrupt:
            save(checkpoint, statistics, provenance)
            raise
    statistics.check()
    save(out, statistics, provenance)
    checkpoint.unlink(missing_ok=True)
    return statistics


def _resume(checkpoint: Path, nodes: RoutingNodes, provenance: Provenance) -> ExpertStatistics:
    if not checkpoint.exists():
        blocks = [block.index for block in nodes.blocks]
        return ExpertStatistics.empty(blocks, [block.n_used for block in nodes.blocks], nodes.n_expert)
    return _load_same(checkpoint, provenance, "holds an unfinished calibration")


def _load_same(path: Path, provenance: Provenance, what: str) -> ExpertStatistics:
    statistics, found = load(path)
    differing = provenance.differences(found)
    if differing:
        raise MismatchError(f"{path} {what} with another {', '.join(differing)}; delete the file or choose another -o")
    return statistics
