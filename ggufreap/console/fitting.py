"""What fits: the frontier of sizes and losses, and the files that were made for a memory."""

from dataclasses import asdict
from itertools import chain
from typing import Any

from ggufreap.console.account import draw_account, plain_account
from ggufreap.console.draw import Drawers, Plain, say, styled, table
from ggufreap.console.evaluation import plain_comparison
from ggufreap.console.handover import draw_handover, plain_handover
from ggufreap.console.stages import draw_verification, plain_verification
from ggufreap.fitting import KINDS, Prospect, Step
from ggufreap.showing import shown
from ggufreap.units import size
from ggufreap.verbs import Fitted, Frontier
from ggufreap.verbs.contest import Made

_MEASURED = (
    "what fewer experts lose was measured by masking; what fewer neurons and types lose is tabulated from another model"
)
_TABULATED = "all of it from tables of another model, nothing was measured on this one (give {})"


def _frontier(frontier: Frontier) -> None:
    say(
        styled(shown(frontier.model), "bold"), f" {size(frontier.nbytes)}, {frontier.n_prospects:,} files could be made"
    )
    kinds = KINDS[:-1] if frontier.not_narrowed else KINDS
    rows = [
        (size(step.nbytes), *chain.from_iterable(_shown(step.kinds[kind], step) for kind in kinds))
        for step in frontier.steps
    ]
    kept = ("unpruned (gate/up, down, rest)", "experts kept: types", "experts x neurons kept: types")
    columns = ("up to", *chain.from_iterable((what, "KLD") for what, _ in zip(kept, kinds, strict=False)))
    table("The lowest estimates within each size, of mean KLD in nats per token (* the lowest)", columns, rows)
    say(f"estimates: {_MEASURED if frontier.curve.measured else _TABULATED.format('--stats and -f')}")
    if frontier.not_narrowed:
        say(f"no narrower experts are looked at: {frontier.not_narrowed}")
    say(frontier.verdict)
    if frontier.budget and frontier.fitting and frontier.fitting.winner:
        say(f"\n{frontier.budget.told}")
        best = frontier.fitting.winner
        say(styled(f"{best.label}:", "bold"), f"{best.nbytes:,} bytes, estimated KLD {best.loss:.4f}")


def _shown(prospect: Prospect | None, step: Step) -> tuple[str, str]:
    if prospect is None:
        return "-", "-"
    width = f" x {prospect.width}" if prospect.narrowed else ""
    kept = f"{prospect.n_keep}{width}: " if prospect.pruned else ""
    mark = " *" if prospect == step.winner else ""
    return f"{kept}{prospect.mix.label}", f"{prospect.loss:.4f}{mark}"


def _fitted(fitted: Fitted) -> None:
    best = fitted.best
    if not best.prospect.pruned and best.prospect.mix.type is None:
        say(styled("the model fits as it is", "bold"), f"({best.prospect.nbytes:,} bytes): nothing was made")
        return
    if best.pruned and best.pruned.verification:
        draw_verification(best.pruned.verification)
    rows = [
        (
            each.prospect.label,
            f"{each.prospect.nbytes:,}",
            f"{each.prospect.loss:.4f}",
            f"{each.comparison.mean.kld:.4f} ± {each.comparison.mean.kld_stderr:.4f}" if each.comparison else "-",
            "kept" if each is best else "removed",
        )
        for each in fitted.made
    ]
    table("What was made (mean KLD in nats per token)", ("file", "bytes", "estimated", "measured", ""), rows)
    source = _MEASURED if fitted.curve.measured else _TABULATED.format("--eval-file")
    say(f"estimates: {source}; {fitted.n_prospects:,} files could be made")
    if fitted.not_narrowed:
        say(f"no narrower experts were looked at: {fitted.not_narrowed}")
    if not best.prospect.pruned:
        say("not pruning is better: the file that was kept is the whole model in fewer bits")
    if fitted.account:
        draw_account(fitted.account)
    say(shown(best.path))
    if fitted.handover:
        draw_handover(fitted.handover)


def _plain_frontier(frontier: Frontier) -> dict[str, Any]:
    return {
        "model": frontier.model,
        "nbytes": frontier.nbytes,
        "n_prospects": frontier.n_prospects,
        "measured": frontier.curve.measured,
        "pruning": [{"removed": share, "kld": kld} for share, kld in sorted(frontier.curve.points.items())],
        "steps": [_plain_step(step) for step in frontier.steps],
        "budget": asdict(frontier.budget) | {"room": frontier.budget.room} if frontier.budget else None,
        "fitting": _plain_step(frontier.fitting) if frontier.fitting else None,
        "verdict": frontier.verdict,
        "not_narrowed": frontier.not_narrowed or None,
    }


def _plain_step(step: Step) -> dict[str, Any]:
    told = {kind: each and _plain_prospect(each) for kind, each in step.kinds.items()}
    return {"nbytes": step.nbytes, **told, "winner": step.winner and step.winner.kind}


def _plain_prospect(prospect: Prospect) -> dict[str, Any]:
    return {
        "n_keep": prospect.n_keep,
        "n_expert": prospect.n_expert,
        "n_ff_before": prospect.source_width,
        "n_ff_after": prospect.width,
        "types": list(prospect.mix.routed) or None,
        "type": prospect.mix.type,
        "nbytes": prospect.nbytes,
        "estimate": {
            "kld": prospect.loss,
            "pruning": prospect.pruning,
            "narrowing": prospect.narrowing,
            "types": prospect.mix.loss,
        },
    }


def _plain_fitted(fitted: Fitted) -> dict[str, Any]:
    return {
        "model": fitted.model,
        "path": str(fitted.best.path),
        "budget": asdict(fitted.budget) | {"room": fitted.budget.room},
        "n_prospects": fitted.n_prospects,
        "measured": fitted.curve.measured,
        "not_narrowed": fitted.not_narrowed or None,
        "made": [_plain_made(each) for each in fitted.made],
        "account": plain_account(fitted.account) if fitted.account else None,
        **plain_handover(fitted.handover),
    }


def _plain_made(made: Made) -> dict[str, Any]:
    verification = made.pruned.verification if made.pruned else None
    return {
        **_plain_prospect(made.prospect),
        "path": str(made.path),
        "comparison": plain_comparison(made.comparison) if made.comparison else None,
        "verification": plain_verification(verification) if verification else None,
    }


DRAWERS: Drawers = {Frontier: _frontier, Fitted: _fitted}
PLAIN: Plain = {Frontier: _plain_frontier, Fitted: _plain_fitted}
