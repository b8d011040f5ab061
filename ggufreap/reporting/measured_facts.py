"""Facts out of what was measured: statistics and coverage, comparisons, probes, tasks, speed."""

import re
from collections.abc import Iterable, Mapping, Sequence

from ggufreap import coverage as coverages
from ggufreap.evaluation import Comparison, Meters, geometric_mean
from ggufreap.evaluation.perplexity import Perplexity
from ggufreap.evaluation.probes import DRIFT, Probes
from ggufreap.evaluation.proportions import Share
from ggufreap.evaluation.speed import Speed
from ggufreap.evaluation.tasks import TaskReport
from ggufreap.observation import DomainStatistics, Provenance
from ggufreap.reporting import facts
from ggufreap.reporting.known_facts import routing_facts
from ggufreap.showing import file_name

_TEST = re.compile(r"(pp|tg)\d+(?: x(\d+))?")


def calibration_facts(
    statistics: DomainStatistics, provenance: Provenance, coverage: coverages.Coverage, built_in: bool
) -> facts.Calibration:
    """What the model read before the choice, and how far chance had a hand in it."""
    return facts.Calibration(
        n_ctx=provenance.n_ctx,
        n_tokens=statistics.n_tokens,
        sha256=provenance.corpus,
        sources=tuple(
            facts.Source(
                source.name if source.is_hub else file_name(source.name),
                source.domain,
                source.revision,
                source.subset,
                source.split,
                source.samples,
                source.tokens,
                source.sha256,
                source.held_out,
            )
            for source in provenance.sources
        ),
        built_in=built_in,
        count_mode=f"{provenance.count} tokens",
        split_half=coverage.stability.removed if coverage.stability else None,
        routed=routing_facts(statistics.total),
    )


def coverage_facts(coverage: coverages.Coverage) -> tuple[facts.Coverage, ...]:
    """What stays of each domain."""
    return tuple(facts.Coverage(row.domain, row.retained, row.lowest, row.lowest_block) for row in coverage.domains)


def comparison_facts(comparison: Comparison) -> tuple[facts.Meters, tuple[facts.Meters, ...]]:
    """The mean over the domains, and each of them."""
    each = tuple(meters_facts(domain, meters) for domain, meters in comparison.domains.items())
    return meters_facts("all domains", comparison.mean), each


def meters_facts(domain: str, meters: Meters) -> facts.Meters:
    """One domain, or the mean over all."""
    return facts.Meters(
        domain,
        facts.Estimate(meters.kld, meters.kld_stderr),
        meters.n_scored,
        meters.kld_median,
        meters.kld_p90,
        meters.kld_p99,
        top1=facts.Estimate(meters.top1),
        overlap=facts.Estimate(meters.esap),
        ppl_before=facts.Estimate(meters.ppl_reference),
        ppl_after=perplexity_facts(meters.perplexity),
        ppl_ratio=facts.Estimate(meters.ppl_ratio, meters.ppl_ratio_stderr),
    )


def perplexity_facts(perplexity: Perplexity) -> facts.Estimate:
    """With the standard error that llama-perplexity prints."""
    return facts.Estimate(perplexity.value, perplexity.stderr)


def candidate_facts(ratio: str, method: str, n_keep: int, nbytes: int, comparison: Comparison) -> facts.Candidate:
    """One point of the curve."""
    overall, domains = comparison_facts(comparison)
    return facts.Candidate(float(ratio), method, n_keep, domains, nbytes, overall)


def task_facts(report: TaskReport) -> facts.Task:
    """The accuracy that published figures are: normalised by length."""
    accuracy = report.normalised
    low, high = accuracy.share.interval
    before = accuracy.reference.value if accuracy.reference else 0.0
    return facts.Task(report.task, accuracy.share.n, before, accuracy.share.value, low, high, accuracy.p_value)


def probes_facts(probes: Probes) -> tuple[facts.Probes, facts.Probes | None]:
    """Of the model and of its control, over all temperatures; drift is against the control."""

    def share(sign: str, of: str) -> float:
        shares: list[Share] = [getattr(probes, of)(sign, temperature) for temperature in probes.temperatures]
        return sum(each.count for each in shares) / max(1, sum(each.n for each in shares))

    n = len(probes.probes)
    own = facts.Probes(n, share("loop", "share"), share("endless", "share"), share(DRIFT, "share"))
    if probes.control is None:
        return own, None
    return own, facts.Probes(n, share("loop", "control_share"), share("endless", "control_share"))


def speeds_facts(speeds: Iterable[Speed]) -> tuple[facts.Speed, ...]:
    """Per number of texts at once; reading is measured with one."""
    by_batch: dict[int, dict[str, facts.Estimate]] = {}
    for speed in speeds:
        if match := _TEST.fullmatch(speed.test):
            by_batch.setdefault(int(match[2] or 1), {})[match[1]] = facts.Estimate(speed.mean, speed.deviation)
    return tuple(facts.Speed(batch, each.get("pp"), each.get("tg")) for batch, each in sorted(by_batch.items()))


def subject_facts(
    nbytes: int,
    kind: str,
    perplexity: Mapping[str, Perplexity] | None = None,
    speeds: Sequence[Speed] = (),
    probes: facts.Probes | None = None,
    memory: int | None = None,
) -> facts.Subject:
    """What was measured of one model by itself; perplexity is the geometric mean over the domains."""
    mean = facts.Estimate(geometric_mean(perplexity)) if perplexity else None
    return facts.Subject(nbytes, kind, mean, memory, speeds_facts(speeds), probes)
