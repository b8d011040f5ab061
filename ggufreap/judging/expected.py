"""What narrower experts would cost, before what makes up for their neurons is computed.

Nothing makes up for neurons that are masked, so fewer are masked than would go: as many as change the residual stream
about as much as all of them do when others make up for them (ggufreap.narrowing.solving.Solved). What that costs is
measured, and taken by the share that the two changes have of each other. How near it comes to what files lose stands
in tests/benchmarks/README.md.
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
from ggufreap.narrowing import Ids, Narrowing
from ggufreap.planning import PruningPlan
from ggufreap.rewriting import Narrow, lower

FORESEEN = ("kld",)  # the metrics that are


@dataclass(frozen=True)
class Expected:
    """One plan and a width of its experts, and the exact size of the file.

    `whole` and `masked` were measured: the plan alone, and with neurons masked as well; what goes changes the residual
    stream `share` times as much as these.
    """

    plan: PruningPlan
    narrowing: Narrowing
    nbytes: int
    whole: Comparison
    masked: Comparison
    share: float
    asked: tuple[Gate, ...]

    @classmethod
    def of(
        cls,
        model: Model,
        narrowing: Narrowing,
        share: float,
        whole: Candidate,
        masked: Candidate,
        asked: tuple[Gate, ...],
    ) -> Self:
        """What was found of a plan for `model` whose experts have this `narrowing`."""
        out = naming.target(model.path, None, narrowing.full_label(whole.plan))
        nbytes = lower(model, whole.plan, out, narrow=Narrow(narrowing)).nbytes
        return cls(whole.plan, narrowing, nbytes, whole.comparison, masked.comparison, share, asked)

    @property
    def domains(self) -> Mapping[str, float]:
        """Domain -> the mean KLD that is expected."""
        return {
            name: meters.kld + self.share * (self.masked.domains[name].kld - meters.kld)
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


def masks_of(model: Model, plan: PruningPlan, neurons: Mapping[int, Ids]) -> Fewer:
    """The neurons that stay, as masks, in the blocks that decoding runs."""
    return {block: FewerNeurons(kept, neurons[block]) for block, kept in mask_of(model, plan).items()}
