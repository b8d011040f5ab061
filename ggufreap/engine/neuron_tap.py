"""What happens inside the eval callback with the neurons of experts: they are observed, or fewer of them are used.

The neurons of an expert are the inputs of its down matrix: the activations that `ffn_down_exps` multiplies in
MUL_MAT_ID (src/llama-graph.cpp, build_moe_ffn). The node is found by the weight it reads, since it has a name of its
own only where nothing scales its output.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ggufreap.engine.native import TensorReader, op_at, op_code, origin_at, tensor_at
from ggufreap.engine.observables import Float32s
from ggufreap.engine.taps import NodeHandler

_DOWN = re.compile(rb"blk\.(\d+)\.ffn_down_exps\.weight")


@dataclass(frozen=True)
class FewerNeurons:
    """The experts of a block that stay, `[n_keep]` ids of the loaded model, with fewer neurons each.

    `neurons` `[n_keep, width]`: which stay; `downs` `[n_keep, n_embd, width]`: what multiplies them, None for the
    columns of the loaded model.
    """

    experts: Sequence[int]
    neurons: npt.NDArray[np.integer]
    downs: Float32s | None = None

    def outputs(self, chosen: npt.NDArray[np.integer], activations: Float32s) -> Float32s:
        """`[n_tokens, n_used, n_embd]`, of the `chosen` experts `[n_tokens, n_used]` and the activations of all their
        neurons `[n_tokens, n_used, source width]`.
        """
        assert self.downs is not None  # else nothing has to be multiplied anew
        outputs = np.zeros((*chosen.shape, self.downs.shape[1]), np.float32)
        for place, expert in enumerate(self.experts):
            rows = chosen == expert
            if rows.any():
                outputs[rows] = activations[rows][:, self.neurons[place]] @ self.downs[place].T
        return outputs

    def stays(self, n_expert: int, width: int) -> npt.NDArray[np.bool_]:
        """`[n_expert, width]`: whether a neuron of a loaded expert stays; all of those of other experts do."""
        found = np.ones((n_expert, width), bool)
        found[list(self.experts)] = False
        for expert, ids in zip(self.experts, self.neurons, strict=True):
            found[expert, ids] = True
        return found


class DownTap:
    """Wants the products with down, by block."""

    def __init__(self, reader: TensorReader, blocks: Collection[int]) -> None:
        self._reader, self._blocks = reader, frozenset(blocks)
        self._matmul_id = op_code("MUL_MAT_ID")

    def begin(self) -> None:
        """A new graph begins."""

    def handler_of(self, pointer: int) -> NodeHandler | None:
        """What to do with a product with down of one of the blocks."""
        if op_at(pointer) != self._matmul_id:
            return None
        match = _DOWN.fullmatch(origin_at(tensor_at(pointer).src[0]))
        if match is None or int(match[1]) not in self._blocks:
            return None
        return self._handler(int(match[1]))

    def _handler(self, block: int) -> NodeHandler:
        raise NotImplementedError


class NeuronTap(DownTap):
    """Records the activations of the neurons of the chosen experts: block -> `[n_tokens, n_used, width]`, per graph."""

    def __init__(self, reader: TensorReader, blocks: Collection[int]) -> None:
        super().__init__(reader, blocks)
        self._graphs: list[dict[int, Float32s]] = []

    def begin(self) -> None:
        """A new graph begins."""
        self._graphs.append({})

    @property
    def values(self) -> list[Float32s]:
        """Of all graphs so far, in order of micro-batches, then blocks, as RoutingTap.batches."""
        return [graph[block] for graph in self._graphs for block in sorted(graph)]

    def _handler(self, block: int) -> NodeHandler:
        def record(pointer: int) -> bool:
            self._graphs[-1][block] = self._reader.read(tensor_at(pointer).src[1])[0].copy()
            return True

        return record


class NarrowTap(DownTap):
    """Virtual narrowing: puts what experts of fewer neurons compute in place of what the whole ones did.

    No other expert may be chosen: the router is to be masked.
    """

    def __init__(self, reader: TensorReader, narrowed: Mapping[int, FewerNeurons]) -> None:
        super().__init__(reader, narrowed)
        self._narrowed = narrowed

    def _handler(self, block: int) -> NodeHandler:
        def replace(pointer: int) -> bool:
            tensor = tensor_at(pointer)
            experts = self._reader.read(tensor.src[2])[0, 0].copy()  # a copy: all reads from a device share a buffer
            activations = self._reader.read(tensor.src[1])[0].copy()
            self._reader.write(pointer, self._narrowed[block].outputs(experts, activations))
            return True

        return replace
