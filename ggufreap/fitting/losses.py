"""What a prospect is estimated to lose: the sum of what was measured of its parts, each alone.

The parts are not independent, so the sum is an estimate and is called one; of fewer experts and fewer neurons together
it was within a tenth of what was measured of thirteen splits (tests/benchmarks/README.md). Types and neurons are
tabulated from one trained model (losses.toml and narrowing.toml say which), so of another one their order is to be
expected, not their figures.
"""

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ggufreap.sizing import CLASSES

TABLE = Path(__file__).with_name("losses.toml")
NARROWING = Path(__file__).with_name("narrowing.toml")
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """Mean KLD in nats of the trained model: of a class of tensors in a type, of the whole in one of llama-quantize's
    mixes, without a fraction of its experts, and without one of the neurons of every expert."""

    classes: Mapping[str, Mapping[str, float]]
    whole: Mapping[str, float]
    pruning: Mapping[float, float]
    narrowing: Mapping[float, float]


@cache
def table() -> Table:
    """What losses.toml and narrowing.toml hold."""
    read = {key: row for path in (TABLE, NARROWING) for key, row in tomllib.loads(path.read_text("utf-8")).items()}
    pruning, narrowing = (
        {float(fraction): kld for fraction, kld in read[name].items()} for name in ("pruning", "narrowing")
    )
    return Table({name: read[name] for name in CLASSES}, read["whole"], pruning, narrowing)


@dataclass(frozen=True)
class Curve:
    """Mean KLD by the fraction of the experts, or of their neurons, that go; `measured` on the model itself or
    tabulated."""

    points: Mapping[float, float]
    measured: bool

    @classmethod
    def tabulated(cls) -> "Curve":
        """That of the trained model: where nothing was measured of the one at hand."""
        return cls(table().pruning, measured=False)

    @classmethod
    def of_neurons(cls, pruning: "Curve") -> "Curve":
        """That of the trained model's neurons; where `pruning` was measured of the model at hand, by the root of how
        much more or less its experts lose than those of the trained model.

        Of the one other model that was tried experts lost 4.2 to 5.3 times as much as those of the trained one, neurons
        2.2 to 3.0 times (tests/benchmarks/README.md).
        """
        points = table().narrowing
        if pruning.measured:
            last = min(pruning.last, max(points))
            places = [place for place in table().pruning if place <= last] or [last]
            times = math.sqrt(pruning.at(places).sum() / cls.tabulated().at(places).sum())
            points = {place: times * kld for place, kld in points.items()}
        return cls(points, measured=False)

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
