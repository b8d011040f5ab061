"""Runs a corpus through an engine and folds what the routers did; can be stopped and goes on where it was.

A chunk counts whole or not at all, and chunks are added in order, so a resumed run ends bit-identical to one that was
never stopped.
"""

import hashlib
import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from ggufreap import imatrix
from ggufreap.architecture.nodes import RoutingNodes
from ggufreap.corpus import Chunk, Chunks
from ggufreap.engine.importance import OUTPUT, ImportanceSums
from ggufreap.engine.protocol import Engine
from ggufreap.errors import InputError, MismatchError
from ggufreap.files import check_output
from ggufreap.interrupts import held
from ggufreap.progress import Progress, silent
from ggufreap.statistics import DomainStatistics, Provenance, load, load_more, save

if TYPE_CHECKING:
    from hashlib import _Hash

CHECKPOINT_SECONDS = 10.0
# Saving may take this share of the time at most: an importance matrix can be as large as a few experts.
CHECKPOINT_SHARE = 0.05
_DIGEST = "chunks sha256"
_LOG = logging.getLogger(__name__)


def checkpoint_path(out: Path) -> Path:
    """Where an unfinished calibration of `out` waits."""
    return out.with_name(out.name + ".checkpoint")


@dataclass(frozen=True)
class Shard:
    """The `index`-th of `count` parts of a corpus: of every `count` chunks one."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """`2/3` is the second of three; raises InputError."""
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            raise InputError(f"shard {text!r} is not understood; write i/n, such as 1/3, 2/3 and 3/3 for three parts")
        return cls(int(index), int(count))

    def holds(self, position: int) -> bool:
        """Whether the chunk at `position` of the corpus belongs to it."""
        return position % self.count == self.index - 1


@dataclass
class _Run:
    """What was observed so far; `digest` is of its chunks, in order."""

    statistics: DomainStatistics
    sums: ImportanceSums
    digest: "_Hash"


def observe(
    engine: Engine,
    nodes: RoutingNodes,
    chunks: Chunks,
    provenance: Provenance,
    out: Path,
    *,
    imatrix_out: Path | None = None,
    process_output: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    progress: Progress = silent,
) -> DomainStatistics:
    """Statistics of the shard `provenance.shard` of `chunks`, saved at `out`, and its importance matrix.

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
    checkpoint, shard = checkpoint_path(out), Shard.parse(provenance.shard)
    empty = ImportanceSums(output=process_output) if imatrix_out is not None else None
    run, resumed_sha256 = _resume(checkpoint, nodes, chunks, provenance, empty)
    n_done, next_save = run.statistics.n_chunks, time.monotonic() + checkpoint_seconds
    estimate = None if chunks.estimate is None else chunks.estimate // shard.count
    with progress("calibrate", estimate, "tokens", run.statistics.n_tokens) as bar:
        try:
            mine = (chunk for position, chunk in enumerate(chunks) if shard.holds(position))
            for number, chunk in enumerate(mine, 1):
                if number <= n_done:  # read again, since every chunk depends on what was read before it
                    run.digest.update(_bytes(chunk))
                    if number == n_done and run.digest.hexdigest() != resumed_sha256:
                        raise MismatchError(f"{checkpoint} was made of other text; delete the file, or give that text")
                    continue
                _fold(engine, chunk, run, empty)
                bar.update(len(chunk.tokens))
                if time.monotonic() >= next_save:
                    took = _save(checkpoint, run, provenance)
                    pause = max(checkpoint_seconds, took / CHECKPOINT_SHARE) if checkpoint_seconds else 0
                    next_save = time.monotonic() + pause
        except KeyboardInterrupt:
            if run.statistics.n_chunks > n_done:
                _save(checkpoint, run, provenance)
            raise
    run.statistics.check()
    for note in chunks.notes():
        _LOG.info("%s", note)
    if imatrix_out is not None:
        names = ", ".join(record.name for record in chunks.records())
        collected = imatrix.of_sums(run.sums, names, run.statistics.n_chunks, provenance.n_ctx)
        imatrix.save(imatrix_out, collected, legacy=imatrix_out.suffix == ".dat")
    save(out, run.statistics, replace(provenance, sources=chunks.records()))
    checkpoint.unlink(missing_ok=True)
    return run.statistics


def _fold(engine: Engine, chunk: Chunk, run: _Run, empty: ImportanceSums | None) -> None:
    found = None if empty is None else ImportanceSums(output=empty.output)
    batches = engine.route(chunk.tokens, found)
    with held():  # all or nothing
        run.statistics = run.statistics.observe(chunk.domain, chunk.number, batches, len(chunk.tokens), chunk.counted)
        run.digest.update(_bytes(chunk))
        if found is not None:
            run.sums.add(found)


def _bytes(chunk: Chunk) -> bytes:
    return np.ascontiguousarray(chunk.tokens, "<i4").tobytes()


def _save(path: Path, run: _Run, provenance: Provenance) -> float:
    """Save a checkpoint; returns the seconds it took."""
    started = time.monotonic()
    more = run.sums.to_arrays() if run.sums.sums else {}
    save(path, run.statistics, provenance, {**more, _DIGEST: np.array(run.digest.hexdigest())})
    return time.monotonic() - started


def _is_there(imatrix_out: Path, process_output: bool) -> bool:
    return imatrix_out.exists() and (not process_output or OUTPUT in imatrix.load(imatrix_out).entries)


def _resume(
    checkpoint: Path, nodes: RoutingNodes, chunks: Chunks, provenance: Provenance, empty: ImportanceSums | None
) -> tuple[_Run, str]:
    """The unfinished run, with its sums where such as `empty` are collected, and the digest that it had."""
    if not checkpoint.exists():
        blocks = [block.index for block in nodes.blocks]
        used = [block.n_used for block in nodes.blocks]
        nothing = DomainStatistics.empty(blocks, used, nodes.n_expert, chunks.domains)
        return _Run(nothing, ImportanceSums(output=empty is not None and empty.output), hashlib.sha256()), ""
    statistics = _load_same(checkpoint, provenance, "holds an unfinished calibration")
    more = load_more(checkpoint)
    sha256 = str(more.pop(_DIGEST, ""))
    if empty is None:
        return _Run(statistics, ImportanceSums(), hashlib.sha256()), sha256
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
    return _Run(statistics, sums, hashlib.sha256()), sha256


def _load_same(path: Path, provenance: Provenance, what: str) -> DomainStatistics:
    statistics, found = load(path)
    differing = provenance.differences(found)
    if differing:
        raise MismatchError(f"{path} {what} with another {', '.join(differing)}; delete the file or choose another -o")
    return statistics
