"""All prospects for one model: experts kept x width of the experts x types, with exact sizes and estimated losses."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ggufreap.fitting.losses import Floats
from ggufreap.fitting.mixes import Mix

Bytes = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
NEVER = np.iinfo(np.int64).max  # the bytes of what cannot be made: it fits nowhere
# What a prospect can be, from nothing missing on.
UNPRUNED, PRUNED, NARROWED = KINDS = ("unpruned", "pruned", "narrowed")


@dataclass(frozen=True)
class Prospect:
    """A file that could be made: `n_keep` of `n_expert` experts per block, `width` of `source_width` neurons of each,
    in the types of `mix`; its exact size, and the parts of its estimated mean KLD in nats."""

    n_expert: int
    n_keep: int
    source_width: int
    width: int
    mix: Mix
    nbytes: int
    pruning: float
    narrowing: float

    @property
    def loss(self) -> float:
        """The estimate: the sum of the parts."""
        return self.pruning + self.narrowing + self.mix.loss

    @property
    def narrowed(self) -> bool:
        """Whether neurons are missing."""
        return self.width < self.source_width

    @property
    def pruned(self) -> bool:
        """Whether any expert or neuron is missing."""
        return self.n_keep < self.n_expert or self.narrowed

    @property
    def kind(self) -> str:
        """Which of KINDS it is."""
        return NARROWED if self.narrowed else PRUNED if self.pruned else UNPRUNED

    @property
    def label(self) -> str:
        """What is kept, and in which types."""
        kept = [f"{self.n_keep} of {self.n_expert} experts"] if self.pruned else ["unpruned"]
        kept += [f"{self.width} of {self.source_width} neurons"] if self.narrowed else []
        return ", ".join((*kept, self.mix.label))


@dataclass(frozen=True)
class Pool:
    """Prospects as arrays over `counts` `[K]` (experts kept), `widths` `[W]` (neurons of each), the whole model first
    of both, and `mixes` `[C]`.

    `nbytes`: `[K, W, C]`, NEVER where a mix does not fit the width; `pruning`: `[K]`, `narrowing`: `[W]`, mean KLD in
    nats.
    """

    counts: tuple[int, ...]
    widths: tuple[int, ...]
    mixes: tuple[Mix, ...]
    nbytes: Bytes
    pruning: Floats
    narrowing: Floats

    @property
    def size(self) -> int:
        """How many files could be made."""
        return int((self.nbytes < NEVER).sum())

    @cached_property
    def losses(self) -> Floats:
        """The estimate of each, `[K, W, C]`."""
        types = np.array([mix.loss for mix in self.mixes])
        return np.asarray(self.pruning[:, None, None] + self.narrowing[None, :, None] + types)

    @cached_property
    def kinds(self) -> dict[str, Mask]:
        """Kind -> which prospects are of it, `[K, W, 1]`."""
        every = np.array(self.counts)[:, None, None] == self.counts[0]
        full = np.array(self.widths)[None, :, None] == self.widths[0]
        return {UNPRUNED: every & full, PRUNED: ~every & full, NARROWED: ~full & np.ones_like(every)}

    def prospect(self, place: int) -> Prospect:
        """The one at a flat index of the arrays."""
        count, width, mix = np.unravel_index(place, self.nbytes.shape)
        return Prospect(
            *(self.counts[0], self.counts[count], self.widths[0], self.widths[width]),
            self.mixes[mix],
            int(self.nbytes[count, width, mix]),
            float(self.pruning[count]),
            float(self.narrowing[width]),
        )
