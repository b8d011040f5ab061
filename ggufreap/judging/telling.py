"""The facts of a report, out of what was judged."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from ggufreap import blending
from ggufreap.architecture.layout import bind
from ggufreap.architecture.width import expert_width
from ggufreap.container import open_gguf
from ggufreap.coverage import Coverage
from ggufreap.files import private_folder
from ggufreap.judging.judged import EqualSize, Judged, kind_of
from ggufreap.judging.masking import Candidate
from ggufreap.model import Model
from ggufreap.narrowing import Narrowing
from ggufreap.observation import Floats, Stored
from ggufreap.planning import PruningPlan
from ggufreap.reporting import Report, facts, known_facts, measured_facts
from ggufreap.rewriting import Narrow, lower, write_skeleton
from ggufreap.rewriting.metadata import COMPENSATED, WIDTH_BEFORE
from ggufreap.selection.methods import method_of
from ggufreap.version import __version__


@dataclass(frozen=True)
class Known:
    """What the calibration tells: block -> scores `[n_expert]`, and what stays; `built_in`: on text of this program."""

    stored: Stored
    coverage: Coverage
    scores: Mapping[int, Floats]
    built_in: bool

    @classmethod
    def of(cls, stored: Stored, plan: PruningPlan, coverage: Coverage, built_in: str) -> Self:
        """Of the statistics that a plan was made from; `built_in`: what such text is called."""
        scores = method_of(plan.scored_by).score(stored.domain_statistics(), plan.blend or blending.TOKENS)
        by_block = dict(zip(stored.blocks, scores, strict=True))
        return cls(stored, coverage, by_block, stored.provenance.source == built_in)

    @property
    def calibration(self) -> facts.Calibration:
        """In the words of the report."""
        statistics, provenance = self.stored.domain_statistics(), self.stored.provenance
        return measured_facts.calibration_facts(statistics, provenance, self.coverage, built_in=self.built_in)


def tell(
    model: Model,
    plan: PruningPlan,
    judged: Sequence[Judged],
    rival: EqualSize | None,
    curve: Sequence[Candidate],
    known: Known | None,
) -> Report:
    """All facts; what was not measured is left out."""
    return Report(
        version=__version__,
        date=datetime.date.today().isoformat(),
        model=_model(model, plan, judged[0].path),
        plan=known_facts.plan_facts(plan, known.scores if known else {}),
        calibration=known.calibration if known else None,
        coverage=measured_facts.coverage_facts(known.coverage) if known else (),
        curve=tuple(
            measured_facts.candidate_facts(
                each.plan.ratio, each.plan.method, each.plan.n_keep, each.nbytes, each.comparison
            )
            for each in curve
        ),
        original=_original(model, judged),
        variants=tuple(map(_variant, judged)),
        equal_size=_equal_size(rival),
        files=tuple(known_facts.file_facts(each.path, each.kind) for each in judged),
    )


def _model(model: Model, plan: PruningPlan, pruned: Path) -> facts.Model:
    """The model before and after; the byte-exact file may be gone by now, so its header is written once more. How wide
    its experts are, what was made of it says.
    """
    made, narrow = open_gguf(pruned), None
    if (before := made.get(WIDTH_BEFORE)) is not None:
        width = expert_width(made, bind(made))
        narrow = Narrow(Narrowing.of_first(int(before), width, plan.keep, plan.n_keep))
    with private_folder() as folder:
        script = lower(model, plan, Path(folder) / "exact.gguf", narrow=narrow)
        exact = open_gguf(write_skeleton(script, Path(folder)))
        return known_facts.model_facts(model, plan, exact, bool(made.get(COMPENSATED)))


def _variant(each: Judged) -> facts.Variant:
    own = measured_facts.probes_facts(each.probes)[0] if each.probes else None
    overall, domains = measured_facts.comparison_facts(each.comparison) if each.comparison else (None, ())
    subject = measured_facts.subject_facts(
        each.nbytes,
        each.kind,
        {name: meters.perplexity for name, meters in each.comparison.domains.items()} if each.comparison else None,
        each.speed.speeds if each.speed else (),
        own,
        each.speed.memory if each.speed else None,
    )
    return facts.Variant(each.path.name, subject, overall, domains, tuple(map(measured_facts.task_facts, each.tasks)))


def _original(model: Model, judged: Sequence[Judged]) -> facts.Subject:
    first = judged[0]
    subject = measured_facts.subject_facts(
        model.file.nbytes,
        kind_of(model.file),
        speeds=first.speed.reference_speeds if first.speed else (),
        probes=measured_facts.probes_facts(first.probes)[1] if first.probes else None,
        memory=first.speed.reference_memory if first.speed else None,
    )
    if first.comparison is None:
        return subject
    return replace(subject, perplexity=facts.Estimate(first.comparison.mean.ppl_reference))


def _equal_size(rival: EqualSize | None) -> tuple[facts.EqualSize, ...]:
    if rival is None or rival.pruned.comparison is None:
        return ()
    theirs, ours = rival.comparison.mean, rival.pruned.comparison.mean
    return (
        facts.EqualSize(
            rival.pruned.path.name,
            f"unpruned {rival.kind}",
            rival.kind,
            rival.nbytes,
            facts.Estimate(theirs.kld, theirs.kld_stderr),
            facts.Estimate(ours.kld, ours.kld_stderr),
        ),
    )
