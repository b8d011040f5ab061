"""Types that a file can be made in: one for each class of tensors, or one of llama-quantize's own mixes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from ggufreap.architecture.layout import MoeLayout
from ggufreap.container import GgufFile, TensorRecord, bits_per_weight, type_name
from ggufreap.container.header import block_size, is_quantized
from ggufreap.fitting.losses import Table
from ggufreap.quantization.request import TENSOR_TYPES
from ggufreap.recipe import Variant
from ggufreap.sizing import CLASSES, REST, ROUTED, class_of

Key = tuple[str, str, bool]
AS_IT_IS = "as it is"
# Of blocks that no calibration runs, since types of fewer bits take an importance matrix.
UNSEEN = "IQ4_NL"
_PRECISE = {"F32", "F16", "BF16", "Q8_0"}  # from which a quantisation loses nothing to speak of
_FP4 = {"MXFP4", "NVFP4"}
_NEED = ("IQ1", "IQ2", "IQ3_XXS")  # ggml/src/ggml.c and src/llama-quant.cpp, as ggufreap/quantization/checks.py has it


@dataclass(frozen=True)
class Mix:
    """Types of a file and what they are estimated to lose.

    `type`: of the rest, or llama-quantize's mix for all tensors where `routed` names none for the routed experts (gate
    and up, down); None: all tensors stay as they are, byte for byte.
    """

    type: str | None
    routed: tuple[str, ...] = ()
    loss: float = 0.0

    @property
    def label(self) -> str:
        """The types, as a table shows them."""
        if self.type is None:
            return AS_IT_IS
        return " ".join((*self.routed, self.type))

    @cached_property
    def keys(self) -> tuple[Key, ...]:
        """(class, its type, whether by the mix of all tensors): what decides on the types of a class of tensors."""
        if self.type is None:
            return ()
        if not self.routed:
            return tuple((name, self.type, True) for name in CLASSES)
        return tuple((name, kind, False) for name, kind in zip(CLASSES, (*self.routed, self.type), strict=True))

    @property
    def needs_importance(self) -> bool:
        """Whether some type of it cannot do without an importance matrix."""
        return any(kind.startswith(_NEED) for kind in (*self.routed, self.type or ""))

    def fits(self, width: int) -> bool:
        """Whether rows of down of `width` weights fill the type that it names for them."""
        return len(self.routed) < 2 or width % block_size(TENSOR_TYPES[self.routed[1]]) == 0

    def variant(self, layout: MoeLayout, *, trunk_only: bool = False) -> Variant:
        """What the quantiser is asked; `trunk_only`: of a file without MTP blocks."""
        assert self.type, "what stays as it is is not quantised"
        unseen = [] if trunk_only else unseen_types(layout)
        routed = zip(ROUTED.values(), self.routed, strict=False)
        name = "_".join((*self.routed, self.type)) if self.routed else ""
        return Variant(self.type, name, tensor_types=(*unseen, *routed))


def unseen_types(layout: MoeLayout) -> list[tuple[str, str]]:
    """(regex, type) of the tensors that no calibration runs."""
    blocks = range(layout.n_trunk, layout.n_block)
    return [(rf"^blk\.({'|'.join(map(str, blocks))})\.", UNSEEN)] if blocks else []


def possible_mixes(
    source: GgufFile, losses: Table, *, weighted: bool = True, allow_requantize: bool = False
) -> list[Mix]:
    """All that `source` can be made in, the unchanged types first; `weighted`: with an importance matrix, which some
    types cannot do without.

    A class of tensors in less than 8 bits keeps its type unless it may be quantised twice, one in FP4 always does; a
    class of one type can keep it. Types get no larger, and rows have to fit the routed experts' types, since llama.cpp
    takes a type that was given literally.
    """
    own = {name: [each for each in source.tensors if class_of(each.name) == name] for name in CLASSES}
    routed = [list(_choices(own[name], losses.classes[name], allow_requantize, fit=True)) for name in ROUTED]
    rest = list(_choices(own[REST], losses.classes[REST], allow_requantize, fit=False))
    mixes = [Mix(None)]
    for *experts, (mix, loss) in product(*routed, rest):
        mixes.append(Mix(mix, tuple(kind for kind, _ in experts), loss + sum(each for _, each in experts)))
    if all(_may(own[name], allow_requantize) for name in CLASSES):
        everything = [each for records in own.values() for each in records]
        mixes += [Mix(kind, (), losses.whole[kind]) for kind in losses.whole if _smaller(everything, kind)]
    return mixes if weighted else [mix for mix in mixes if not mix.needs_importance]


def _choices(
    records: Sequence[TensorRecord], losses: Mapping[str, float], allow_requantize: bool, *, fit: bool
) -> Iterator[tuple[str, float]]:
    """(type, estimated loss) of a class of tensors; `fit`: its rows have to fill the type's blocks."""
    kinds = {type_name(each.type) for each in records if is_weight(each)}
    if fit and len(kinds) == 1:
        yield next(iter(kinds)), 0.0
    if not _may(records, allow_requantize):
        return
    for kind, loss in losses.items():
        if kind not in kinds and _smaller(records, kind) and not (fit and _misfits(records, kind)):
            yield kind, loss


def is_weight(record: TensorRecord) -> bool:
    """Whether a tensor is a matrix that quantising changes: norms and routers stay in F32."""
    return len(record.shape) > 1 and type_name(record.type) != "F32"


def _may(records: Iterable[TensorRecord], allow_requantize: bool) -> bool:
    kinds = {type_name(each.type) for each in records if is_weight(each)}
    return not kinds & _FP4 and (allow_requantize or kinds <= _PRECISE)


def _smaller(records: Iterable[TensorRecord], kind: str) -> bool:
    """Whether no tensor would get more bits than it has."""
    bits = min((bits_per_weight(each.type) for each in records if is_quantized(each.type)), default=32.0)
    return _bits(kind) <= bits


def _bits(kind: str) -> float:
    """Bits per weight of a tensor type; of a mix the number in its name."""
    if kind in TENSOR_TYPES:
        return bits_per_weight(TENSOR_TYPES[kind])
    return float(next(letter for letter in kind if letter.isdigit()))


def _misfits(records: Iterable[TensorRecord], kind: str) -> bool:
    return any(each.shape[-1] % block_size(TENSOR_TYPES[kind]) for each in records)
