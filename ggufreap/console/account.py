"""What pruned files are worth, in short; the report has the rest."""

from dataclasses import asdict
from typing import Any

from ggufreap.console.draw import Drawers, Plain, say, styled, table
from ggufreap.console.evaluation import draw_comparison, draw_gates, plain_comparison
from ggufreap.judging.judged import Judged
from ggufreap.showing import shown
from ggufreap.units import size
from ggufreap.verbs import Account


def draw_account(account: Account) -> None:
    """Every file against the original, the rival of equal size, the gates and the report's files."""
    measured = [(each, each.comparison) for each in account.files if each.comparison]
    rows = [
        (
            each.kind,
            size(each.nbytes),
            f"{comparison.mean.kld:.4f}",
            f"{comparison.worst.kld:.4f} {comparison.worst_domain}",
            f"{comparison.mean.top1:.1%}",
            f"{comparison.mean.ppl_ratio:.4f}",
        )
        for each, comparison in measured
    ]
    if rival := account.equal_size:
        comparison = rival.comparison
        name = f"unpruned {rival.kind}"
        worst = f"{comparison.worst.kld:.4f} {comparison.worst_domain}"
        rows.append(
            (
                name,
                size(rival.nbytes),
                f"{comparison.mean.kld:.4f}",
                worst,
                f"{comparison.mean.top1:.1%}",
                f"{comparison.mean.ppl_ratio:.4f}",
            )
        )
    if rows:
        say()
        table(
            "What was lost (KLD to the original in nats per token)",
            ("file", "size", "KLD", "worst", "top-1", "PPL x"),
            rows,
        )
    if len(measured) == 1 and len(measured[0][1].domains) > 1:
        draw_comparison(measured[0][1])
    if rival:
        say(_verdict(rival.loses, rival.kind))
    for each in account.files:
        _more(each)
    for each in account.files:
        if each.gates and len(account.files) > 1:
            say(f"{each.kind}:")
        draw_gates(each.gates)
    for path in account.paths:
        if path.suffix != ".png":
            say(shown(path))


def _verdict(loses: bool, kind: str) -> Any:
    if loses:
        return styled(f"At equal size pruning loses: the unpruned model as {kind} is nearer to the original.", "yellow")
    return f"At equal size pruning wins: it is nearer to the original than the unpruned model as {kind}."


def _more(each: Judged) -> None:
    for task in each.tasks:
        accuracy = task.normalised
        before = f", original {accuracy.reference.value:.1%}, p {accuracy.p_value:.2g}" if accuracy.reference else ""
        say(f"{task.task}: {accuracy.share.value:.1%} of {accuracy.share.n}{before}")
    if each.probes:
        for temperature in each.probes.temperatures:
            loops, control = each.probes.share("loop", temperature), each.probes.control_share("loop", temperature)
            before = f", original {control.count}" if control else ""
            say(f"probes at T={temperature:g}: {loops.count} of {loops.n} answers loop{before}")
    if each.speed:
        before_of = {speed.test: speed.mean for speed in each.speed.reference_speeds}
        rows = [
            (
                speed.test,
                f"{before_of[speed.test]:.1f}",
                f"{speed.mean:.1f}",
                f"{speed.mean / before_of[speed.test]:.2f}x",
            )
            for speed in each.speed.speeds
            if speed.test in before_of
        ]
        table("Tokens per second (experts per token are unchanged)", ("test", "original", "pruned", ""), rows)


def plain_account(account: Account) -> dict[str, Any]:
    """All of it but the single answers of the probes."""
    rival = account.equal_size
    return {
        "files": [
            {
                "path": str(each.path),
                "type": each.kind,
                "nbytes": each.nbytes,
                "comparison": plain_comparison(each.comparison) if each.comparison else None,
                "tasks": [asdict(task) for task in each.tasks],
                "speed": asdict(each.speed) if each.speed else None,
                "gates": [asdict(outcome) for outcome in each.gates],
            }
            for each in account.files
        ],
        "equal_size": {
            "type": rival.kind,
            "nbytes": rival.nbytes,
            "comparison": plain_comparison(rival.comparison),
            "pruning_loses": rival.loses,
        }
        if rival
        else None,
        "gates": [asdict(outcome) for outcome in account.gates],
        "report": [str(path) for path in account.paths],
    }


DRAWERS: Drawers = {Account: draw_account}
PLAIN: Plain = {Account: plain_account}
