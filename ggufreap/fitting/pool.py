"""All prospects for one model: experts kept x width of the experts x types, with exact sizes and estimated losses."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ggufreap.architecture.layout import MoeLayout
from ggufreap.fitting.losses import Curve, Floats
from ggufreap.fitting.mixes import Key, Mix
from ggufreap.planning.counts import feasible_counts
from ggufreap.quantization import QuantRequest
from ggufreap.sizing import Portion, Sizer, portions_of

Bytes = npt.NDArray[np.int64]
# (experts kept, None of the whole model, and types) -> what the quantiser is asked, the metadata included.
Asking = Callable[[int | None, Mix], QuantRequest]


@dataclass(frozen=True)
class Prospect:
    """A file that could be made: `n_keep` of `n_expert` experts per block, `width` of each (None: all), in the types of
    `mix`; its exact size, and the parts of its estimated mean KLD in nats."""

    n_expert: int
    n_keep: int
    width: int | None
    mix: Mix
    nbytes: int
    pruning: float
    narrowing: float

    @property
    def loss(self) -> float:
        """The estimate: the sum of the parts."""
        return self.pruning + self.narrowing + self.mix.loss

    @property
    def pruned(self) -> bool:
        """Whether any expert or neuron is missing."""
        return self.n_keep < self.n_expert or self.width is not None

    @property
    def label(self) -> str:
        """What is kept, and in which types."""
        kept = f"{self.n_keep} of {self.n_expert} experts" if self.pruned else "unpruned"
        return f"{kept}, {self.mix.label}"


@dataclass(frozen=True)
class Pool:
    """Prospects as arrays over `counts` `[K]` (experts kept, the whole model first), `widths` `[W]` and `mixes` `[C]`.

    `nbytes`: `[K, W, C]`; `pruning`: `[K]`, `narrowing`: `[W]`, mean KLD in nats.
    """

    counts: tuple[int, ...]
    widths: tuple[int | None, ...]
    mixes: tuple[Mix, ...]
    nbytes: Bytes
    pruning: Floats
    narrowing: Floats

    @property
    def losses(self) -> Floats:
        """The estimate of each, `[K, W, C]`."""
        types = np.array([mix.loss for mix in self.mixes])
        return np.asarray(self.pruning[:, None, None] + self.narrowing[None, :, None] + types)

    @cached_property
    def order(self) -> npt.NDArray[np.int64]:
        """Flat indices of all, the lowest estimate first, among equals the smallest file."""
        return np.lexsort((self.nbytes.ravel(), self.losses.ravel()))

    def prospect(self, place: int) -> Prospect:
        """The one at a flat index of the arrays."""
        count, width, mix = np.unravel_index(place, self.nbytes.shape)
        return Prospect(
            self.counts[0],
            self.counts[count],
            self.widths[width],
            self.mixes[mix],
            int(self.nbytes[count, width, mix]),
            float(self.pruning[count]),
            float(self.narrowing[width]),
        )


def build(
    sizer: Sizer,
    layout: MoeLayout,
    mixes: Sequence[Mix],
    curve: Curve,
    ask: Asking,
    *,
    weighted: bool,
    friendly: bool = False,
) -> Pool:
    """The pool of `mixes` at all feasible counts that `curve` tells of, of experts as wide as they are.

    llama.cpp is asked once for each type; that answers for all pairs of types and all counts (see sizing/classes.py),
    since a pruned model has the types of the one it came from, as long as it has its tensors. `ask` tells how a
    prospect would be made; `weighted`: with an importance matrix; `friendly`: of the smaller counts only those that
    CUDA's fused router knows.
    """
    whole, *fewer = feasible_counts(layout, friendly=friendly)
    pruned = [count for count in fewer if 1 - count / whole <= curve.last]
    quantised = [mix for mix in mixes if mix.type is not None]
    portions = _portions(sizer, layout, None, quantised, ask, weighted)
    rows = [_nbytes(sizer, None, [whole], mixes, portions, ask)]
    if pruned:
        if {each.name for file in sizer.script(pruned[0]).files for each in file.tensors} != {*sizer.source.by_name}:
            portions = _portions(sizer, layout, pruned[0], quantised, ask, weighted)
        rows.append(_nbytes(sizer, pruned[0], pruned, mixes, portions, ask))
    losses = curve.at([1 - count / whole for count in (whole, *pruned)])
    return Pool((whole, *pruned), (None,), tuple(mixes), np.concatenate(rows)[:, None], losses, np.zeros(1))


def _nbytes(
    sizer: Sizer,
    pruned: int | None,
    counts: Sequence[int],
    mixes: Sequence[Mix],
    portions: Mapping[Key, Portion],
    ask: Asking,
) -> Bytes:
    """`[K, C]`: the bytes of each mix at `counts`, of the whole model where `pruned` is None."""
    keeps = [None] if pruned is None else counts
    nbytes = np.empty((len(counts), len(mixes)), np.int64)
    nbytes[:] = np.array([sizer.source.nbytes if keep is None else sizer.exact(keep) for keep in keeps])[:, None]
    quantised = [place for place, mix in enumerate(mixes) if mix.type is not None]
    if quantised:
        headers = np.array([sizer.header(keep, ask(keep, mixes[quantised[0]])) for keep in keeps])
        places = {key: place for place, key in enumerate(portions)}
        parts = np.array([[part.nbytes(count) for part in portions.values()] for count in counts])
        which = np.array([[places[key] for key in mixes[place].keys] for place in quantised])
        nbytes[:, quantised] = headers[:, None] + parts[:, which].sum(axis=-1)
    return nbytes


def _portions(
    sizer: Sizer, layout: MoeLayout, n_keep: int | None, mixes: Sequence[Mix], ask: Asking, weighted: bool
) -> dict[Key, Portion]:
    """Of every class and type its tensors, by as few questions as answer for all."""
    portions: dict[Key, Portion] = {}
    for key in dict.fromkeys(key for mix in mixes for key in mix.keys):
        if key in portions:
            continue
        able = [mix for mix in mixes if key in mix.keys]
        mix = max(able, key=lambda each: sum(one not in portions for one in each.keys))  # which tells most that is new
        told = portions_of(sizer, layout, n_keep, ask(n_keep, mix), weighted=weighted)
        portions |= {one: told[one[0]] for one in mix.keys}
    return portions
