"""The residual stream behind blocks, recorded."""

from collections.abc import Collection

from ggufreap.architecture.nodes import RoutingNodes
from ggufreap.engine.native import TensorReader, name_at
from ggufreap.engine.observables import Float32s
from ggufreap.engine.taps import NodeHandler


class StreamTap:
    """Records s `[n_tokens, n_embd]` behind `blocks`, per graph; nothing where a model has several streams."""

    def __init__(self, reader: TensorReader, nodes: RoutingNodes, blocks: Collection[int]) -> None:
        self._reader = reader
        self._graphs: list[dict[int, Float32s]] = []
        self._blocks = {f"{name}-{block}".encode(): block for name in nodes.stream for block in blocks}
        self._single = len(nodes.stream) == 1

    def begin(self) -> None:
        """A new graph begins."""
        self._graphs.append({})

    def handler_of(self, pointer: int) -> NodeHandler | None:
        """What to do with the stream behind one of the blocks."""
        block = self._blocks.get(name_at(pointer)) if self._single else None
        if block is None:
            return None

        def record(node: int) -> bool:
            values = self._reader.read(node)
            if values.shape[:2] == (1, 1):
                self._graphs[-1][block] = values[0, 0].copy()
            return True

        return record

    @property
    def values(self) -> list[Float32s]:
        """Of all graphs so far, in order of micro-batches, then blocks, as RoutingTap.batches."""
        return [graph[block] for graph in self._graphs for block in sorted(graph)]
