"""What every block computes on one micro-batch, recorded; and the residual stream of another run put in its place.

With the stream given, every block works on inputs that are not its own model's: an error is then that of one block,
however deep the model is.
"""

import re
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ggufreap.architecture.nodes import LOGITS, PROBS, PROBS_BIASED, TOPK, WEIGHTED, RoutedBlock, RoutingNodes
from ggufreap.engine.native import TensorReader, name_at, tensor_at
from ggufreap.engine.protocol import Keep
from ggufreap.engine.taps import NodeHandler
from ggufreap.errors import EngineError

Floats = npt.NDArray[np.float32]
Recorded = Mapping[str, npt.NDArray[np.float32] | npt.NDArray[np.int32]]


class BlockTap:
    """Fills `arrays`: `<what>-<block>` -> an array of one row per token.

    In every routed block: `logits` and `scores` `[n_tokens, n_kept]` (what the router computes and what it chooses by),
    `experts` `[n_tokens, n_used]`, `weights` of the same shape, `output` `[n_tokens, n_embd]` (the weighted sum of the
    experts); in every block the nodes of the residual stream, `[n_tokens, ...]`. With `keep` experts are numbered by
    their place in it, as the pruned file numbers them. `given` holds streams by their nodes, written over the computed
    ones once these are recorded.
    """

    def __init__(
        self, nodes: RoutingNodes, reader: TensorReader, keep: Keep | None = None, given: Recorded | None = None
    ) -> None:
        self.arrays: dict[str, npt.NDArray[np.float32] | npt.NDArray[np.int32]] = {}
        self._reader, self._given = reader, given
        self._stream = re.compile(rf"({'|'.join(nodes.stream)})-\d+".encode())
        self._handlers: dict[bytes, NodeHandler] = {}
        for block in nodes.blocks:
            kept = np.arange(nodes.n_expert) if keep is None else np.asarray(keep[block.index])
            self._watch(nodes, block, kept)

    def begin(self) -> None:
        """Rows are recorded for one micro-batch: every node comes once."""
        self.arrays.clear()

    def handler_of(self, pointer: int) -> NodeHandler | None:
        """What to do with a node once it is computed, or None."""
        name = name_at(pointer)
        if (handler := self._handlers.get(name)) is not None:
            return handler
        if self._stream.fullmatch(name):
            return lambda node: self._replace(name.decode(), node)
        return None

    def _watch(self, nodes: RoutingNodes, block: RoutedBlock, kept: npt.NDArray[np.intp]) -> None:
        """The handlers of a routed block."""
        index, reader = block.index, self._reader
        place = np.full(nodes.n_expert, -1, np.int32)
        place[kept] = np.arange(len(kept))

        def row(what: str) -> NodeHandler:
            return lambda node: self._record(f"{what}-{index}", reader.read(node)[0, 0][:, kept])

        def experts(node: int) -> bool:
            return self._record(f"experts-{index}", place[reader.read(node)[0, 0]])

        def weighted(node: int) -> bool:
            weights = reader.read(tensor_at(node).src[1])[0, :, :, 0].copy()
            self._record(f"weights-{index}", weights)
            return True if nodes.weighted_input else output(node)

        def output(node: int) -> bool:
            # Summed here: the order of the chosen experts, and with it llama.cpp's order of adding, may differ.
            return self._record(f"output-{index}", reader.read(node)[0].sum(axis=1, dtype=np.float64))

        # Of the nodes that exist, the last one computed is what the choice is made by; but see build_moe_ffn: llama4
        # chooses by the logits.
        choosing = () if nodes.weighted_input else (PROBS, PROBS_BIASED)
        watched = {LOGITS: row("logits"), TOPK: experts, WEIGHTED: weighted}
        watched |= {name: row("scores") for name in choosing}
        if nodes.weighted_input:
            watched |= dict.fromkeys(block.outputs, output)
        self._handlers |= {f"{name}-{index}".encode(): handler for name, handler in watched.items()}

    def _record(self, key: str, values: npt.NDArray[np.generic]) -> bool:
        if key in self.arrays and not key.startswith("scores"):
            raise EngineError(f"node {key} came twice: the chunk must be one micro-batch, and its graph one this knows")
        if values.dtype == np.int32:
            self.arrays[key] = values.astype(np.int32)  # a copy: ggml reuses the memory
        else:
            self.arrays[key] = values.astype(np.float32)
        return True

    def _replace(self, key: str, pointer: int) -> bool:
        values = self._reader.read(pointer)
        self._record(key, values.reshape(-1, *values.shape[-2:]) if values.shape[1] > 1 else values[0, 0])
        if self._given is not None:
            self._reader.write(pointer, self._given[key].reshape(values.shape))
        return True


class NudgeTap:
    """Changes the last bit of the residual stream behind the first block, and nothing else.

    What comes out at the end is as far from the undisturbed as any other order of adding would bring it.
    """

    def __init__(self, nodes: RoutingNodes, reader: TensorReader) -> None:
        self._name, self._reader = f"{nodes.stream[0]}-0".encode(), reader

    def begin(self) -> None:
        """Nothing is remembered."""

    def handler_of(self, pointer: int) -> NodeHandler | None:
        """The first stream node alone."""
        return self._nudge if name_at(pointer) == self._name else None

    def _nudge(self, pointer: int) -> bool:
        self._reader.write(pointer, np.nextafter(self._reader.read(pointer), np.float32(np.inf)))
        return True
