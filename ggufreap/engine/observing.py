"""Everything that one pass records, as one tap; and what it changes on the way."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from ggufreap.architecture.nodes import FINAL_NORM, LAST_STREAM, RoutingNodes
from ggufreap.engine.importance import ImportanceSums
from ggufreap.engine.importance_tap import ImportanceTap
from ggufreap.engine.native import TensorReader
from ggufreap.engine.neuron_tap import NeuronTap
from ggufreap.engine.observables import ACTIVATIONS
from ggufreap.engine.protocol import Keep, RoutedBatch
from ggufreap.engine.taps import MaskTap, RoutingTap, StopTap, Tap, Together
from ggufreap.errors import EngineError


@dataclass(frozen=True)
class Wanted:
    """What a pass is to tell.

    `importance`: the sums to which all squared inputs are added; `observables`: what batches hold beside ids and
    weights; `keep`: experts outside it are masked; `blocks`: those of which it is told, None: all of them.
    """

    importance: ImportanceSums | None = None
    observables: Collection[str] = ()
    keep: Keep | None = None
    blocks: Collection[int] | None = None


class Observing(Together):
    """Records what is `wanted`; with `stop` the graph ends where nothing more is."""

    def __init__(
        self, nodes: RoutingNodes, reader: TensorReader, wanted: Wanted, streamless: set[int], stop: bool
    ) -> None:
        blocks = tuple(each for each in nodes.blocks if wanted.blocks is None or each.index in wanted.blocks)
        importance, named = wanted.importance, [name for name in wanted.observables if name != ACTIVATIONS]
        routed = replace(nodes, blocks=blocks)
        self._routing = RoutingTap(routed, reader, named, streamless, stop=stop and importance is None)
        if blocks[-1:] != nodes.blocks[-1:]:  # that node is the stream of the last block alone
            self._routing.handlers.pop(LAST_STREAM.encode(), None)
        self._neurons = None
        taps: list[Tap] = [self._routing]
        if ACTIVATIONS in wanted.observables:
            self._neurons = NeuronTap(reader, [block.index for block in blocks])
            taps.append(self._neurons)
        if importance is not None:
            taps.append(ImportanceTap(importance, reader))
            if stop and not importance.output:
                taps.append(StopTap(FINAL_NORM))
        if wanted.keep is not None:
            taps.append(MaskTap(nodes, wanted.keep, reader))
        super().__init__(taps)

    @property
    def batches(self) -> Sequence[RoutedBatch]:
        """Of all graphs so far, in order of micro-batches, then blocks."""
        batches = self._routing.batches
        if self._neurons is None:
            return batches
        activations = self._neurons.activations
        if len(activations) != len(batches):
            raise EngineError(
                f"{len(batches)} blocks were routed and {len(activations)} multiplied with ffn_down_exps; "
                "this llama.cpp builds them in another way than ggufreap knows"
            )
        return [
            replace(batch, observed={**batch.observed, ACTIVATIONS: values})
            for batch, values in zip(batches, activations, strict=True)
        ]
