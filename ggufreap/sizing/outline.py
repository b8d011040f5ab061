"""What a model cut to any number of experts of one width is, without what would be written: sizes of many counts from
one script."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from ggufreap.container import MetadataEntry, OutputTensor
from ggufreap.container.gguf_file import SPLIT_KEYS
from ggufreap.container.header import pad
from ggufreap.model import Model
from ggufreap.planning import PruningPlan
from ggufreap.quantization import QuantRequest, written_metadata
from ggufreap.quantization.forecast import ALIGNMENT, entries_nbytes, infos_nbytes
from ggufreap.rewriting import Narrow, RewriteScript
from ggufreap.rewriting.metadata import Widths, pruned_metadata
from ggufreap.rewriting.narrow import Narrower
from ggufreap.rewriting.script import blocks_that_stay
from ggufreap.sizing.sizer import of_count
from ggufreap.version import __version__

# Weights in a block of the types that mixes are made of (ggml/src/ggml-common.h, QK_K and QK8_0 with its like).
BLOCKS = (32, 256)
Rows = tuple[tuple[str, tuple[bool, ...]], ...]


def rows_of(shapes: Mapping[str, tuple[int, ...]]) -> Rows:
    """Of each tensor whether its rows fill whole blocks: all of its shape that decides on the type that it gets
    (src/llama-quant.cpp, tensor_type_fallback), and nothing of vectors, which are not quantised."""
    return tuple(
        (name, tuple(len(shape) > 1 and shape[-1] % block == 0 for block in BLOCKS)) for name, shape in shapes.items()
    )


@dataclass(frozen=True)
class Outline:
    """Files of `model` with the experts of `example` narrowed as `narrow` says, in one piece.

    `script` writes one of them, of any count; `said`: what all of them say of their width.
    """

    model: Model
    example: PruningPlan
    script: RewriteScript
    said: Widths | None

    @classmethod
    def of(cls, model: Model, example: PruningPlan, script: RewriteScript, narrow: Narrow | None = None) -> "Outline":
        """That of the `script`, made with the same arguments."""
        if narrow is None:
            return cls(model, example, script, None)
        said, own = Narrower(model, example, narrow).said(blocks_that_stay(model, example)), narrow.narrowing
        # The choice of neurons changes no size, and without one its identity is told at once.
        return cls(model, example, script, replace(said, narrowing=replace(own, neurons={})))

    @cached_property
    def tensors(self) -> tuple[OutputTensor, ...]:
        """Those of `script`."""
        return tuple(tensor for file in self.script.files for tensor in file.tensors)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor -> its shape in `script`."""
        return {tensor.name: tensor.shape for tensor in self.tensors}

    def exact(self, n_keep: int) -> int:
        """The bytes of the byte-exact file of `n_keep` experts per block, as lay_out makes it."""
        alignment = self.model.file.alignment
        entries = sum(len(entry.raw) for entry in self.entries(n_keep) if entry.key not in SPLIT_KEYS)
        fixed, routed = self._own
        data = sum(count * pad(nbytes, alignment) for nbytes, count in fixed.items())
        data += sum(count * pad(n_keep * nbytes, alignment) for nbytes, count in routed.items())
        return pad(24 + entries + self._own_infos, alignment) + data

    def header(self, n_keep: int, request: QuantRequest) -> int:
        """The bytes of the header of a quantised file with its padding."""
        entries = entries_nbytes(self.entries(n_keep), written_metadata(self.model.file, request))
        return pad(24 + entries + self._infos, ALIGNMENT)

    def entries(self, n_keep: int) -> list[MetadataEntry]:
        """What a file of `n_keep` experts per block says of itself."""
        # Which experts they are changes no size either.
        plan = replace(of_count(self.example, self.model.layout, n_keep), keep={})
        n_block, weights = blocks_that_stay(self.model, self.example), self._weights
        return pruned_metadata(self.model, plan, n_block, weights[0] + n_keep * weights[1], __version__, self.said)

    @cached_property
    def _infos(self) -> int:
        return infos_nbytes(self.shapes)

    @cached_property
    def _own_infos(self) -> int:
        """The same as ggufreap writes them, with dimensions of size one."""
        return sum(24 + len(tensor.name.encode()) + 8 * len(tensor.shape) for tensor in self.tensors)

    @cached_property
    def _own(self) -> tuple[Counter[int], Counter[int]]:
        """Bytes of tensors in their own types -> how many there are: of whole ones, and per expert."""
        whole = Counter(tensor.nbytes for tensor in self.tensors if not self._is_routed(tensor))
        routed = Counter(tensor.nbytes // tensor.shape[0] for tensor in self.tensors if self._is_routed(tensor))
        return whole, routed

    @cached_property
    def _weights(self) -> tuple[int, int]:
        """How many there are without an expert axis, and how many per expert."""
        routed = sum(prod(tensor.shape[1:]) for tensor in self.tensors if self._is_routed(tensor))
        return sum(prod(tensor.shape) for tensor in self.tensors if not self._is_routed(tensor)), routed

    def _is_routed(self, tensor: OutputTensor) -> bool:
        return tensor.name in self.model.layout.per_expert
