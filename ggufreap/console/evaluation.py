"""The results of judging: what a model lost, and what pruning would cost."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ggufreap.console.draw import Drawers, Plain, say, styled, table
from ggufreap.evaluation import Comparison, Meters, Outcome
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


def _evaluation(found: Evaluation) -> None:
    against = f"against {found.reference}, " if found.reference else ""
    say(styled(shown(found.model), "bold"), f"{against}{found.n_chunks} chunks of {found.n_ctx} tokens")
    if found.comparison is None:
        rows = [(name, f"{each.value:.4f} ± {each.stderr:.5f}") for name, each in found.perplexity.items()]
        table("Perplexity", ("domain", "PPL"), rows)
    else:
        draw_comparison(found.comparison)
    draw_gates(found.gates)


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


def _preview(found: Preview) -> None:
    n_chunks = ", ".join(f"{shown(name)} {count}" for name, count in found.n_chunks.items())
    say(styled(shown(found.model), "bold"), f" {size(found.nbytes)}; chunks of {found.n_ctx} tokens: {n_chunks}")
    rows, by_domain = [], []
    for candidate in found.candidates:
        plan, mean, worst = candidate.plan, candidate.comparison.mean, candidate.comparison.worst
        name = f"{plan.method} {plan.ratio}{' *' if candidate is found.recommended else ''}"
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
    if len(found.n_chunks) > 1:
        say()
        table("KLD by domain", ("plan", *found.n_chunks), by_domain)
    for ratio, reason in found.refused.items():
        say(f"{ratio}   {reason}")
    say(styled("\nrecommended" if found.recommended else "\nnone recommended", "bold"), found.reason)


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


def _plain_evaluation(found: Evaluation) -> dict[str, Any]:
    return asdict(found) | {
        "comparison": found.comparison and plain_comparison(found.comparison),
        "gates": [asdict(outcome) for outcome in found.gates],
    }


def _plain_preview(found: Preview) -> dict[str, Any]:
    recommended = [candidate is found.recommended for candidate in found.candidates]
    return {
        "model": found.model,
        "nbytes": found.nbytes,
        "n_ctx": found.n_ctx,
        "n_chunks": found.n_chunks,
        "candidates": [
            {
                "method": candidate.plan.method,
                "ratio": candidate.plan.ratio,
                "n_keep": candidate.plan.n_keep,
                "nbytes": candidate.nbytes,
                **plain_comparison(candidate.comparison),
                "gates": [asdict(outcome) for outcome in candidate.gates],
            }
            for candidate in found.candidates
        ],
        "refused": found.refused,
        "recommended": recommended.index(True) if any(recommended) else None,
        "reason": found.reason,
    }


DRAWERS: Drawers = {Evaluation: _evaluation, Preview: _preview}
PLAIN: Plain = {Evaluation: _plain_evaluation, Preview: _plain_preview}
