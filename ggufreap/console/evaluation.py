"""The results of judging: what a model lost, and what pruning would cost."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ggufreap.console.draw import Drawers, Plain, say, styled, table
from ggufreap.evaluation import Comparison, Meters, Outcome
from ggufreap.judging import Candidate, Expected
from ggufreap.showing import shown
from ggufreap.units import size
from ggufreap.verbs import Evaluation, Preview

COLUMNS = ("KLD", "p90", "p99", "top-1", "1-TV", "PPL", "PPL ratio")


def _row(meters: Meters) -> tuple[str, ...]:
    return (
        f"{meters.kld:.4f} ± {meters.kld_stderr:.4f}",
        f"{meters.kld_p90:.3f}",
        f"{meters.kld_p99:.3f}",
        f"{meters.top1:.1%}",
        f"{meters.esap:.1%}",
        f"{meters.perplexity.value:.4f}",
        f"{meters.ppl_ratio:.4f} ± {meters.ppl_ratio_stderr:.4f}",
    )


def _evaluation(evaluation: Evaluation) -> None:
    against = f"against {evaluation.reference}, " if evaluation.reference else ""
    say(styled(shown(evaluation.model), "bold"), f"{against}{evaluation.n_chunks} chunks of {evaluation.n_ctx} tokens")
    if evaluation.comparison is None:
        rows = [(name, f"{each.value:.4f} ± {each.stderr:.5f}") for name, each in evaluation.perplexity.items()]
        table("Perplexity", ("domain", "PPL"), rows)
    else:
        draw_comparison(evaluation.comparison)
    draw_gates(evaluation.gates)


def draw_comparison(comparison: Comparison) -> None:
    """Every domain, and the mean over them."""
    rows = [(name, *_row(meters)) for name, meters in comparison.domains.items()]
    if len(rows) > 1:
        rows.append(("mean", *_row(comparison.mean)))
    table("What was lost (KLD in nats per token)", ("domain", *COLUMNS), rows)
    if len(rows) > 1:
        say(f"worst domain  {shown(comparison.worst_domain)}")
    low, high = comparison.mean.top1_interval
    say(f"top-1         {comparison.mean.top1:.2%}, between {low:.2%} and {high:.2%} (95 % Wilson interval)")


def draw_gates(outcomes: Sequence[Outcome]) -> None:
    """Which gates let it through."""
    for outcome in outcomes:
        mark = styled("FAILS", "red") if outcome.failed else styled("passes", "green")
        say(mark, f" {outcome.gate}: {outcome.value:.6g} ({shown(outcome.where)})")


def _preview(preview: Preview) -> None:
    n_chunks = ", ".join(f"{shown(name)} {count}" for name, count in preview.n_chunks.items())
    say(styled(shown(preview.model), "bold"), f" {size(preview.nbytes)}; chunks of {preview.n_ctx} tokens: {n_chunks}")
    rows, by_domain = [], []
    for candidate in preview.candidates:
        plan, mean, worst = candidate.plan, candidate.comparison.mean, candidate.comparison.worst
        name = _name(candidate, preview)
        rows.append(
            (
                name,
                f"{plan.n_keep}/{plan.n_expert}",
                size(candidate.nbytes),
                f"{mean.kld:.4f}",
                f"{worst.kld:.4f} {candidate.comparison.worst_domain}",
                f"{mean.kld_p99:.2f}",
                f"{mean.top1:.1%}",
                f"{mean.esap:.1%}",
                f"{mean.ppl_ratio:.3f}",
                "yes" if candidate.ok else "no",
            )
        )
        by_domain.append((name, *(f"{meters.kld:.4f}" for meters in candidate.comparison.domains.values())))
    columns = ("plan", "keeps", "file", "KLD", "worst", "p99", "top-1", "1-TV", "PPL x", "ok")
    table("What pruning would cost (KLD in nats per token, means over the domains)", columns, rows)
    if len(preview.n_chunks) > 1:
        say()
        table("KLD by domain", ("plan", *preview.n_chunks), by_domain)
    _narrower(preview)
    for ratio, reason in preview.refused.items():
        say(f"{ratio}   {reason}")
    say(styled("\nrecommended" if preview.recommended else "\nnone recommended", "bold"), preview.reason)


def _name(candidate: Candidate | Expected, preview: Preview) -> str:
    plan = candidate.plan
    return f"{plan.method} {plan.ratio}{' *' if candidate is preview.recommended else ''}"


def _narrower(preview: Preview) -> None:
    """What fewer neurons are expected to cost as well, where that was asked for."""
    if not preview.narrower:
        return
    rows = [
        (
            _name(each, preview),
            f"{each.plan.n_keep}/{each.plan.n_expert}",
            f"{each.narrowing.width}/{each.narrowing.source_width}",
            size(each.nbytes),
            f"{each.mean:.4f}",
            f"{each.worst_kld:.4f} {shown(each.worst_domain)}",
            "yes" if each.ok else "no",
        )
        for each in preview.narrower
    ]
    columns = ("plan", "keeps", "neurons", "file", "KLD", "worst", "ok")
    say()
    table("Expected with fewer neurons in every expert, an estimate (KLD in nats per token)", columns, rows)
    for remark in dict.fromkeys(line for each in preview.narrower for line in each.narrowing.remarks):
        say(f"note: {shown(remark)}")


def _plain_meters(meters: Meters) -> dict[str, Any]:
    return (
        asdict(meters)
        | meters.figures
        | {"top1_interval": meters.top1_interval, "ppl_stderr": meters.perplexity.stderr}
    )


def plain_comparison(comparison: Comparison) -> dict[str, Any]:
    """As JSON has it."""
    return {
        "mean": _plain_meters(comparison.mean),
        "worst_domain": comparison.worst_domain,
        "domains": {name: _plain_meters(meters) for name, meters in comparison.domains.items()},
    }


def _plain_evaluation(evaluation: Evaluation) -> dict[str, Any]:
    return asdict(evaluation) | {
        "comparison": evaluation.comparison and plain_comparison(evaluation.comparison),
        "gates": [asdict(outcome) for outcome in evaluation.gates],
    }


def _plain_preview(preview: Preview) -> dict[str, Any]:
    recommended = [candidate is preview.recommended for candidate in preview.narrower or preview.candidates]
    return {
        "model": preview.model,
        "nbytes": preview.nbytes,
        "n_ctx": preview.n_ctx,
        "n_chunks": preview.n_chunks,
        "candidates": [
            {
                "method": candidate.plan.method,
                "ratio": candidate.plan.ratio,
                "n_keep": candidate.plan.n_keep,
                "nbytes": candidate.nbytes,
                **plain_comparison(candidate.comparison),
                "gates": [asdict(outcome) for outcome in candidate.gates],
            }
            for candidate in preview.candidates
        ],
        "narrower": [
            {
                "method": each.plan.method,
                "ratio": each.plan.ratio,
                "n_keep": each.plan.n_keep,
                "width": each.narrowing.width,
                "source_width": each.narrowing.source_width,
                "nbytes": each.nbytes,
                "expected": {"mean": each.mean, "worst_domain": each.worst_domain, "domains": each.domains},
                "masked": plain_comparison(each.masked),
                "share": each.share,
                "gates": [asdict(outcome) for outcome in each.gates],
                "notes": each.narrowing.remarks,
            }
            for each in preview.narrower
        ],
        "refused": preview.refused,
        "recommended": recommended.index(True) if any(recommended) else None,
        "reason": preview.reason,
    }


DRAWERS: Drawers = {Evaluation: _evaluation, Preview: _preview}
PLAIN: Plain = {Evaluation: _plain_evaluation, Preview: _plain_preview}
