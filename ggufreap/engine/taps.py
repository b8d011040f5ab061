"""What happens inside the eval callback: watching the routing, or masking experts.

A tap names the nodes it wants and is called with each of them as soon as it is computed. ggml reuses the memory of
dead tensors (ggml/src/ggml-alloc.c), so whatever is needed is taken at once.
"""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ggufreap.architecture.nodes import LAST_STREAM, SELECTION, TOPK, WEIGHTED, RoutedBlock, RoutingNodes
from ggufreap.engine.native import TensorReader, name_at, origin_at, tensor_at
from ggufreap.engine.observables import (
    CONTRIBUTIONS,
    NORMS,
    OF_OUTPUTS,
    OF_WEIGHTED,
    STREAM_NORMS,
    Float32s,
    measured,
    stream_norms,
)
from ggufreap.engine.protocol import Keep, RoutedBatch
from ggufreap.errors import EngineError, NumericFailure

_LOG = logging.getLogger(__name__)
# Called with the node's address; False ends the graph there (ggml-backend.cpp, compute_splits), which is legal once
# nothing more is wanted.
NodeHandler = Callable[[int], bool]


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
    """Collects a RoutedBatch per MoE block and micro-batch, with those `observables` and no other.

    With `stop` the graph ends at the last node that is wanted. Blocks whose graph names no node of the residual stream
    are added to `streamless`; of the first it is said.
    """

    def __init__(
        self,
        nodes: RoutingNodes,
        reader: TensorReader,
        observables: Collection[str] = (),
        streamless: set[int] | None = None,
        stop: bool = True,
    ) -> None:
        super().__init__()
        self.streamless = set() if streamless is None else streamless
        self._batches: list[RoutedBatch] = []
        self._watches: list[_BlockWatch] = []
        for block in nodes.blocks:
            last = stop and block == nodes.blocks[-1]
            watch = _BlockWatch(block, reader, nodes, observables, last)
            self._watches.append(watch)
            self.handlers[_node(TOPK, block.index)] = watch.topk
            self.handlers[_node(WEIGHTED, block.index)] = watch.weighted
            self.handlers |= {_node(name, block.index): watch.output for name in block.outputs}
            if watch.streams:
                self.handlers |= {_node(name, block.index): watch.stream for name in nodes.stream}
        if self._watches and self._watches[-1].streams:
            self.handlers[LAST_STREAM.encode()] = self._watches[-1].last_stream

    def begin(self) -> None:
        """A new graph begins; what the one before it gave is put together."""
        for watch in self._watches:
            if (batch := watch.take()) is not None:
                self._batches.append(batch)
                if watch.streams and not watch.found_stream:
                    self._tell(batch.block)

    @property
    def batches(self) -> list[RoutedBatch]:
        """Of all graphs so far, in order of micro-batches, then blocks."""
        self.begin()
        return self._batches

    def _tell(self, block: int) -> None:
        if not self.streamless:
            _LOG.warning(
                "block %d: its graph names no node of the residual stream, so its tokens all weigh the same where they "
                "should weigh by their ‖s‖",
                block,
            )
        self.streamless.add(block)


