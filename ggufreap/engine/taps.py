"""What happens inside the eval callback: watching the routing, or masking experts.

A tap names the nodes it wants and is called with each of them as soon as it is computed. ggml reuses the memory of
dead tensors (ggml/src/ggml-alloc.c), so whatever is needed is taken at once.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ggufreap.architecture.nodes import SELECTION, TOPK, WEIGHTED, RoutedBlock, RoutingNodes
from ggufreap.engine.native import TensorReader, name_at, origin_at, tensor_at
from ggufreap.engine.protocol import Keep, RoutedBatch
from ggufreap.errors import EngineError, NumericFailure

# Called with the node's address; False ends the graph there (ggml-backend.cpp, compute_splits), which is legal once
# nothing more is wanted.
NodeHandler = Callable[[int], bool]

PIECE_NBYTES = 512 << 10  # of expert outputs: half of a usual L2 cache


class Tap(Protocol):
    """Decides node by node."""

    def begin(self) -> None:
        """A new graph begins; addresses of earlier nodes mean nothing any more."""

    def handler_of(self, pointer: int) -> NodeHandler | None:
        """What to do with a node once it is computed, or None."""


class _NamedTap:
    """Wants nodes by their names."""

    def __init__(self) -> None:
        self.handlers: dict[bytes, NodeHandler] = {}

    def begin(self) -> None:
        pass

    def handler_of(self, pointer: int) -> NodeHandler | None:
        return self.handlers.get(name_at(pointer))


def _node(name: str, block: int) -> bytes:
    return f"{name}-{block}".encode()


class StopTap(_NamedTap):
    """Ends the graph at a node."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.handlers[name.encode()] = lambda _pointer: False


class Together:
    """Several taps on one graph, which ends as soon as one of them ends it."""

    def __init__(self, taps: Sequence[Tap]) -> None:
        self.taps = taps

    def begin(self) -> None:
        """A new graph begins, for all of them."""
        for tap in self.taps:
            tap.begin()

    def handler_of(self, pointer: int) -> NodeHandler | None:
        """What all of them want to do with a node."""
        handlers = [handler for tap in self.taps if (handler := tap.handler_of(pointer)) is not None]

        def handle(node: int) -> bool:
            answers = [handler(node) for handler in handlers]
            return all(answers)

        return handle if handlers else None


class RoutingTap(_NamedTap):
    """Collects a RoutedBatch per MoE block and micro-batch; with `stop` the graph ends at the last of them."""

    def __init__(self, nodes: RoutingNodes, reader: TensorReader, stop: bool = True) -> None:
        super().__init__()
        self.batches: list[RoutedBatch] = []
        for block in nodes.blocks:
            last = stop and block == nodes.blocks[-1]
            watch = _BlockWatch(block, reader, nodes.weighted_input, last, sink=self.batches)
            self.handlers[_node(TOPK, block.index)] = watch.topk
            self.handlers[_node(WEIGHTED, block.index)] = watch.weighted
            self.handlers |= {_node(name, block.index): watch.output for name in block.outputs}


class _BlockWatch:
    """Puts together what the three nodes of one block tell, in whichever order they come."""

    def __init__(
        self, block: RoutedBlock, reader: TensorReader, weighted_input: bool, last: bool, sink: list[RoutedBatch]
    ) -> None:
        self.block, self.reader, self.weighted_input, self.last, self.sink = block, reader, weighted_input, last, sink
        self.experts = np.empty((0, 0), np.int32)
        self.weights = self.norms = self.peaks = np.empty((0, 0), np.float32)
        self.output_name = b""

    def topk(self, pointer: int) -> bool:
        # A strided view of the whole argsort, one row of n_expert ids per token (ggml.c, ggml_argsort_top_k).
        self.experts = self.reader.read(pointer)[0, 0].copy()
        return True

    def output(self, pointer: int) -> bool:
        outputs = self.reader.read(pointer)[0]
        self.output_name = name_at(pointer)
        self.norms, self.peaks = norms_and_peaks(outputs)
        if self.weighted_input:
            self._finish()
            return not self.last
        return True

    def weighted(self, pointer: int) -> bool:
        sources = tensor_at(pointer).src
        self.weights = self.reader.read(sources[1])[0, :, :, 0].copy()
        if self.weighted_input:
            return True
        if origin_at(sources[0]) != self.output_name:  # its address is another where a device has a copy of it
            raise EngineError(
                f"block {self.block.index}: {WEIGHTED} does not multiply the watched expert output; "
                "this llama.cpp builds the block in another way than ggufreap knows"
            )
        self._finish()
        return not self.last

    def _finish(self) -> None:
        n_tokens = len(self.norms)
        expected = (n_tokens, self.block.n_used)
        shapes = {self.experts.shape, self.weights.shape, self.norms.shape}
        if shapes != {expected}:
            raise EngineError(f"block {self.block.index}: routing has shapes {sorted(shapes)}, expected {expected}")
        if not (np.isfinite(self.norms).all() and np.isfinite(self.weights).all()):
            bad = np.argwhere(~(np.isfinite(self.norms) & np.isfinite(self.weights)))[0]
            raise not_finite(f"block {self.block.index}, expert {self.experts[tuple(bad)]}")
        contributions = self.norms if self.weighted_input else self.weights * self.norms
        self.sink.append(
            RoutedBatch(self.block.index, self.experts, self.weights, self.norms, contributions, self.peaks)
        )


def not_finite(where: str) -> NumericFailure:
    """What is wrong with a model that computes NaN."""
    return NumericFailure(
        f"{where}: an activation is NaN or infinite; the model file is damaged or overflows in this precision, "
        "try another quantisation of it"
    )


def norms_and_peaks(
    outputs: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """‖f‖₂ and max |f| of every row of `[n_tokens, n_used, n_embd]`, each `[n_tokens, n_used]`.

    Three passes over the data, so it goes in pieces that stay in a core's cache. `vecdot` (BLAS) keeps its error
    below 1e-6 where einsum does not: rows with one huge value among thousands of small ones.
    """
    norms = np.empty(outputs.shape[:2], np.float32)
    peaks = np.empty_like(norms)
    step = max(1, PIECE_NBYTES // outputs[0].nbytes)
    with np.errstate(over="ignore"):  # an infinite norm is refused with a reason
        for start in range(0, len(outputs), step):
            tokens = slice(start, start + step)
            piece = outputs[tokens]
            norms[tokens] = np.vecdot(piece, piece)
            peaks[tokens] = np.maximum(piece.max(axis=-1), -piece.min(axis=-1))
    return np.sqrt(norms), peaks


class MaskTap(_NamedTap):
    """Virtual pruning: -inf for every expert outside `keep`, so that the rest of the graph is the pruned model."""

    def __init__(self, nodes: RoutingNodes, keep: Keep, reader: TensorReader) -> None:
        super().__init__()
        for block, kept in keep.items():
            dropped = np.setdiff1d(np.arange(nodes.n_expert), np.asarray(kept))
            if dropped.size:  # what keeps everything runs the very graph of the original
                self.handlers |= {_node(name, block): self._masker(reader, dropped) for name in SELECTION}

    @staticmethod
    def _masker(reader: TensorReader, dropped: npt.NDArray[np.intp]) -> NodeHandler:
        def mask(pointer: int) -> bool:
            reader.fill(pointer, dropped, -np.inf)
            return True

        return mask
