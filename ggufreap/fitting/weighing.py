"""Weighs all prospects: what they take to the byte, by as few questions to llama.cpp as answer for all."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ggufreap.architecture.layout import MoeLayout
from ggufreap.fitting.losses import Curve
from ggufreap.fitting.mixes import Key, Mix
from ggufreap.fitting.pool import NEVER, Bytes, Pool
from ggufreap.model import Model
from ggufreap.planning.counts import feasible_counts
from ggufreap.quantization import QuantRequest
from ggufreap.sizing import CLASSES, Outline, Portion, Rewriter, Rows, Sizer, class_of, portion, rows_of

Shapes = Mapping[str, tuple[int, ...]]
Types = Mapping[str, int]  # tensor -> ggml type


class Maker(Protocol):
    """How prospects are made: `n_keep` None is the whole model, `width` 0 stands for experts as wide as they are."""

    @property
    def model(self) -> Model:
        """What they are made of."""

    @property
    def weighted(self) -> bool:
        """Whether there will be an importance matrix."""

    def ask(self, n_keep: int | None, mix: Mix, width: int = 0) -> QuantRequest:
        """What the quantiser is asked, the metadata included."""

    def scripts(self, width: int = 0) -> Rewriter:
        """What writes the files that it is given."""

    def outline(self, n_keep: int, width: int = 0) -> Outline:
        """The files of all counts, from the script of one."""


@dataclass(frozen=True)
class _Files:
    """Files of one width: their tensors, what byte-exact ones of a count weigh, the headers of quantised ones, and what
    llama.cpp says of the types in a mix."""

    shapes: Shapes
    exact: Callable[[int], int]
    header: Callable[[int], int]
    tell: Callable[[Mix], Types]

    @classmethod
    def whole(cls, maker: Maker, mix: Mix, stack: ExitStack) -> "_Files":
        """The model as it is, and in other types."""
        source, sizer = maker.model.file, stack.enter_context(Sizer(maker.model.file))
        return cls(
            {record.name: record.shape for record in source.tensors},
            lambda _: source.nbytes,
            lambda _: sizer.header(None, maker.ask(None, mix)),
            lambda each: sizer.types(None, maker.ask(None, each), weighted=maker.weighted),
        )

    @classmethod
    def cut(cls, maker: Maker, mix: Mix, counts: Sequence[int], width: int, stack: ExitStack) -> "_Files":
        """Those of fewer experts, or of narrower ones."""
        outline = maker.outline(counts[-1], width)
        sizer = stack.enter_context(Sizer(maker.model.file, maker.scripts(width)))
        return cls(
            outline.shapes,
            outline.exact,
            lambda n_keep: outline.header(n_keep, maker.ask(n_keep, mix, width)),
            lambda each: sizer.types(counts[0], maker.ask(counts[0], each, width), weighted=maker.weighted),
        )


def build(
    maker: Maker,
    mixes: Sequence[Mix],
    widths: Sequence[int],
    pruning: Curve,
    narrowing: Curve,
    *,
    friendly: bool = False,
) -> Pool:
    """The pool of `mixes` and `widths` (all neurons first) at all feasible counts that the curve `pruning` tells of.

    llama.cpp is asked once for each type; that answers for all pairs of types and all counts (see sizing/classes.py),
    since a pruned model has the types of the one it came from, as long as it has its tensors, and for all widths whose
    rows fill the same blocks. `friendly`: of the smaller counts only those that CUDA's fused router knows.
    """
    layout = maker.model.layout
    whole, *fewer = feasible_counts(layout, friendly=friendly)
    pruned = [count for count in fewer if 1 - count / whole <= pruning.last]
    counts = (whole, *pruned)
    nbytes = np.full((len(counts), len(widths), len(mixes)), NEVER)
    answers: dict[Rows, dict[Key, Types]] = {}
    example = next((mix for mix in mixes if mix.type is not None), mixes[0])
    with ExitStack() as stack:
        nbytes[:1, 0] = _nbytes(_Files.whole(maker, example, stack), [whole], mixes, layout, answers)
        if pruned:
            files = _Files.cut(maker, example, pruned, 0, stack)
            nbytes[1:, 0] = _nbytes(files, pruned, mixes, layout, answers)
        for column, width in enumerate(widths[1:], 1):
            fitting = [place for place, mix in enumerate(mixes) if mix.fits(width)]
            files = _Files.cut(maker, example, counts, width, stack)
            nbytes[:, column, fitting] = _nbytes(files, counts, [mixes[place] for place in fitting], layout, answers)
    return Pool(
        counts,
        tuple(widths),
        tuple(mixes),
        nbytes,
        pruning.at([1 - count / whole for count in counts]),
        narrowing.at([1 - width / widths[0] for width in widths]),
    )


def _nbytes(
    files: _Files, counts: Sequence[int], mixes: Sequence[Mix], layout: MoeLayout, answers: dict[Rows, dict[Key, Types]]
) -> Bytes:
    """`[K, C]`: the bytes of each mix at `counts`; what llama.cpp answered is added to `answers`."""
    nbytes = np.empty((len(counts), len(mixes)), np.int64)
    nbytes[:] = np.array([files.exact(count) for count in counts])[:, None]
    quantised = [place for place, mix in enumerate(mixes) if mix.type is not None]
    if not quantised:
        return nbytes
    known = answers.setdefault(rows_of(files.shapes), {})
    _ask(files, [mixes[place] for place in quantised], known)
    portions = _portions(files.shapes, known, layout)
    headers = np.array([files.header(count) for count in counts])
    places = {key: place for place, key in enumerate(portions)}
    parts = np.array([[part.nbytes(count) for part in portions.values()] for count in counts])
    which = np.array([[places[key] for key in mixes[place].keys] for place in quantised])
    nbytes[:, quantised] = headers[:, None] + parts[:, which].sum(axis=-1)
    return nbytes


def _ask(files: _Files, mixes: Sequence[Mix], known: dict[Key, Types]) -> None:
    """Add to `known` what decides on the types of a class, by as few questions as answer for all `mixes`."""
    for key in dict.fromkeys(key for mix in mixes for key in mix.keys):
        if key not in known:
            able = [mix for mix in mixes if key in mix.keys]
            mix = max(able, key=lambda each: sum(one not in known for one in each.keys))  # which tells most that is new
            known |= dict.fromkeys(mix.keys, files.tell(mix))


def _portions(shapes: Shapes, known: Mapping[Key, Types], layout: MoeLayout) -> dict[Key, Portion]:
    """Of every class and type its tensors."""
    own: dict[str, dict[str, tuple[int, ...]]] = {name: {} for name in CLASSES}
    for name, shape in shapes.items():
        own[class_of(name)][name] = shape
    return {key: portion(own[key[0]], types, layout) for key, types in known.items()}
