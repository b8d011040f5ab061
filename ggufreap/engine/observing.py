"""Everything that one pass records, as one tap; and what it changes on the way."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from ggufreap.architecture.nodes import FINAL_NORM, LAST_STREAM, RoutingNodes
from ggufreap.engine.importance import ImportanceSums
from ggufreap.engine.importance_tap import ImportanceTap
from ggufreap.engine.native import TensorReader
from ggufreap.engine.neuron_mask import Fewer, narrowing_taps
from ggufreap.engine.neuron_tap import NeuronTap
from ggufreap.engine.observables import ACTIVATIONS, STREAM, Float32s
from ggufreap.engine.protocol import Keep, RoutedBatch
from ggufreap.engine.stream_tap import StreamTap
from ggufreap.engine.taps import MaskTap, RoutingTap, StopTap, Tap, Together
from ggufreap.errors import EngineError


@dataclass(frozen=True)
class Wanted:
    """What a pass is to tell.

    `importance`: the sums to which all squared inputs are added; `observables`: what batches hold beside ids and
    weights; `keep`: experts outside it are masked; `blocks`: those of which it is told, None: all of them; `narrowed`:
    block -> its experts with fewer neurons, as which it is run.
    """

    importance: ImportanceSums | None = None
    observables: Collection[str] = ()
    keep: Keep | None = None
    blocks: Collection[int] | None = None
    narrowed: Fewer = field(default_factory=dict)


class Observing(Together):
    """Records what is `wanted`; with `stop` the graph ends where nothing more is."""

    def __init__(
        self, nodes: RoutingNodes, reader: TensorReader, wanted: Wanted, streamless: set[int], stop: bool
    ) -> None:
        blocks = tuple(each for each in nodes.blocks if wanted.blocks is None or each.index in wanted.blocks)
        importance, asked = wanted.importance, wanted.observables
        named = [name for name in asked if name not in (ACTIVATIONS, STREAM)]
        routed = replace(nodes, blocks=blocks)
        self._routing = RoutingTap(routed, reader, named, streamless, stop=stop and importance is None)
        if blocks[-1:] != nodes.blocks[-1:]:  # that node is the stream of the last block alone
            self._routing.handlers.pop(LAST_STREAM.encode(), None)
        indices = [block.index for block in blocks]
        self._more: dict[str, NeuronTap | StreamTap] = {}
        if ACTIVATIONS in asked:
            self._more[ACTIVATIONS] = NeuronTap(reader, indices)
        if STREAM in asked:
            self._more[STREAM] = StreamTap(reader, nodes, indices)
        taps: list[Tap] = [*narrowing_taps(nodes.n_expert, reader, wanted.narrowed), *self._more.values()]
        taps.append(self._routing)
        if importance is not None:
            taps.append(ImportanceTap(importance, reader))
            if stop and not importance.output:
                taps.append(StopTap(FINAL_NORM))
        if wanted.keep is not None:
            taps.append(MaskTap(nodes, [wanted.keep], reader))
        super().__init__(taps)

    @property
    def batches(self) -> Sequence[RoutedBatch]:
        """Of all graphs so far, in order of micro-batches, then blocks."""
        batches = self._routing.batches
        for name, tap in self._more.items():
            if len(tap.values) != len(batches):
                raise EngineError(
                    f"{len(batches)} blocks were routed and {len(tap.values)} had {name} of the usual kind; this "
                    "architecture builds them in another way than ggufreap knows"
                )
            batches = _with(batches, name, tap.values)
        return batches


def _with(batches: Sequence[RoutedBatch], name: str, values: Sequence[Float32s]) -> list[RoutedBatch]:
    return [
        replace(batch, observed={**batch.observed, name: each}) for batch, each in zip(batches, values, strict=True)
    ]
