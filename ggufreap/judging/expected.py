"""What narrower experts would cost, before what makes up for their neurons is computed.

Measured is what it costs to mask experts, and neurons as well, with nothing that makes up for them. Of what the neurons
cost, compensation leaves a share, the same in every domain: that of H's losses (ggufreap.narrowing.solving.Solved),
which are quadratic in the error of the residual stream, as KLD is for small errors. How near that comes stands in
tests/benchmarks/README.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from ggufreap import naming
from ggufreap.engine.neuron_mask import Fewer
from ggufreap.engine.neuron_tap import FewerNeurons
from ggufreap.evaluation import Comparison, Gate, Outcome
from ggufreap.judging.masking import Candidate, mask_of
from ggufreap.model import Model
from ggufreap.narrowing import Narrowing
from ggufreap.planning import PruningPlan
from ggufreap.rewriting import Narrow, lower

FORESEEN = ("kld",)  # the metrics that are


@dataclass(frozen=True)
class Expected:
    """One plan and a width of its experts, and the exact size of the file.

    `whole` and `bare` were measured: the plan alone, and without the neurons too, which nothing makes up for; `left` is
    the share of what these cost that compensation leaves.
    """

    plan: PruningPlan
    narrowing: Narrowing
    nbytes: int
    whole: Comparison
    bare: Comparison
    left: float
    asked: tuple[Gate, ...]

    @classmethod
    def of(
        cls,
        model: Model,
        narrowing: Narrowing,
        left: float,
        whole: Candidate,
        bare: Candidate,
        asked: tuple[Gate, ...],
    ) -> Self:
        """What was found of a plan for `model`, masked without and with the `narrowing` of its experts."""
        out = naming.target(model.path, None, narrowing.full_label(whole.plan))
        nbytes = lower(model, whole.plan, out, narrow=Narrow(narrowing)).nbytes
        return cls(whole.plan, narrowing, nbytes, whole.comparison, bare.comparison, left, asked)

    @property
    def domains(self) -> Mapping[str, float]:
        """Domain -> the mean KLD that is expected."""
        return {
            name: meters.kld + self.left * (self.bare.domains[name].kld - meters.kld)
            for name, meters in self.whole.domains.items()
        }

    @property
    def mean(self) -> float:
        """The mean over domains."""
        return sum(self.domains.values()) / len(self.domains)

    @property
    def worst_domain(self) -> str:
        """The domain that is expected to lose most."""
        return max(self.domains, key=self.domains.__getitem__)

    @property
    def worst_kld(self) -> float:
        """What that one loses."""
        return self.domains[self.worst_domain]

    @property
    def label(self) -> str:
        """What the file will be named after: `REAP-0.12-NARROW-0.16`."""
        return self.narrowing.full_label(self.plan)

    @property
    def gates(self) -> tuple[Outcome, ...]:
        """What the gates that were asked for find."""
        figures = {name: {"kld": kld} for name, kld in self.domains.items()}
        return tuple(gate.check(figures, {"kld": self.mean}) for gate in self.asked)

    @property
    def ok(self) -> bool:
        """Whether no gate fails."""
        return not any(outcome.failed for outcome in self.gates)


def masks_of(model: Model, plan: PruningPlan, narrowing: Narrowing) -> Fewer:
    """The neurons that stay, as masks, in the blocks that decoding runs."""
    return {block: FewerNeurons(kept, narrowing.neurons[block]) for block, kept in mask_of(model, plan).items()}
