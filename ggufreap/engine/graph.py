"""A model's graph as values, and how it is cut into pieces that can be computed one at a time.

What a piece needs of earlier ones is carried to it where the weights of a block went into it; everything else (the
embedding, masks, positions) is cheap and computed again. So nothing has to be known of an architecture but the node
that ends a block, and no file but the model's own is needed.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ggufreap.errors import EngineError


@dataclass(frozen=True)
class Node:
    """One node in the order of computing.

    `sources`: the earlier nodes that it reads; `memory`: what outlives the graph (a KV cache, a recurrent state) and is
    read or written, by address; `writes`: which of that it changes, 0 for none; `weighted`: reads a weight of a block;
    `nbytes`: of its values.
    """

    name: str
    sources: tuple[int, ...]
    memory: tuple[int, ...]
    writes: int
    weighted: bool
    nbytes: int


@dataclass(frozen=True)
class Piece:
    """The blocks `first` to `last` of the graph, and with `ends` what comes after them."""

    first: int
    last: int
    ends: bool

    @property
    def blocks(self) -> range:
        """Their numbers."""
        return range(self.first, self.last + 1)

    def __str__(self) -> str:
        return f"block {self.first}" if self.first == self.last else f"blocks {self.first} to {self.last}"


@dataclass(frozen=True)
class Cut:
    """What computing one piece means: nodes to compute, to write before anything reads them, and to keep for later."""

    computed: frozenset[int]
    given: tuple[int, ...]
    kept: tuple[int, ...]


class Graph:
    """The nodes of one micro-batch's graph, in order; `stream` names those that end a block (RoutingNodes.stream)."""

    def __init__(self, nodes: Sequence[Node], stream: Sequence[str]) -> None:
        self.nodes = nodes
        self._end_of = _block_ends(nodes, stream)
        self._of_blocks: list[bool] = []  # whether a block's weights went into a node
        writers: dict[int, list[int]] = {}
        for index, node in enumerate(nodes):
            self._of_blocks.append(node.weighted or any(self._of_blocks[source] for source in node.sources))
            if node.writes:
                writers.setdefault(node.writes, []).append(index)
        self._writers = writers

    @property
    def n_blocks(self) -> int:
        """The blocks that are computed."""
        return len(self._end_of)

    def ends(self) -> list[int]:
        """The blocks after which the graph can be cut: no later one reads the memory of an earlier one."""
        spans = []
        for memory in self._writers:
            touching = [i for i, node in enumerate(self.nodes) if memory in node.memory and self._of_blocks[i]]
            spans.append((min(touching, default=0), max(touching, default=0)))
        return [
            block
            for block, end in enumerate(self._end_of)
            if block == self.n_blocks - 1 or not any(first <= end < last for first, last in spans)
        ]

    def cut(self, piece: Piece, before: str) -> Cut:
        """How to compute a piece; the last one ends before the first node of the name `before`, if there is one."""
        start = self._end_of[piece.first - 1] + 1 if piece.first else 0
        stop = len(self.nodes) if piece.ends else self._end_of[piece.last] + 1
        names = [node.name for node in self.nodes]
        if piece.ends and before in names:
            stop = names.index(before)
        computed: set[int] = set()
        given: set[int] = set()
        wanted = list(range(start, stop))
        while wanted:
            index = wanted.pop()
            if index in computed or index in given:
                continue
            if index < start and self._of_blocks[index]:
                given.add(index)
                continue
            computed.add(index)
            node = self.nodes[index]
            wanted += node.sources
            for memory in node.memory:  # such as the state that is set to zero before the block that owns it
                wanted += [writer for writer in self._writers.get(memory, ()) if not self._of_blocks[writer]]
        kept = () if piece.ends else self._live_after(stop)
        return Cut(frozenset(computed), tuple(sorted(given)), kept)

    def _live_after(self, stop: int) -> tuple[int, ...]:
        """What was computed of blocks before `stop` and is read behind it."""
        read = {source for node in self.nodes[stop:] for source in node.sources if source < stop}
        return tuple(sorted(source for source in read if self._of_blocks[source]))


def _block_ends(nodes: Sequence[Node], stream: Sequence[str]) -> list[int]:
    """Block -> its last node of the residual stream."""
    pattern = re.compile(rf"(?:{'|'.join(map(re.escape, stream))})-(\d+)")
    index_of: dict[int, int] = {}
    for index, node in enumerate(nodes):
        if match := pattern.fullmatch(node.name):
            index_of[int(match[1])] = index
    ends = [index_of[block] for block in sorted(index_of)]
    if sorted(index_of) != list(range(len(index_of))) or not index_of or ends != sorted(ends):
        raise EngineError(
            f"the graph has no node {' or '.join(stream)} at the end of every block, so it cannot be computed block by "
            "block; use --blockwise off"
        )
    return ends
