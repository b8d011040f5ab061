"""The commands that come after a finished file."""

from typing import Any

from ggufreap.console.draw import say, styled
from ggufreap.handover import Handover


def draw_handover(handover: Handover) -> None:
    """The commands that come next."""
    say(styled("\nRun it, and give it away", "bold"), f" (Ollama's Modelfile: {handover.modelfile_path})")
    for program, commands in handover.steps:
        for index, command in enumerate(commands):
            say(f"  {'' if index else program:<11} {command}")
    if handover.card is None:
        say("  the same command with --report DIR writes the model card; nothing is calibrated again")


def plain_handover(handover: Handover | None) -> dict[str, Any]:
    """The same for machines."""
    if handover is None:
        return {"modelfile": None, "next": {}}
    return {"modelfile": handover.modelfile_path, "next": dict(handover.steps)}
