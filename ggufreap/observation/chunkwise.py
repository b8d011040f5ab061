"""Runs a corpus through an engine and folds what all blocks did; can be stopped and goes on.

Chunks run one by one or, where the engine takes several at once, in groups. A group counts whole or not at all, and its
chunks are added in order, so a resumed run ends bit-identical to one that was never stopped, in groups of that size.
"""

import hashlib
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ggufreap.architecture.nodes import RoutingNodes
from ggufreap.corpus import Chunk, Chunks
from ggufreap.engine.importance import ImportanceSums
from ggufreap.engine.protocol import Engine
from ggufreap.errors import OutputError
from ggufreap.files import claim, forced, written_by
from ggufreap.interrupts import Stopped, held
from ggufreap.observation.domains import DomainStatistics
from ggufreap.observation.held_back import HeldBack
from ggufreap.observation.provenance import Provenance, Shard
from ggufreap.observation.reuse import checkpoint_path, finished, lacking, no_chunks, other_chunks, unfinished
from ggufreap.observation.statistics import Importance, observables
from ggufreap.observation.store import Stored, save
from ggufreap.progress import Progress, silent

if TYPE_CHECKING:
    from hashlib import _Hash

CHECKPOINT_SECONDS = 10.0
# Saving may take this share of the time at most: an importance matrix can be as large as a few experts.
CHECKPOINT_SHARE = 0.05
_LOG = logging.getLogger(__name__)


@dataclass
class _Run:
    """What was observed so far; `digest` is of its chunks, in order."""

    statistics: DomainStatistics
    sums: ImportanceSums | None
    digest: "_Hash"


@written_by
def observe(
    engine: Engine,
    nodes: RoutingNodes,
    chunks: Chunks,
    provenance: Provenance,
    out: Path,
    *,
    importance: Importance | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    progress: Progress = silent,
) -> DomainStatistics:
    """Statistics of the shard `provenance.shard` of `chunks`, saved at `out` with the importance sums asked for.

    What is already there of the same model, corpus and settings is used: a finished file as it is where it holds all
    that is wanted, an unfinished run from its last checkpoint.
    Raises MismatchError when either belongs to other work, NumericFailure on NaN or infinite activations.
    """
    claim(out, checkpoint_path(out))
    if ready := finished(out, nodes, provenance, importance):
        return ready.domain_statistics()
    if out.exists() and not forced():
        before = Stored.open(out)
        gone = f", without {', '.join(before.unknown)} of another version" if before.unknown else ""
        _LOG.warning("%s lacks %s: calibrating again to add it%s", out, lacking(before, importance), gone)
    checkpoint, shard = checkpoint_path(out), Shard.parse(provenance.shard)
    provenance = replace(provenance, n_together=engine.n_together)
    run, resumed_sha256 = _resume(out, nodes, chunks, provenance, importance)
    held_back = HeldBack()
    n_done, next_save = run.statistics.n_chunks, time.monotonic() + checkpoint_seconds
    estimate = None if chunks.estimate is None else chunks.estimate // shard.count
    with progress("calibrate", estimate, "tokens", run.statistics.n_tokens) as bar:
        try:
            mine = held_back.noting(chunk for position, chunk in enumerate(chunks) if shard.holds(position))
            _read_again(mine, run, resumed_sha256, checkpoint)
            for group in grouped(mine, engine.n_together):
                _fold(engine, group, run, importance)
                bar.update(sum(len(chunk.tokens) for chunk in group))
                if time.monotonic() >= next_save:
                    took = _save(checkpoint, run, provenance) or 0
                    pause = max(checkpoint_seconds, took / CHECKPOINT_SHARE) if checkpoint_seconds else 0
                    next_save = time.monotonic() + pause
        except KeyboardInterrupt:
            kept = True
            with suppress(KeyboardInterrupt), held():
                kept = run.statistics.n_chunks == n_done or _save(checkpoint, run, provenance) is not None
            raise Stopped("" if kept else _lost(checkpoint)) from None
    if not run.statistics.n_chunks:
        raise no_chunks()
    run.statistics.check()
    for note in chunks.notes():
        _LOG.info("%s", note)
    with held():  # no checkpoint stays behind a finished file
        provenance = replace(provenance, sources=chunks.records())
        save(out, run.statistics, provenance, run.sums, held_back=held_back, own=True)
        checkpoint.unlink(missing_ok=True)
    return run.statistics


def _read_again(chunks: Iterator[Chunk], run: _Run, digest: str, checkpoint: Path) -> None:
    """What a checkpoint holds, since every chunk depends on what was read before it; raises MismatchError."""
    n_missing = run.statistics.n_chunks
    for chunk in islice(chunks, n_missing):
        run.digest.update(_bytes(chunk))
        n_missing -= 1
    if n_missing or (run.statistics.n_chunks and digest != run.digest.hexdigest()):
        raise other_chunks(checkpoint)


def grouped(chunks: Iterable[Chunk], most: int) -> Iterator[list[Chunk]]:
    """The chunks in order, `most` at a time; fewer where the next has another length, and at the end."""
    group: list[Chunk] = []
    for chunk in chunks:
        if group and len(group[0].tokens) != len(chunk.tokens):
            yield group
            group = []
        group.append(chunk)
        if len(group) == most:
            yield group
            group = []
    if group:
        yield group


def _fold(engine: Engine, group: Sequence[Chunk], run: _Run, importance: Importance | None) -> None:
    sums = importance.empty() if importance else None
    told = engine.route_together([chunk.tokens for chunk in group], sums, observables())
    with held():  # all or nothing
        for chunk, batches in zip(group, told, strict=True):
            run.statistics = run.statistics.observe(
                chunk.domain, chunk.number, batches, len(chunk.tokens), chunk.counted
            )
            run.digest.update(_bytes(chunk))
        if sums is not None and run.sums is not None:
            run.sums.add(sums)


def _bytes(chunk: Chunk) -> bytes:
    return np.ascontiguousarray(chunk.tokens, "<i4").tobytes()


def _save(path: Path, run: _Run, provenance: Provenance) -> float | None:
    """Save a checkpoint; returns the seconds it took, None where that cannot be done.

    Without one the run goes on: it only cannot be interrupted.
    """
    started = time.monotonic()
    try:
        save(path, run.statistics, provenance, run.sums, run.digest.hexdigest(), own=True)
    except OutputError as error:
        _LOG.warning("no checkpoint: %s. The calibration goes on; if it is stopped, what is not saved is lost", error)
        return None
    return time.monotonic() - started


def _lost(checkpoint: Path) -> str:
    before = f"the same command goes on from {checkpoint}, saved before" if checkpoint.exists() else "it begins anew"
    return f"what was not saved is lost: {before}"


def _resume(
    out: Path, nodes: RoutingNodes, chunks: Chunks, provenance: Provenance, importance: Importance | None
) -> tuple[_Run, str]:
    """The unfinished run, and the digest that it had."""
    stored = unfinished(out, nodes, provenance, importance)
    if stored is None:
        blocks = [block.index for block in nodes.blocks]
        used = [block.n_used for block in nodes.blocks]
        nothing = DomainStatistics.empty(blocks, used, nodes.n_expert, chunks.domains)
        return _Run(nothing, importance.empty() if importance else None, hashlib.sha256()), ""
    if importance is None and stored.importance is not None:
        _LOG.warning(
            "%s: the importance sums of the unfinished calibration are left out, as asked for now", stored.path
        )
    sums = stored.importance_sums() if importance else None
    return _Run(stored.domain_statistics(), sums, hashlib.sha256()), stored.digest
