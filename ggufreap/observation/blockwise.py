"""Runs a corpus block by block through a model larger than memory: every weight is read from disk once.

All chunks go through the first blocks, what these leave of them (the hidden states) waits on disk, all chunks go
through the next ones, and so on. Micro-batches are those of chunkwise.observe, and so are all sums, to the last bit. A
piece of the model counts whole or not at all.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from ggufreap.architecture.nodes import RoutingNodes
from ggufreap.corpus import Chunk, Chunks
from ggufreap.engine.graph import Piece
from ggufreap.engine.importance import ImportanceSums
from ggufreap.errors import MismatchError
from ggufreap.interrupts import held
from ggufreap.observation.domains import DomainStatistics
from ggufreap.observation.held_back import HeldBack
from ggufreap.observation.hidden import clear, hidden_path, reading, spill_path, writing
from ggufreap.observation.provenance import Provenance, Shard
from ggufreap.observation.reuse import checkpoint_path, no_chunks, other_chunks, unfinished
from ggufreap.observation.statistics import Importance, observables
from ggufreap.observation.store import save
from ggufreap.progress import Progress, silent

if TYPE_CHECKING:
    from ggufreap.engine.piecewise import Piecewise

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Texts:
    """All chunks of a shard, read; `digest` is SHA-256 of them, in order."""

    chunks: tuple[Chunk, ...]
    digest: str

    @classmethod
    def read(cls, chunks: Chunks, shard: Shard) -> "Texts":
        """Those chunks that belong to `shard`; raises InputError where there are none."""
        mine = tuple(chunk for position, chunk in enumerate(chunks) if shard.holds(position))
        if not mine:
            raise no_chunks()
        digest = hashlib.sha256()
        for chunk in mine:
            digest.update(np.ascontiguousarray(chunk.tokens, "<i4").tobytes())
        return cls(mine, digest.hexdigest())

    @property
    def n_tokens(self) -> int:
        """All tokens."""
        return sum(len(chunk.tokens) for chunk in self.chunks)


@dataclass
class Run:
    """What the pieces so far told, and the last block that they hold; -1 at the beginning."""

    statistics: DomainStatistics
    sums: ImportanceSums | None
    through: int


def spill_nbytes(engine: "Piecewise", texts: Texts, pieces: Sequence[Piece]) -> int:
    """The most that hidden states take on disk: what one piece reads and what it leaves."""
    lengths = Counter(len(chunk.tokens) for chunk in texts.chunks)
    sizes = [0] + [sum(n * engine.kept_nbytes(length, piece) for length, n in lengths.items()) for piece in pieces]
    return max(before + after for before, after in pairwise(sizes))


def observe_blockwise(
    engine: "Piecewise",
    run: Run,
    pieces: Sequence[Piece],
    nodes: RoutingNodes,
    chunks: Chunks,
    texts: Texts,
    provenance: Provenance,
    out: Path,
    *,
    importance: Importance | None = None,
    progress: Progress = silent,
) -> DomainStatistics:
    """What chunkwise.observe tells of `texts`, which were read from `chunks`, and saves at `out`, piece by piece.

    `run` is what `resume` found, and `pieces` are the rest of the model. Raises NumericFailure on NaN or infinite
    activations, OutputError when the disk is full.
    """
    folder = hidden_path(out)
    clear(folder, but=run.through)
    n_blocks = pieces[-1].last + 1
    with progress("calibrate", texts.n_tokens * n_blocks, "tokens x blocks", texts.n_tokens * pieces[0].first) as bar:
        for piece in pieces:
            engine.begin(piece)
            with reading(folder, run.through) as source, writing(folder, piece) as sink:
                part = Run(_nothing(nodes, chunks, piece), importance.empty() if importance else None, piece.last)
                for chunk in texts.chunks:
                    _fold(engine, piece, chunk, source, sink, part, importance)
                    bar.update(len(chunk.tokens) * len(piece.blocks))
                if source is not None and source.read(1):
                    raise MismatchError(f"{source.name} holds more than {piece} read; delete {folder}, and start again")
            engine.end(piece)
            with held():
                before = run.through
                run = _joined(run, part)
                if not piece.ends:
                    save(
                        checkpoint_path(out),
                        run.statistics,
                        provenance,
                        run.sums,
                        texts.digest,
                        through=run.through,
                        own=True,
                    )
                spill_path(folder, before).unlink(missing_ok=True)
    run.statistics.check()
    for note in chunks.notes():
        _LOG.info("%s", note)
    with held():  # no checkpoint stays behind a finished file
        provenance = replace(provenance, sources=chunks.records())
        save(out, run.statistics, provenance, run.sums, held_back=HeldBack.of(texts.chunks), own=True)
        checkpoint_path(out).unlink(missing_ok=True)
        clear(folder)
    return run.statistics


def _fold(
    engine: "Piecewise",
    piece: Piece,
    chunk: Chunk,
    source: BinaryIO | None,
    sink: BinaryIO | None,
    run: Run,
    importance: Importance | None,
) -> None:
    sums = importance.empty() if importance else None
    batches = engine.route(chunk.tokens, piece, source, sink, sums, observables())
    run.statistics = run.statistics.observe(chunk.domain, chunk.number, batches, len(chunk.tokens), chunk.counted)
    if sums is not None and run.sums is not None:
        run.sums.add(sums)


def _nothing(nodes: RoutingNodes, chunks: Chunks, piece: Piece) -> DomainStatistics:
    mine = [block for block in nodes.blocks if piece.first <= block.index <= piece.last]
    blocks, used = [block.index for block in mine], [block.n_used for block in mine]
    return DomainStatistics.empty(blocks, used, nodes.n_expert, chunks.domains)


def _joined(run: Run, part: Run) -> Run:
    if run.through < 0:
        return part
    if run.sums is not None and part.sums is not None:
        run.sums.add(part.sums)
    return Run(run.statistics.beside(part.statistics), run.sums, part.through)


def resume(
    out: Path,
    nodes: RoutingNodes,
    chunks: Chunks,
    texts: Texts,
    provenance: Provenance,
    importance: Importance | None,
) -> Run:
    """The unfinished run, or one that has yet to begin; raises MismatchError when it belongs to other work."""
    nothing = Run(DomainStatistics.empty([], [], nodes.n_expert, chunks.domains), None, -1)
    stored = unfinished(out, nodes, provenance, importance, blockwise=True)
    if stored is None or stored.through is None:
        return nothing
    if stored.digest != texts.digest:
        raise other_chunks(stored.path)
    if not spill_path(hidden_path(out), stored.through).exists():
        _LOG.warning("%s: its hidden states are gone from %s, so it begins anew", stored.path, hidden_path(out))
        return nothing
    if importance is None and stored.importance is not None:
        _LOG.warning(
            "%s: the importance sums of the unfinished calibration are left out, as asked for now", stored.path
        )
    return Run(stored.domain_statistics(), stored.importance_sums() if importance else None, stored.through)
