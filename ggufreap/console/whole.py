"""The results of the whole job."""

from dataclasses import asdict
from typing import Any

from ggufreap.console.account import draw_account, plain_account
from ggufreap.console.draw import Drawers, Plain, say, styled, table
from ggufreap.console.handover import draw_handover, plain_handover
from ggufreap.console.narrowing import draw_narrowing_notes
from ggufreap.console.stages import (
    draw_coverage,
    draw_note,
    draw_variant,
    draw_verification,
    plain_coverage,
    plain_verification,
)
from ggufreap.demonstration import Demonstration
from ggufreap.showing import shown
from ggufreap.units import size
from ggufreap.verbs import Pruned


def _pruned(pruned: Pruned) -> None:
    _what_was_made(pruned)
    if pruned.handover:
        draw_handover(pruned.handover)


def _what_was_made(pruned: Pruned) -> None:
    if pruned.verification:
        draw_verification(pruned.verification)
    if pruned.coverage:
        draw_coverage(pruned.coverage)
    before = pruned.script.source_nbytes
    left = ", ".join(f"{size(nbytes)} ({nbytes / before:.0%})" for nbytes in _kept(pruned))
    say(styled(f"{pruned.summary}:", "bold"), f"{size(before)} -> {left}")
    draw_note(pruned.plan)
    if pruned.narrowing:
        draw_narrowing_notes(pruned.script)
    for file in pruned.script.files:
        why = "removed once it was quantised" if pruned.quantized else "not kept: it is not what the plan promised"
        gone = "" if file.path.exists() else f"  ({why})"
        say(f"{shown(file.path)}{gone}")
    if pruned.verification is None:
        say("not verified")
    for made in pruned.quantized:
        draw_variant(made)
    if pruned.account:
        draw_account(pruned.account)


def _kept(pruned: Pruned) -> list[int]:
    """The bytes of what stays: of the variants where the byte-exact file was there for them alone."""
    if pruned.quantized and not pruned.script.files[0].path.exists():
        return [made.nbytes for made in pruned.quantized]
    return [pruned.script.nbytes]


def _demonstration(demo: Demonstration) -> None:
    _what_was_made(demo.pruned)
    (variant,) = demo.pruned.quantized
    nbytes = demo.pruned.script.source_nbytes, demo.pruned.script.nbytes, variant.nbytes
    perplexities = demo.before, demo.after, demo.quantized
    rows = [
        ("size", *map(size, nbytes)),
        ("held-out perplexity", *(f"{each.value:.2f} ± {each.stderr:.2f}" for each in perplexities)),
    ]
    say()
    table("What was lost", ("", "original", "pruned", "and quantised"), rows)
    say(styled("\nThe pruned model continues", "bold"), f"{demo.prompt!r}:")
    say(demo.sample)
    proven = demo.pruned.verification
    if proven and proven.ok:
        say(styled("\nIt works here: pruned, proven, quantised and measured.", "green"))
        say(f"The files may be deleted: {demo.pruned.plan_path.parent}")
        say("\nnow yours: ggufreap          which models lie here, and what fits")
        say("           ggufreap MODEL    what can be done with one, and the commands")


def _plain_pruned(pruned: Pruned) -> dict[str, Any]:
    return {
        "files": [{"path": str(file.path), "nbytes": file.nbytes} for file in pruned.script.files],
        "source_nbytes": pruned.script.source_nbytes,
        "summary": pruned.summary,
        "method": pruned.plan.method,
        "note": pruned.plan.note,
        "plan": pruned.plan_path,
        "narrowing": pruned.narrowing_path,
        "narrowing_notes": [*pruned.narrowing.remarks, *pruned.script.notes] if pruned.narrowing else [],
        "statistics": pruned.statistics_path,
        "coverage": plain_coverage(pruned.coverage) if pruned.coverage else None,
        "verification": plain_verification(pruned.verification) if pruned.verification else None,
        "imatrix": pruned.imatrix_path,
        **plain_handover(pruned.handover),
        "account": plain_account(pruned.account) if pruned.account else None,
        "quantized": [asdict(made) for made in pruned.quantized],
    }


DRAWERS: Drawers = {Pruned: _pruned, Demonstration: _demonstration}
PLAIN: Plain = {
    Pruned: _plain_pruned,
    Demonstration: lambda demo: asdict(demo) | {"pruned": _plain_pruned(demo.pruned)},
}
