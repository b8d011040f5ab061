"""Sizes by classes of tensors: for a search over many counts of experts and types, which asks llama.cpp only once.

A type that was given for a tensor depends on no other tensor's, and the mix of the rest not on which type the experts
were given, so that one dry run for each type and mix tells of all pairs (src/llama-quant.cpp, llama_tensor_get_type).
Any feasible number of experts will do: it decides on no type.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from ggufreap.architecture.layout import MoeLayout
from ggufreap.container import nbytes_of
from ggufreap.container.header import pad
from ggufreap.quantization.forecast import ALIGNMENT, data_nbytes

REST = "rest"
# Class -> the names of its tensors, as a regular expression; the rest is all others. See architecture/roles.py.
ROUTED = {
    "gate_up": r"\.ffn_(gate|up|gate_up)_exps\.weight$",
    "down": r"\.ffn_down_exps\.weight$",
}
CLASSES = (*ROUTED, REST)


@dataclass(frozen=True)
class Portion:
    """The tensors of one class in their types: `fixed` bytes of those without an expert axis, and of the others how
    many there are -> their bytes per expert, without padding."""

    fixed: int
    per_expert: tuple[tuple[int, int], ...]

    def nbytes(self, n_keep: int) -> int:
        """Its bytes in a file of `n_keep` experts per block, with the padding of every tensor."""
        return self.fixed + sum(count * pad(n_keep * expert, ALIGNMENT) for count, expert in self.per_expert)


def class_of(tensor: str) -> str:
    """The class of a tensor, by its name."""
    return next((name for name, pattern in ROUTED.items() if re.search(pattern, tensor)), REST)


def portion(shapes: Mapping[str, tuple[int, ...]], kinds: Mapping[str, int], layout: MoeLayout) -> Portion:
    """Tensors of one class and their shapes, in the ggml types `kinds`."""
    fixed, per_expert = 0, Counter[int]()
    for name, shape in shapes.items():
        if name in layout.per_expert:
            per_expert[nbytes_of(shape[1:], kinds[name])] += 1
        else:
            fixed += data_nbytes(shape, kinds[name])
    return Portion(fixed, tuple((count, expert) for expert, count in per_expert.items()))
