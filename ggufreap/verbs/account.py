"""What pruned files are worth: measured against the original on held-out text, compared with their rival, reported."""

import datetime
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ggufreap import blending, saliency
from ggufreap.architecture.layout import MoeLayout
from ggufreap.container import GgufFile, open_gguf
from ggufreap.coverage import Coverage
from ggufreap.errors import InputError
from ggufreap.evaluation import Outcome
from ggufreap.observation import DomainStatistics, Floats, Provenance, load
from ggufreap.options.engine import EngineSettings
from ggufreap.planning import PruningPlan, load_plan
from ggufreap.progress import Progress, silent
from ggufreap.reporting import Report, check_report, facts, write_report
from ggufreap.reporting import describe as described
from ggufreap.reporting import measured as facts_of
from ggufreap.rewriting import lower, write_skeleton
from ggufreap.showing import published
from ggufreap.verbs.candidates import RATIOS, Preview, preview
from ggufreap.verbs.choice import coverage
from ggufreap.verbs.data import TRYING_OUT
from ggufreap.verbs.judging import EqualSize, Judged, Measures, judge, judge_rival, kind_of
from ggufreap.verbs.stages import open_model
from ggufreap.verification import Verification
from ggufreap.version import __version__


@dataclass(frozen=True)
class Account:
    """All pruned files, their rival, the gates as they stand for the first file, and the report's files."""

    files: tuple[Judged, ...]
    equal_size: EqualSize | None
    gates: tuple[Outcome, ...]
    paths: tuple[Path, ...]

    @property
    def ok(self) -> bool:
        """Whether no gate fails."""
        return not any(outcome.failed for outcome in self.gates)


