"""What plans would cost, shown by masking experts in one loaded model: nothing is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from ggufreap import naming
from ggufreap.activity import doing
from ggufreap.corpus import Corpus
from ggufreap.engine.neuron_mask import Fewer
from ggufreap.engine.protocol import Keep
from ggufreap.evaluation import Comparison, Outcome, compare_passes, of_engine, threads, together
from ggufreap.evaluation.comparing import Forward, Passes, in_turn
from ggufreap.evaluation.scores import first_scored
from ggufreap.judging.exam import Exam, open_engine
from ggufreap.model import Model
from ggufreap.observation import Stored
from ggufreap.planning import PruningPlan
from ggufreap.progress import Progress, silent
from ggufreap.rewriting import lower


@dataclass(frozen=True)
class Candidate:
    """One plan, the exact size of its file, and what it costs; `gates` as they stand for it."""

    plan: PruningPlan
    nbytes: int
    comparison: Comparison
    gates: tuple[Outcome, ...]

    @property
    def ok(self) -> bool:
        """Whether no gate fails."""
        return not any(outcome.failed for outcome in self.gates)

    @property
    def label(self) -> str:
        """What the file will be named after: `REAP-0.12`."""
        return self.plan.label

    @property
    def worst_kld(self) -> float:
        """The mean KLD of the domain that loses most."""
        return self.comparison.worst.kld

    @classmethod
    def of(cls, model: Model, plan: PruningPlan, comparison: Comparison, exam: Exam) -> Self:
        """What was found of a plan for `model`."""
        out = naming.target(model.path, None, plan.label)
        nbytes = lower(model, plan, out).nbytes
        return cls(plan, nbytes, comparison, exam.outcomes(comparison))


def mask_of(model: Model, plan: PruningPlan) -> Keep:
    """The experts that a plan keeps, of the blocks that decoding runs."""
    return {block.index: plan.keep[block.index] for block in model.layout.trunk}


class Masking:
    """The loaded model and the tokenised text: measures plans as often as asked, `n_plans` of them at a time.

    The original and the plans run at once where there is memory for it.
    """

    def __init__(self, model: Model, exam: Exam, n_plans: int, progress: Progress = silent) -> None:
        self._model, self._exam, self._progress = model, exam, progress
        self._engine = open_engine(model.file, exam.settings, n_plans + 1)
        self._domains: dict[str, Corpus] = {}

    def __enter__(self) -> Self:
        try:
            self._domains = self._exam.tokenised(self._engine, self._model.file)
        except BaseException:
            self._engine.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.close()

    def warn_of_source(self, stored: Stored) -> None:
        """Say which of the texts was calibrated on."""
        self._exam.warn_of_source(self._engine, self._model.file, stored.provenance)

    @property
    def n_chunks(self) -> Mapping[str, int]:
        """Domain -> its chunks."""
        return {name: len(corpus.chunks) for name, corpus in self._domains.items()}

    def measure(self, plans: Sequence[PruningPlan]) -> list[Candidate]:
        """One pass of the original and one of every plan."""
        keeps = [None, *(mask_of(self._model, plan) for plan in plans)]
        return self._compared(plans, together(self._engine, keeps))

    def measure_fewer(self, plans: Sequence[PruningPlan], fewer: Sequence[Fewer]) -> list[Candidate]:
        """The same with `fewer` neurons in the experts of each plan, one after the other."""

        def masked(plan: PruningPlan, neurons: Fewer) -> Forward:
            keep = mask_of(self._model, plan)
            return lambda chunk: self._engine.logits(chunk, keep, first_scored(len(chunk)), neurons)[:-1]

        forwards = [of_engine(self._engine), *map(masked, plans, fewer)]
        return self._compared(plans, in_turn(forwards))

    def _compared(self, plans: Sequence[PruningPlan], passes: Passes) -> list[Candidate]:
        with (
            doing("masking experts of", self._model.path),
            threads(self._exam.settings.cpu_threads) as run,
        ):
            comparisons = compare_passes(passes, len(plans), self._domains, run, self._progress)
        return [
            Candidate.of(self._model, plan, comparison, self._exam)
            for plan, comparison in zip(plans, comparisons, strict=True)
        ]
