"""Runs text through a model whose other experts are masked, and narrows its blocks, some at a time.

All chunks go through the blocks of a piece, whose curvature must fit into memory together; then these are solved, and
the next piece follows.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from ggufreap.architecture.nodes import RoutingNodes
from ggufreap.container import GgufFile
from ggufreap.engine.graph import Piece
from ggufreap.engine.observing import Wanted
from ggufreap.engine.protocol import RoutedBatch, Tokens
from ggufreap.errors import MismatchError
from ggufreap.narrowing.curvature import NEEDS, Curvature
from ggufreap.narrowing.workplace import Solution, Workplace
from ggufreap.observation import Texts
from ggufreap.observation.experts import only_counted
from ggufreap.observation.hidden import clear, reading, spill_path, writing
from ggufreap.progress import Bar, Progress, silent

_LOG = logging.getLogger(__name__)


class Pieces(Protocol):
    """A model of which some blocks at a time can be observed: Piecewise or Prefixes.

    `spills`: a piece goes on from what the one before it left; else each begins at the first block.
    """

    spills: bool

    def observe(
        self, tokens: Tokens, piece: Piece, source: BinaryIO | None, sink: BinaryIO | None, wanted: Wanted
    ) -> Sequence[RoutedBatch]:
        """What the blocks of `piece` did with a chunk, which is read from `source` and left at `sink`."""

    def begin(self, piece: Piece) -> None:
        """The weights of `piece` are needed now."""

    def end(self, piece: Piece) -> None:
        """The weights of `piece` are needed no more."""


@dataclass(frozen=True)
class Run:
    """What blocks are narrowed with: a model that is observed, its `file`, text, and the `place` of what is solved."""

    engine: Pieces
    nodes: RoutingNodes
    file: GgufFile
    texts: Texts
    place: Workplace
    progress: Progress = silent


def through(place: Workplace, nodes: RoutingNodes, folders: Sequence[Path]) -> int:
    """The last block behind which an unfinished run can go on; -1 at the beginning.

    `folders` are those in which hidden states have to wait for that.
    """
    last = -1
    for block in nodes.blocks:
        if block.index not in place.solved:
            break
        if all(spill_path(folder, block.index).exists() for folder in folders):
            last = block.index
    return last


def shares(texts: Texts) -> dict[str, float]:
    """What a token of each domain counts, so that all domains count the same, and all tokens 1 in the mean."""
    n_tokens: Counter[str] = Counter()
    for chunk in texts.chunks:
        n_tokens[chunk.domain] += len(chunk.tokens) if chunk.counted is None else int(chunk.counted.sum())
    total = n_tokens.total()
    return {domain: total / (len(n_tokens) * count) for domain, count in n_tokens.items() if count}


def narrow(run: Run, pieces: Sequence[Piece]) -> Solution:
    """Solve all blocks that are not solved yet; `pieces` are the rest of the model behind `through`.

    Blocks that no text reaches (MTP) are solved without: by the norms of down's columns. Raises NumericFailure on NaN
    or infinite activations, OutputError when the disk is full.
    """
    before, folder = pieces[0].first - 1 if pieces else -1, run.place.folder
    clear(folder, but=before)
    for piece in pieces:
        with run.progress(f"observe {piece}", run.texts.n_tokens * len(piece.blocks), "tokens x blocks") as bar:
            curvatures = collect(run, piece, before, bar)
        _solve(run, curvatures, str(piece))
        spill_path(folder, before).unlink(missing_ok=True)
        before = piece.last
    return finished(run)


def finished(run: Run) -> Solution:
    """The solution, once all blocks that text reaches are solved; says which experts nothing makes up for."""
    task, solved = run.place.task, run.place.solved
    unseen = {
        block: Curvature.empty(block, kept, task.source_width)
        for block, kept in task.keep.items()
        if block not in solved
    }
    _solve(run, unseen, "what no text reaches")
    solution = run.place.solution()
    for remark in solution.narrowing.remarks:
        _LOG.warning("%s", remark)
    return solution


def _solve(run: Run, curvatures: dict[int, Curvature], what: str) -> None:
    """Solve blocks, and give back the memory of each as soon as it is."""
    if not curvatures:
        return
    with run.progress(f"solve {what}", sum(len(each.experts) for each in curvatures.values()), "experts") as bar:
        for block in list(curvatures):
            run.place.write(curvatures.pop(block), run.file, bar)


def collect(run: Run, piece: Piece, before: int, bar: Bar) -> dict[int, Curvature]:
    """The sums of the blocks of `piece` that are not solved yet; the piece before it ended with the block `before`."""
    engine, nodes, texts, place = run.engine, run.nodes, run.texts, run.place
    keep, width, counting = place.task.keep, place.task.source_width, shares(texts)
    mine = [each.index for each in nodes.blocks if each.index in piece.blocks and each.index not in place.solved]
    curvatures = {block: Curvature.empty(block, keep[block], width) for block in mine}
    wanted = Wanted(observables=NEEDS, keep=keep)
    engine.begin(piece)
    spills = engine.spills
    with (
        reading(place.folder, before if spills else -1) as source,
        writing(place.folder, piece) if spills else nullcontext() as sink,
    ):
        for chunk in texts.chunks:
            batches = engine.observe(chunk.tokens, piece, source, sink, wanted)
            for batch in batches if chunk.counted is None else only_counted(batches, chunk.counted):
                if batch.block in curvatures:
                    curvatures[batch.block].fold(batch, nodes.weighted_input, counting.get(chunk.domain, 0.0))
            bar.update(len(chunk.tokens) * len(piece.blocks))
        if source is not None and source.read(1):
            raise MismatchError(f"{source.name} holds more than {piece} read; delete {place.folder}, and start again")
    engine.end(piece)
    for curvature in curvatures.values():
        curvature.flush()
    return curvatures