def report(
    model: str | Path,
    pruned: Sequence[str | Path],
    plan: PruningPlan | str | Path,
    out: str | Path | None = None,
    *,
    files: Sequence[str] = (),
    chunks: int | None = None,
    stats: str | Path | None = None,
    compare: bool = False,
    imatrix: str | Path | None = None,
    ratios: Sequence[str] = RATIOS,
    with_probes: bool = False,
    with_speed: bool = False,
    questions: Sequence[tuple[str, str]] = (),
    fail_if: Sequence[str] = (),
    command: str = "",
    recipe: str = "",
    verification: Verification | None = None,
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> Account:
    """Measure the `pruned` files of `model`, and write report.json, report.html and README.md into the folder `out`.

    `files`: held-out texts as for `eval`, without them nothing is measured on text. With `stats` the report shows
    scores, coverage and what the `ratios` would have cost. `compare`: also quantise the unpruned model to the size of
    the first file, with `imatrix` where it is given, and measure that. `questions`: (format, file) as for `tasks`.
    `fail_if`: gates on the first file.
    """
    if out is not None:
        check_report(Path(out))
    source, layout, _ = open_model(model)
    chosen = plan if isinstance(plan, PruningPlan) else load_plan(Path(plan))
    settings = settings or EngineSettings()
    if not pruned:
        raise InputError("no pruned file was given; name one or more")
    if (compare or fail_if) and not files:
        raise InputError("--compare and --fail-if judge by held-out text; give some, such as --eval-file FILE")
    measures = Measures(tuple(files), chunks, with_probes, with_speed, tuple(questions), tuple(fail_if), settings)
    judged = tuple(judge(source, Path(path), measures, progress) for path in pruned)
    rival = judge_rival(source, judged[0], measures, imatrix, progress) if compare else None
    paths: tuple[Path, ...] = ()
    if out is not None:
        curve = None
        if files and stats is not None and chosen.method in saliency.METHODS:
            curve = preview(
                source.path,
                files=files,
                stats=stats,
                ratios=sorted({*ratios, chosen.ratio}, key=float),
                methods=(chosen.method,),
                blend=chosen.blend or None,
                chunks=chunks,
                settings=settings,
                progress=progress,
            )
        known = _known(Path(stats), chosen) if stats is not None and chosen.method in saliency.METHODS else None
        facts_found = _facts(source, layout, chosen, judged, rival, curve, known)
        reproduction = facts.Reproduction(published(command), published(recipe)) if command else None
        paths = write_report(
            replace(facts_found, reproduction=reproduction, verification=_proof(verification)), Path(out)
        )
    return Account(judged, rival, judged[0].gates, paths)


@dataclass(frozen=True)
class _Known:
    """What the calibration tells."""

    statistics: DomainStatistics
    provenance: Provenance
    coverage: Coverage
    scores: Mapping[int, Floats]


def _known(stats: Path, plan: PruningPlan) -> _Known:
    statistics, provenance = load(stats)
    scores = blending.blend(statistics, plan.blend or blending.TOKENS, plan.method)
    by_block = dict(zip(statistics.blocks, scores, strict=True))
    return _Known(statistics, provenance, coverage(stats, plan), by_block)


def _facts(
    source: GgufFile,
    layout: MoeLayout,
    plan: PruningPlan,
    judged: Sequence[Judged],
    rival: EqualSize | None,
    curve: Preview | None,
    known: _Known | None,
) -> Report:
    first = judged[0]
    with tempfile.TemporaryDirectory(prefix="ggufreap-") as folder:  # the byte-exact file may be gone by now
        exact = open_gguf(write_skeleton(lower(source, layout, plan, Path(folder) / "exact.gguf"), Path(folder)))
        model = described.describe_model(source, layout, plan, exact)
    variants, before = [], None
    for each in judged:
        own, control = facts_of.describe_probes(each.probes) if each.probes else (None, None)
        overall, domains = facts_of.describe_comparison(each.comparison) if each.comparison else (None, ())
        subject = facts_of.describe_subject(
            each.nbytes,
            each.kind,
            {name: meters.perplexity for name, meters in each.comparison.domains.items()} if each.comparison else None,
            each.speed.speeds if each.speed else (),
            own,
            each.speed.memory if each.speed else None,
        )
        variants.append(
            facts.Variant(each.path.name, subject, overall, domains, tuple(map(facts_of.describe_task, each.tasks)))
        )
        before = before or control
    original = facts_of.describe_subject(
        source.nbytes,
        kind_of(source),
        speeds=first.speed.reference_speeds if first.speed else (),
        probes=before,
        memory=first.speed.reference_memory if first.speed else None,
    )
    if first.comparison:
        original = replace(original, perplexity=facts.Estimate(first.comparison.mean.ppl_reference))
    return Report(
        version=__version__,
        date=datetime.date.today().isoformat(),
        model=model,
        plan=described.describe_plan(plan, known.scores if known else {}),
        calibration=facts_of.describe_calibration(
            known.statistics, known.provenance, known.coverage, built_in=known.provenance.source == TRYING_OUT
        )
        if known
        else None,
        coverage=facts_of.describe_coverage(known.coverage) if known else (),
        curve=tuple(
            facts_of.describe_candidate(
                each.plan.ratio, each.plan.method, each.plan.n_keep, each.nbytes, each.comparison
            )
            for each in curve.candidates
        )
        if curve
        else (),
        original=original,
        variants=tuple(variants),
        equal_size=(
            facts.EqualSize(
                first.path.name,
                f"unpruned {rival.kind}",
                rival.kind,
                rival.nbytes,
                facts.Estimate(rival.comparison.mean.kld, rival.comparison.mean.kld_stderr),
                facts.Estimate(first.comparison.mean.kld, first.comparison.mean.kld_stderr),
            ),
        )
        if rival and first.comparison
        else (),
        files=tuple(described.describe_file(each.path, each.kind) for each in judged),
    )


def _proof(verification: Verification | None) -> facts.Verification | None:
    if verification is None:
        return None
    return facts.Verification(verification.ok, tuple(f"{check.name}: {check.detail}" for check in verification.checks))
