"""What narrower experts took."""

from typing import Any

from ggufreap.console.draw import Drawers, Plain, say, styled
from ggufreap.console.stages import draw_script
from ggufreap.rewriting import RewriteScript
from ggufreap.showing import shown
from ggufreap.verbs import Narrowed


def _narrowed(narrowed: Narrowed) -> None:
    plan = narrowed.plan
    stays = "all stay" if plan.n_keep == plan.n_expert else plan.summary
    say(styled(narrowed.narrowing.summary, "bold"), f"(experts: {stays})")
    draw_narrowing_notes(narrowed.script)
    draw_script(narrowed.script)
    say(f"{shown(narrowed.narrowing_path)} names the neurons that stay, {shown(narrowed.plan_path)} the experts")


def draw_narrowing_notes(script: RewriteScript) -> None:
    """What is to be known of the file; what there is of the choice was said when it was made."""
    for note in script.notes:
        say(f"note: {shown(note)}")


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
