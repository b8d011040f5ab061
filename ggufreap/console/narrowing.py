"""What narrower experts took."""

from typing import Any

from ggufreap.console.draw import Drawers, Plain, say, styled
from ggufreap.console.stages import draw_script
from ggufreap.showing import shown
from ggufreap.verbs import Narrowed


def _narrowed(narrowed: Narrowed) -> None:
    say(styled(f"{narrowed.narrowing.summary}:", "bold"), f"{narrowed.plan.summary} experts")
    for note in (*narrowed.narrowing.remarks, *narrowed.script.notes):
        say(f"note: {shown(note)}")
    draw_script(narrowed.script)
    say(f"{shown(narrowed.narrowing_path)} names the neurons that stay, {shown(narrowed.plan_path)} the experts")


def _plain(narrowed: Narrowed) -> dict[str, Any]:
    narrowing = narrowed.narrowing
    return {
        "files": [{"path": str(file.path), "nbytes": file.nbytes} for file in narrowed.script.files],
        "source_nbytes": narrowed.script.source_nbytes,
        "plan": narrowed.plan_path,
        "narrowing": narrowed.narrowing_path,
        "summary": narrowing.summary,
        "source_width": narrowing.source_width,
        "width": narrowing.width,
        "method": narrowing.method,
        "sha256": narrowing.sha256,
        "notes": [*narrowing.remarks, *narrowed.script.notes],
    }


DRAWERS: Drawers = {Narrowed: _narrowed}
PLAIN: Plain = {Narrowed: _plain}
