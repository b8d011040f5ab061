"""What fits: the frontier of sizes and losses, and the files that were made for a memory."""

from dataclasses import asdict
from typing import Any

from ggufreap.console.account import draw_account, plain_account
from ggufreap.console.draw import Drawers, Plain, say, styled, table
from ggufreap.console.evaluation import plain_comparison
from ggufreap.console.stages import draw_verification, plain_verification
from ggufreap.fitting import Candidate, Step
from ggufreap.showing import shown
from ggufreap.units import size
from ggufreap.verbs import Fitted, Frontier
from ggufreap.verbs.fit import Made

_MEASURED = "what pruning loses was measured by masking, what types lose is tabulated from another model"
_TABULATED = "all of it from tables of another model, nothing was measured on this one (give --stats and -f)"


def _frontier(found: Frontier) -> None:
    say(styled(shown(found.model), "bold"), f" {size(found.nbytes)}, {found.n_candidates:,} candidates")
    rows = [
        (
            size(step.nbytes),
            *_shown(step.unpruned, step),
            *_shown(step.pruned, step),
        )
        for step in found.steps
    ]
    columns = ("up to", "unpruned (gate/up, down, rest)", "KLD", "pruned (experts kept, types)", "KLD")
    table("The lowest estimates within each size, of mean KLD in nats per token (* the lower one)", columns, rows)
    say(f"estimates: {_MEASURED if found.curve.measured else _TABULATED}")
    say(found.verdict)
    if found.budget and found.fitting and found.fitting.winner:
        say(f"\n{found.budget.told}")
        best = found.fitting.winner
        say(styled(best.label, "bold"), f": {best.nbytes:,} bytes, estimated KLD {best.loss:.4f}")


def _shown(candidate: Candidate | None, step: Step) -> tuple[str, str]:
    if candidate is None:
        return "-", "-"
    kept = f"{candidate.n_keep}: " if candidate.pruned else ""
    mark = " *" if candidate == step.winner else ""
    return f"{kept}{candidate.mix.label}", f"{candidate.loss:.4f}{mark}"


def _fitted(found: Fitted) -> None:
    best = found.best
    say(found.budget.told)
    if not best.candidate.pruned and best.candidate.mix.type is None:
        say(styled("the model fits as it is", "bold"), f" ({best.candidate.nbytes:,} bytes): nothing was made")
        return
    if best.pruned and best.pruned.verification:
        draw_verification(best.pruned.verification)
    rows = [
        (
            each.candidate.label,
            f"{each.candidate.nbytes:,}",
            f"{each.candidate.loss:.4f}",
            f"{each.comparison.mean.kld:.4f} ± {each.comparison.mean.kld_stderr:.4f}" if each.comparison else "-",
            "kept" if each is best else "removed",
        )
        for each in found.made
    ]
    table("What was made (mean KLD in nats per token)", ("file", "bytes", "estimated", "measured", ""), rows)
    source = _MEASURED if found.curve.measured else _TABULATED
    say(f"estimates: {source}; of {found.n_candidates:,} candidates")
    if not best.candidate.pruned:
        say("not pruning is better: the file that was kept is the whole model in fewer bits")
    if found.account:
        draw_account(found.account)
    say(shown(best.path))


def _plain_frontier(found: Frontier) -> dict[str, Any]:
    return {
        "model": found.model,
        "nbytes": found.nbytes,
        "n_candidates": found.n_candidates,
        "measured": found.curve.measured,
        "pruning": [{"removed": share, "kld": kld} for share, kld in sorted(found.curve.points.items())],
        "steps": [_plain_step(step) for step in found.steps],
        "budget": asdict(found.budget) | {"room": found.budget.room} if found.budget else None,
        "fitting": _plain_step(found.fitting) if found.fitting else None,
        "verdict": found.verdict,
    }


def _plain_step(step: Step) -> dict[str, Any]:
    winner = step.winner and ("pruned" if step.winner.pruned else "unpruned")
    kinds = {"unpruned": step.unpruned, "pruned": step.pruned}
    told = {kind: each and _plain_candidate(each) for kind, each in kinds.items()}
    return {"nbytes": step.nbytes, **told, "winner": winner}


def _plain_candidate(candidate: Candidate) -> dict[str, Any]:
    return {
        "n_keep": candidate.n_keep,
        "n_expert": candidate.n_expert,
        "width": candidate.width,
        "types": list(candidate.mix.routed) or None,
        "type": candidate.mix.type,
        "nbytes": candidate.nbytes,
        "estimate": {
            "kld": candidate.loss,
            "pruning": candidate.pruning,
            "narrowing": candidate.narrowing,
            "types": candidate.mix.loss,
        },
    }


def _plain_fitted(found: Fitted) -> dict[str, Any]:
    return {
        "model": found.model,
        "path": str(found.best.path),
        "budget": asdict(found.budget) | {"room": found.budget.room},
        "n_candidates": found.n_candidates,
        "measured": found.curve.measured,
        "made": [_plain_made(each) for each in found.made],
        "account": plain_account(found.account) if found.account else None,
    }


def _plain_made(made: Made) -> dict[str, Any]:
    verification = made.pruned.verification if made.pruned else None
    return {
        **_plain_candidate(made.candidate),
        "path": str(made.path),
        "comparison": plain_comparison(made.comparison) if made.comparison else None,
        "verification": plain_verification(verification) if verification else None,
    }


DRAWERS: Drawers = {Frontier: _frontier, Fitted: _fitted}
PLAIN: Plain = {Frontier: _plain_frontier, Fitted: _plain_fitted}
