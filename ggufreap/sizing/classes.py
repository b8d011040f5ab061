"""Sizes by classes of tensors: for a search over many counts of experts and types, which asks llama.cpp only once."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import zip_longest

from ggufreap.architecture.layout import MoeLayout
from ggufreap.container import nbytes_of
from ggufreap.container.header import pad
from ggufreap.errors import InputError
from ggufreap.quantization import QuantRequest
from ggufreap.quantization.forecast import ALIGNMENT, data_nbytes
from ggufreap.sizing.sizer import Sizer

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


@dataclass(frozen=True)
class ClassSizes:
    """What pruned and quantised files weigh, by experts kept and a type for each of CLASSES.

    `portions`: class -> type -> its tensors; `header`: experts kept -> bytes; `template`: what else is asked of the
    quantiser.
    """

    portions: Mapping[str, Mapping[str, Portion]]
    header: Callable[[int], int]
    template: QuantRequest

    def nbytes(self, n_keep: int, types: Mapping[str, str]) -> int:
        """The bytes of the file whose classes have `types`."""
        return self.header(n_keep) + sum(self.portions[name][types[name]].nbytes(n_keep) for name in CLASSES)

    def request(self, types: Mapping[str, str]) -> QuantRequest:
        """What makes that file: the rest by llama.cpp's mix of its type, the routed experts by type."""
        return _request(self.template, types)


def portions_of(
    sizer: Sizer, layout: MoeLayout, n_keep: int | None, request: QuantRequest, *, weighted: bool = False
) -> dict[str, Portion]:
    """Class -> its tensors, of the model with `n_keep` experts per block, or of the whole one, quantised by `request`.

    Of the same classes in the same types any other count can be told, as of `class_sizes`.
    """
    if n_keep is None:
        shapes = {record.name: record.shape for record in sizer.source.tensors}
    else:
        shapes = {tensor.name: tensor.shape for file in sizer.script(n_keep).files for tensor in file.tensors}
    kinds = sizer.types(n_keep, request, weighted=weighted)
    own: dict[str, dict[str, tuple[int, ...]]] = {name: {} for name in CLASSES}
    for name, shape in shapes.items():
        own[class_of(name)][name] = shape
    return {name: portion(tensors, kinds, layout) for name, tensors in own.items()}


def class_sizes(
    sizer: Sizer,
    layout: MoeLayout,
    n_keep: int,
    expert_types: Sequence[str],
    mixes: Sequence[str],
    *,
    template: QuantRequest | None = None,
    weighted: bool = False,
) -> ClassSizes:
    """The table of all candidates with routed experts in `expert_types` (tensor types) and the rest in `mixes` (file
    types, of which the experts take no part).

    Any feasible `n_keep` will do: it decides on no type. A type that was given for a tensor depends on no other
    tensor's, and the mix of the rest not on which type the experts were given, so that one dry run for each type and
    mix tells of all pairs (src/llama-quant.cpp, llama_tensor_get_type). `template`: what else is asked; its tensor
    types go before those of the classes. `weighted`: there will be an importance matrix; whether a type can do
    without is not looked at. The files are never split.
    """
    if not (expert_types and mixes):
        raise InputError("sizes by classes take a type of experts and a mix of the rest at least; name some")
    template = replace(template or QuantRequest(mixes[0]), keep_split=False)
    portions: dict[str, dict[str, Portion]] = {name: {} for name in CLASSES}
    for expert_type, mix in zip_longest(expert_types, mixes):
        chosen = dict.fromkeys(ROUTED, expert_type or expert_types[0]) | {REST: mix or mixes[0]}
        found = portions_of(sizer, layout, n_keep, _request(template, chosen), weighted=weighted)
        for name in CLASSES:
            portions[name][chosen[name]] = found[name]
    return ClassSizes(portions, cache(lambda count: sizer.header(count, template)), template)


def class_of(tensor: str) -> str:
    """The class of a tensor, by its name."""
    return next((name for name, pattern in ROUTED.items() if re.search(pattern, tensor)), REST)


def _request(template: QuantRequest, types: Mapping[str, str]) -> QuantRequest:
    routed = tuple((pattern, types[name]) for name, pattern in ROUTED.items())
    return replace(template, type=types[REST], tensor_types=template.tensor_types + routed)


def portion(shapes: Mapping[str, tuple[int, ...]], kinds: Mapping[str, int], layout: MoeLayout) -> Portion:
    """Tensors of one class and their shapes, in the ggml types `kinds`."""
    fixed, per_expert = 0, Counter[int]()
    for name, shape in shapes.items():
        if name in layout.per_expert:
            per_expert[nbytes_of(shape[1:], kinds[name])] += 1
        else:
            fixed += data_nbytes(shape, kinds[name])
    return Portion(fixed, tuple((count, expert) for expert, count in per_expert.items()))
