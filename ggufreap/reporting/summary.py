"""What follows from the facts: the verdict, the table before and after, the worst domains, the caveats.

It stands in `report.json` beside the facts, so that whatever is shown can be looked up there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from ggufreap.limits import FIT, SCALE, TIE, UNFIT, level_of
from ggufreap.reporting.caveats import caveats_of
from ggufreap.reporting.facts import Candidate, EqualSize, Estimate, Meters, Report, Speed, Variant


def summary_of(report: Report) -> dict[str, Any]:
    """The part `summary` of `report.json`."""
    model = report.model
    return {
        "removed": model.n_expert_before - model.n_expert_after,
        "removed_share": 1 - model.n_expert_after / model.n_expert_before,
        "narrowed_share": _narrowed_share(report),
        "size_change": model.nbytes_after / model.nbytes_before - 1,
        "measured": any(variant.domains or variant.overall for variant in report.variants),
        "variants": [_variant(report, variant) for variant in report.variants],
        "curve": [_worst(candidate) for candidate in report.curve],
        "equal_size": [_rivalry(report, rival) for rival in report.equal_size],
        "scale": [{"level": level, "below": below} for level, below in SCALE],
        "caveats": list(caveats_of(report)),
    }


def _narrowed_share(report: Report) -> float | None:
    """The share of the neurons that is gone of every expert; None where all stay."""
    before, after = report.model.n_ff_before, report.model.n_ff_after
    return 1 - after / before if before and after else None


def mean_kld(overall: Meters | None, domains: Sequence[Meters]) -> float | None:
    """The overall mean where it was measured, else the mean of the domains."""
    if overall is not None:
        return overall.kld.value
    return fmean(meters.kld.value for meters in domains) if domains else None


def _worst(measured: Candidate | Variant) -> dict[str, Any]:
    worst = max(measured.domains, key=lambda meters: meters.kld.value, default=None)
    return {
        "kld": mean_kld(measured.overall, measured.domains),
        "worst_domain": worst.domain if worst else None,
        "worst_kld": worst.kld.value if worst else None,
    }


def _variant(report: Report, variant: Variant) -> dict[str, Any]:
    levels = {meters.domain: level_of(meters.kld.value) for meters in variant.domains}
    worst = _worst(variant)
    return worst | {
        "size_change": variant.itself.nbytes / _nbytes_before(report) - 1,
        "level": level_of(worst["kld"]) if worst["kld"] is not None else None,
        "levels": list(levels.values()),
        "fit": [domain for domain, level in levels.items() if level in FIT],
        "care": [domain for domain, level in levels.items() if level not in FIT + UNFIT],
        "unfit": [domain for domain, level in levels.items() if level in UNFIT],
        "beaten": any(
            rival.variant == variant.name and _rivalry(report, rival)["verdict"] == "unpruned"
            for rival in report.equal_size
        ),
        "comparison": list(_comparison(report, variant)),
    }


def _nbytes_before(report: Report) -> int:
    return report.original.nbytes if report.original else report.model.nbytes_before


def _comparison(report: Report, variant: Variant) -> Iterator[dict[str, Any]]:
    """Rows original / pruned / delta; a row needs the pruned value."""
    model, before, after = report.model, report.original, variant.itself
    overall = variant.overall
    for what, shape, delta, original, pruned in (
        ("type", "text", "none", before and before.type, after.type or None),
        ("size", "size", "relative", _nbytes_before(report), after.nbytes),
        ("experts per block", "count", "relative", model.n_expert_before, model.n_expert_after),
        ("neurons per expert", "count", "relative", model.n_ff_before, model.n_ff_after),
        ("parameters", "parameters", "relative", model.parameters_before, model.parameters_after),
        ("active per token", "parameters", "relative", model.active_before, model.active_after),
        ("memory", "size", "relative", before and before.memory, after.memory),
        (
            "perplexity",
            "decimal",
            "relative",
            (overall and overall.ppl_before) or (before and before.perplexity),
            (overall and overall.ppl_after) or after.perplexity,
        ),
        *((task.name, "share", "points", task.before, task.after) for task in variant.tasks),
        *_probes(report, variant),
        *_speeds(before.speed if before else (), after.speed),
    ):
        if pruned is not None:
            yield _row(what, shape, delta, original, pruned)


def _probes(report: Report, variant: Variant) -> Iterator[tuple[str, str, str, float | None, float | None]]:
    before, after = report.original.probes if report.original else None, variant.itself.probes
    if after is None:
        return
    for what, shape, delta, field in (
        ("answers that loop", "share", "points", "loops"),
        ("answers that never end", "share", "points", "endless"),
        ("drift of answers", "decimal", "change", "drift"),
    ):
        yield what, shape, delta, getattr(before, field, None), getattr(after, field)


def _speeds(
    before: Sequence[Speed], after: Sequence[Speed]
) -> Iterator[tuple[str, str, str, Estimate | None, Estimate | None]]:
    known = {speed.batch: speed for speed in before}
    for name, field in (("prompt", "pp"), ("generation", "tg")):
        for speed in after:
            original = getattr(known.get(speed.batch), field, None)
            yield f"{name}, batch {speed.batch}", "speed", "relative", original, getattr(speed, field)


def _row(what: str, shape: str, delta: str, original: Any, pruned: Any) -> dict[str, Any]:
    """One row; `shape` and `as` are the formats of its values and of the change."""
    if delta == "none":
        return {"what": what, "shape": shape, "original": original, "pruned": pruned, "delta": None, "as": "text"}
    first, second = (side.value if isinstance(side, Estimate) else side for side in (original, pruned))
    change = None
    if first is not None and (delta != "relative" or first):
        change = second / first - 1 if delta == "relative" else second - first
    plain = [asdict(side) if isinstance(side, Estimate) else side for side in (original, pruned)]
    return {"what": what, "shape": shape, "original": plain[0], "pruned": plain[1], "delta": change, "as": delta}


def _rivalry(report: Report, rival: EqualSize) -> dict[str, Any]:
    """Which of two files of about one size is nearer to the unpruned model."""
    difference = rival.kld_pruned.value - rival.kld.value
    stderr = ((rival.kld_pruned.stderr or 0.0) ** 2 + (rival.kld.stderr or 0.0) ** 2) ** 0.5
    tie = abs(difference) <= TIE * stderr
    nbytes = next(variant.itself.nbytes for variant in report.variants if variant.name == rival.variant)
    return {
        "nbytes_pruned": nbytes,
        "difference": difference,
        "verdict": "equal" if tie else "pruned" if difference < 0 else "unpruned",
    }
