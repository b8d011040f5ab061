"""Neurons of experts masked: zero where the down matrix reads them, in llama.cpp's own arithmetic."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ggufreap.architecture.nodes import ACTIVATIONS, TOPK
from ggufreap.engine.native import TensorReader, name_at, origin_at, tensor_at
from ggufreap.engine.neuron_tap import DownTap, FewerNeurons, NarrowTap
from ggufreap.engine.taps import NodeHandler, Tap
from ggufreap.errors import EngineError

Fewer = Mapping[int, FewerNeurons]  # block -> its experts that stay, with fewer neurons


class NeuronMaskTap(DownTap):
    """Puts zeros in place of the neurons that do not stay, as soon as they are computed."""

    def __init__(self, n_expert: int, reader: TensorReader, narrowed: Fewer) -> None:
        super().__init__(reader, narrowed)
        self._n_expert, self._narrowed = n_expert, narrowed
        self._chosen: dict[int, npt.NDArray[np.intp]] = {}
        self._masked: set[bytes] = set()
        self._handlers: dict[bytes, NodeHandler] = {}
        for block in narrowed:
            self._handlers[f"{TOPK}-{block}".encode()] = self._chooser(block)
            self._handlers |= {f"{name}-{block}".encode(): self._masker(block) for name in ACTIVATIONS}

    def begin(self) -> None:
        """A new graph begins."""
        self._masked.clear()

    def handler_of(self, pointer: int) -> NodeHandler | None:
        """What to do with the chosen experts, the activations, and the products with down."""
        return self._handlers.get(name_at(pointer)) or super().handler_of(pointer)

    def _chooser(self, block: int) -> NodeHandler:
        def choose(pointer: int) -> bool:
            self._chosen[block] = self._reader.read(pointer)[0, 0].astype(np.intp)
            return True

        return choose

    def _masker(self, block: int) -> NodeHandler:
        def mask(pointer: int) -> bool:
            values = self._reader.read(pointer)
            stays = self._narrowed[block].stays(self._n_expert, values.shape[-1])[self._chosen[block]]
            self._reader.write(pointer, np.where(stays, values[0], np.float32(0)))
            self._masked.add(name_at(pointer))
            return True

        return mask

    def _handler(self, block: int) -> NodeHandler:
        def check(pointer: int) -> bool:
            read = origin_at(tensor_at(pointer).src[1])
            if read not in self._masked:
                raise EngineError(
                    f"block {block}: ffn_down_exps multiplies {read.decode()}, which is no activation by its name; "
                    "this llama.cpp builds the block in another way than ggufreap knows"
                )
            return True

        return check


def narrowing_taps(n_expert: int, reader: TensorReader, narrowed: Fewer) -> tuple[Tap, ...]:
    """What makes experts narrower in the loaded model, each block by its kind: with other columns of down, or masked.

    The experts that do not stay are not masked by this.
    """
    whole = {block: each for block, each in narrowed.items() if each.downs is None}
    fitted = {block: each for block, each in narrowed.items() if each.downs is not None}
    taps: list[Tap] = [NeuronMaskTap(n_expert, reader, whole)] if whole else []
    return (*taps, NarrowTap(reader, fitted)) if fitted else tuple(taps)
