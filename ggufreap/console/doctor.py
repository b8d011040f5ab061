"""What `doctor` found, and its verdict."""

from dataclasses import asdict
from typing import Any

from ggufreap.console.draw import Drawers, Plain, say, styled
from ggufreap.console.stages import draw_check
from ggufreap.verbs import Checkup

_MARKS = {"ok": ("ok   ", "green"), "note": ("note ", "yellow"), "not": ("NOT  ", "red")}


def _checkup(checkup: Checkup) -> None:
    for finding in checkup.findings:
        advice = f"; {finding.advice}" if finding.advice else ""
        say(styled(*_MARKS[finding.state]), f" {finding.name}: {finding.found}{advice}")
    if model := checkup.inspection:
        say(f"       {model.name}: {model.n_expert} experts in {model.n_moe_block} MoE blocks, {model.n_used} used")
    for law in checkup.laws:
        draw_check(law)
    say(styled(checkup.verdict, "red" if checkup.exit_code else "green"))


def _plain(checkup: Checkup) -> dict[str, Any]:
    return {**asdict(checkup), "verdict": checkup.verdict, "ok": checkup.exit_code == 0}


DRAWERS: Drawers = {Checkup: _checkup}
PLAIN: Plain = {Checkup: _plain}
