"""What happens inside the eval callback when a graph is computed in pieces.

A node whose COMPUTE flag is taken away before its turn is passed over by every backend (ggml-cpu.c,
ggml_graph_compute_thread). The graph itself stays whole: memory, inputs and layout are those of the whole model.
"""

from collections.abc import Sequence
from math import prod
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from ggufreap.engine.graph import Cut, Graph, Node
from ggufreap.engine.native import (
    TensorReader,
    is_computed,
    is_view_op,
    name_at,
    op_at,
    origin_at,
    set_computed,
    tensor_at,
)
from ggufreap.engine.taps import NodeHandler, Tap
from ggufreap.errors import EngineError

OF_BLOCK = b"blk."


class _Skipping:
    """Takes nodes out of the graph, and puts them back: llama.cpp may use the same graph for the next micro-batch."""

    def __init__(self) -> None:
        self._skipped: list[int] = []

    def skip(self, pointer: int) -> None:
        """Pass a node over."""
        if is_computed(pointer):
            self._skipped.append(pointer)
            set_computed(pointer, False)

    def restore(self) -> None:
        """Leave the graph as it was."""
        for pointer in self._skipped:
            set_computed(pointer, True)
        self._skipped.clear()


class SurveyTap(_Skipping):
    """Learns the graph and computes nothing of it; `weights`: name -> address of the data, of all that it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.weights: dict[str, int] = {}
        self._numbers: dict[int, int] = {}
        self._named: dict[bytes, int] = {}

    def begin(self) -> None:
        """A new graph begins."""
        self.nodes, self._numbers, self._named = [], {}, {}

    def handler_of(self, pointer: int) -> NodeHandler | None:
        """None: no node is wanted."""
        tensor, name = tensor_at(pointer), name_at(pointer)
        inputs = [source for source in (*tensor.src, tensor.view_src) if source]
        sources, memory, weighted = set(), set(), False
        for source in inputs:
            number = self._numbers.get(source, self._named.get(origin_at(source)) if b"#" in name_at(source) else None)
            if number is not None:
                sources.add(number)
            base = tensor_at(source).view_src or source
            if base not in self._numbers:
                memory.add(base)
                leaf = name_at(base)
                weighted |= leaf.startswith(OF_BLOCK)
                self.weights[leaf.decode()] = tensor_at(base).data or 0
        base = tensor.view_src or 0
        writes = base if base and base not in self._numbers and not is_view_op(op_at(pointer)) else 0
        number, nbytes = len(self.nodes), 4 * prod(tensor.ne)  # F32 or I32, as all that is carried
        self._numbers[pointer] = self._named[name] = number
        self.nodes.append(Node(name.decode(), tuple(sorted(sources)), tuple(sorted(memory)), writes, weighted, nbytes))
        self.skip(pointer)
        return None


class PieceTap(_Skipping):
    """Computes one `cut` of a surveyed graph: what is given is read from `source`, what is kept goes to `sink`.

    `inner` sees the nodes that are computed.
    """

    def __init__(
        self, graph: Graph, cut: Cut, inner: Tap, reader: TensorReader, source: BinaryIO | None, sink: BinaryIO | None
    ) -> None:
        super().__init__()
        self._graph, self._cut, self._inner, self._reader = graph, cut, inner, reader
        self._source, self._sink = source, sink
        self._given, self._kept = frozenset(cut.given), frozenset(cut.kept)
        self._next = 0

    def begin(self) -> None:
        """The graph begins."""
        self._next = 0
        self._inner.begin()

    def handler_of(self, pointer: int) -> NodeHandler | None:
        """Decides whether the node is computed, and what to do with it then."""
        index, self._next = self._next, self._next + 1
        nodes = self._graph.nodes
        if index >= len(nodes) or name_at(pointer).decode() != nodes[index].name:
            raise EngineError(
                f"llama.cpp built node {index} of the graph otherwise than before, so it cannot be computed block by "
                "block; use --blockwise off"
            )
        computed = index in self._cut.computed
        if not computed:
            self.skip(pointer)
        handlers: list[NodeHandler] = []
        if index in self._given:
            handlers.append(self._give)
        if computed and (inner := self._inner.handler_of(pointer)) is not None:
            handlers.append(inner)
        if index in self._kept:
            handlers.append(self._keep)
        return _all_of(handlers) if handlers else None

    def _give(self, pointer: int) -> bool:
        assert self._source is not None  # only the first piece has none, and nothing is given to it
        values = self._reader.read(pointer)
        stored = np.fromfile(self._source, values.dtype, values.size)
        if stored.size != values.size:
            raise EngineError(f"{self._source.name} ends too early; delete it, and calibrate again")
        self._reader.write(pointer, stored.reshape(values.shape))
        return True

    def _keep(self, pointer: int) -> bool:
        if self._sink is not None:
            self._sink.write(_contiguous(self._reader.read(pointer)).data)
        return True


def _contiguous(values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    return np.ascontiguousarray(values)


def _all_of(handlers: Sequence[NodeHandler]) -> NodeHandler:
    """All of them, and the graph goes on: what is not wanted of it is passed over."""

    def handle(pointer: int) -> bool:
        for handler in handlers:
            handler(pointer)
        return True

    return handle
