"""What a prospect is estimated to lose: the sum of what was measured of its parts, each alone.

The parts are not independent, so the sum is an estimate and is called one. Types are tabulated from one trained model
(losses.toml says which), so of another one their order is to be expected, not their figures.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ggufreap.sizing import CLASSES

TABLE = Path(__file__).with_name("losses.toml")
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """Mean KLD in nats of the trained model: of a class of tensors in a type, of the whole in one of llama-quantize's
    mixes, and without a fraction of its experts."""

    classes: Mapping[str, Mapping[str, float]]
    whole: Mapping[str, float]
    pruning: Mapping[float, float]


@cache
def table() -> Table:
    """What losses.toml holds."""
    read = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    pruning = {float(fraction): kld for fraction, kld in read["pruning"].items()}
    return Table({name: read[name] for name in CLASSES}, read["whole"], pruning)


@dataclass(frozen=True)
class Curve:
    """Mean KLD by the fraction of the experts that go; `measured` on the model itself, by masking, or tabulated."""

    points: Mapping[float, float]
    measured: bool

    @classmethod
    def tabulated(cls) -> "Curve":
        """That of the trained model: where nothing was measured of the one at hand."""
        return cls(table().pruning, measured=False)

    def at(self, fractions: Sequence[float] | Floats) -> Floats:
        """KLD at `fractions` `[n]` from 0 to `last`: 0 where nothing goes, and never less where more does.

        Between points its root is interpolated, since what is lost grows with the square of what is missing.
        """
        places = np.array([0.0, *sorted(self.points)])
        roots = np.sqrt([0.0, *(max(0.0, self.points[place]) for place in places[1:])])
        return np.asarray(np.interp(fractions, places, np.maximum.accumulate(roots)) ** 2)

    @property
    def last(self) -> float:
        """The largest fraction that it tells of; what lies beyond would be a guess."""
        return max(self.points)