class _BlockWatch:
    """Puts together what the nodes of one block tell, in whichever order they come."""

    def __init__(
        self, block: RoutedBlock, reader: TensorReader, nodes: RoutingNodes, observables: Collection[str], last: bool
    ) -> None:
        self.block, self.reader, self.weighted_input = block, reader, nodes.weighted_input
        self.observables = frozenset(observables)
        self.streams = nodes.stream if STREAM_NORMS in self.observables else ()
        self.last = last
        needed = self.observables | ({NORMS} if CONTRIBUTIONS in self.observables else set())
        self.of_outputs = {name: row for name, row in OF_OUTPUTS.items() if name in needed}
        self.of_weighted = {name: row for name, row in OF_WEIGHTED.items() if name in needed}
        self.experts = np.empty((0, 0), np.intp)
        self.weights = np.empty((0, 0), np.float32)
        self.observed: dict[str, Float32s] = {}
        self.shape = (0, 0)
        self.output_name = b""
        self.parts: list[Float32s] = []
        self.stream_norms: Float32s | None = None
        self.found_stream = self.finished = False

    def topk(self, pointer: int) -> bool:
        # A strided view of the whole argsort, one row of n_expert ids per token (ggml.c, ggml_argsort_top_k).
        self.experts = self.reader.read(pointer)[0, 0].astype(np.intp)
        return True

    def output(self, pointer: int) -> bool:
        self.output_name = name_at(pointer)
        _, n_used, n_tokens, _ = tensor_at(pointer).ne
        self.shape = n_tokens, n_used
        measures = self.of_outputs | (self.of_weighted if self.weighted_input else {})
        self.observed = measured(self.reader.read(pointer)[0], measures) if measures else {}
        return self._finish() if self.weighted_input else True

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
        if self.of_weighted:  # of the product itself, which may lie where the outputs were
            self.observed |= measured(self.reader.read(pointer)[0], self.of_weighted)
        return self._finish()

    def stream(self, pointer: int) -> bool:
        values = self.reader.read(pointer)
        if len(self.streams) > 1:  # the first of them come before the experts are known
            self.parts.append(values.copy())
        else:
            self.stream_norms = stream_norms([values], self.shape[0])
        return not (self.last and self.finished and name_at(pointer).startswith(self.streams[-1].encode()))

    def last_stream(self, pointer: int) -> bool:
        """What comes under the other name of the last block's stream, unless that has come under its own."""
        if self.stream_norms is None and not self.parts:
            self.stream_norms = stream_norms([self.reader.read(pointer)], self.shape[0])
        return not self.last

    def take(self) -> RoutedBatch | None:
        """What the graph told of this block, once."""
        if not self.finished:
            return None
        observed = dict(self.observed)
        if self.streams:
            norms = stream_norms(self.parts, self.shape[0]) if self.parts else self.stream_norms
            self.found_stream = norms is not None
            observed[STREAM_NORMS] = np.ones(self.shape[0], np.float32) if norms is None else norms
            self._check(observed[STREAM_NORMS])
        self.parts, self.stream_norms, self.finished = [], None, False
        observed = {name: observed[name] for name in sorted(self.observables)}
        return RoutedBatch(self.block.index, self.experts, self.weights, observed)

    def _finish(self) -> bool:
        shapes = {self.experts.shape, self.weights.shape, self.shape}
        expected = (self.shape[0], self.block.n_used)
        if shapes != {expected}:
            raise EngineError(f"block {self.block.index}: routing has shapes {sorted(shapes)}, expected {expected}")
        for values in (self.weights, *self.observed.values()):
            self._check(values)
        if CONTRIBUTIONS in self.observables:
            norms = self.observed[NORMS]
            self.observed[CONTRIBUTIONS] = norms if self.weighted_input else self.weights * norms
        self.finished = True
        return not self.last or bool(self.streams)

    def _check(self, values: Float32s) -> None:
        if not np.isfinite(values).all():
            token, *place = np.argwhere(~np.isfinite(values))[0]
            of_expert = values.shape == (self.shape[0], self.block.n_used)
            expert = f", expert {self.experts[token, place[0]]}" if of_expert else ""
            raise not_finite(f"block {self.block.index}{expert}")


def check_rows(batches: Sequence[RoutedBatch], n_tokens: int) -> None:
    """Raise EngineError unless every block told of all tokens of the texts that were to run in one graph."""
    found = Counter[int]()
    for batch in batches:
        found[batch.block] += len(batch.experts)
    for block, count in found.items():
        if count != n_tokens:
            raise EngineError(
                f"block {block} told of {count} tokens of {n_tokens}: llama.cpp does not run several chunks of this "
                "model in one graph; use -np 1"
            )


def not_finite(where: str) -> NumericFailure:
    """What is wrong with a model that computes NaN."""
    return NumericFailure(
        f"{where}: an activation is NaN or infinite; the model file is damaged or overflows in this precision, "
        "try another quantisation of it"
    )


class MaskTap(_NamedTap):
    """Virtual pruning: -inf for every expert outside a keep-set, so that the rest of the graph is the pruned model.

    `keeps`: of every text of a graph that holds as many tokens of each, text by text; None keeps everything.
    """

    def __init__(self, nodes: RoutingNodes, keeps: Sequence[Keep | None], reader: TensorReader) -> None:
        super().__init__()
        everything = np.arange(nodes.n_expert)
        for block in sorted({block for keep in keeps if keep for block in keep}):
            kept = [everything if keep is None else np.asarray(keep.get(block, everything)) for keep in keeps]
            dropped = [np.setdiff1d(everything, experts) for experts in kept]
            if any(experts.size for experts in dropped):  # what keeps everything runs the very graph of the original
                self.handlers |= {_node(name, block): self._masker(reader, dropped) for name in SELECTION}

    @staticmethod
    def _masker(reader: TensorReader, dropped: Sequence[npt.NDArray[np.intp]]) -> NodeHandler:
        def mask(pointer: int) -> bool:
            reader.fill(pointer, dropped, -np.inf)
            return True

        return mask
