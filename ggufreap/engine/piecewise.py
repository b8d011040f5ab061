"""A loaded model computed a few blocks at a time: each piece reads what the piece before it left of every chunk."""

from collections.abc import Collection, Iterator, Sequence
from functools import cache
from typing import BinaryIO

import numpy as np

from ggufreap.architecture.nodes import FINAL_NORM, RoutingNodes
from ggufreap.engine.graph import Cut, Graph, Piece
from ggufreap.engine.hollow import Weights
from ggufreap.engine.importance import ImportanceSums
from ggufreap.engine.native import TensorReader
from ggufreap.engine.observing import Observing, Wanted
from ggufreap.engine.piece_tap import PieceTap, SurveyTap
from ggufreap.engine.protocol import RoutedBatch, Tokens
from ggufreap.engine.session import LlamaSession
from ggufreap.errors import EngineError


class Piecewise:
    """The pieces of the model that `session` holds, which nothing else may use meanwhile.

    `weights` are those of the real file, where the session was given a hollow one.
    """

    spills = True

    def __init__(self, session: LlamaSession, nodes: RoutingNodes, weights: Weights) -> None:
        self._session, self._nodes, self._weights = session, nodes, weights
        self._reader = TensorReader()
        self._streamless: set[int] = set()  # the blocks of which it was said
        self._graphs = cache(self._survey)
        self._cuts = cache(self._cut)

    def ends(self, tokens: Tokens) -> list[int]:
        """The blocks after which the graph of a chunk can be cut; the last one is the last of the model."""
        return sorted(set.intersection(*(set(graph.ends()) for graph in self._graphs(len(tokens), False))))

    def kept_nbytes(self, n_tokens: int, piece: Piece) -> int:
        """Bytes that `piece` leaves of a chunk."""
        return sum(graph.nodes[index].nbytes for graph, cut in self._cuts(n_tokens, piece, False) for index in cut.kept)

    def begin(self, piece: Piece) -> None:
        """Begin to read the weights of `piece`."""
        self._weights.wanted(piece.blocks)

    def end(self, piece: Piece) -> None:
        """Give back the memory of the weights of `piece`."""
        self._weights.done(piece.blocks)

    def route(
        self,
        tokens: Tokens,
        piece: Piece,
        source: BinaryIO | None,
        sink: BinaryIO | None,
        importance: ImportanceSums | None = None,
        observables: Collection[str] = (),
    ) -> Sequence[RoutedBatch]:
        """What LlamaSession.route tells of one chunk, from the blocks of `piece` alone.

        What the piece before it left of the chunk is read from `source`, what this one leaves is written to `sink`.
        """
        return self.observe(tokens, piece, source, sink, Wanted(importance, observables))

    def observe(
        self, tokens: Tokens, piece: Piece, source: BinaryIO | None, sink: BinaryIO | None, wanted: Wanted
    ) -> Sequence[RoutedBatch]:
        """What `route` tells of one chunk, as `wanted`."""
        tap = Observing(self._nodes, self._reader, wanted, self._streamless, stop=False)
        cuts = self._cuts(len(tokens), piece, wanted.importance is not None and wanted.importance.output)
        self._session.memory()
        for (part, start), (graph, cut) in zip(self._parts(tokens), cuts, strict=True):
            self._decode(part, start, piece.ends, PieceTap(graph, cut, tap, self._reader, source, sink))
        return tap.batches

    def _cut(self, n_tokens: int, piece: Piece, output: bool) -> list[tuple[Graph, Cut]]:
        """The graphs of a chunk, one per micro-batch, and how each is cut."""
        before = "" if output else FINAL_NORM
        return [(graph, graph.cut(piece, before)) for graph in self._graphs(n_tokens, piece.ends)]

    def _survey(self, n_tokens: int, ends: bool) -> list[Graph]:
        """The graphs of a chunk, in which nothing is computed."""
        self._session.memory()
        graphs = []
        for part, start in self._parts(np.zeros(n_tokens, np.int32)):
            tap = SurveyTap()
            self._decode(part, start, ends, tap)
            self._weights.put(tap.weights)
            graphs.append(Graph(tap.nodes, self._nodes.stream))
        return graphs

    def _parts(self, tokens: Tokens) -> Iterator[tuple[Tokens, int]]:
        """The micro-batches of a chunk, and where each begins."""
        if len(tokens) > self._session.n_ctx:
            raise EngineError(f"a chunk of {len(tokens)} tokens does not fit -c {self._session.n_ctx}; raise -c")
        for start in range(0, len(tokens), self._session.n_batch):
            yield tokens[start : start + self._session.n_batch], start

    def _decode(self, part: Tokens, start: int, ends: bool, tap: PieceTap | SurveyTap) -> None:
        """One micro-batch; only what ends the model has logits, and these for all tokens: their memory is large."""
        positions = np.arange(start, start + len(part))
        outputs = np.full(len(part), ends)
        outputs[-1] = True
        try:
            self._session.decode(part, positions, 0, outputs, tap)
        finally:
            tap.restore()
