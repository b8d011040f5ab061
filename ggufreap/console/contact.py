"""What lies on this machine, and what can be done with it."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ggufreap.console.draw import Drawers, Plain, say, styled, table
from ggufreap.console.stages import draw_model, draw_refused
from ggufreap.finding import Listing, Machine
from ggufreap.showing import shown
from ggufreap.units import size
from ggufreap.verbs import Advice, Models


@dataclass(frozen=True)
class Counsel:
    """Advice on a model, and what a command line takes for it."""

    advice: Advice
    argument: str

    @property
    def commands(self) -> list[tuple[str, str]]:
        """What each does, and the whole command as a shell takes it."""
        return [(what, self._whole(words)) for what, words in self.advice.commands]

    def _whole(self, words: Sequence[str]) -> str:
        return " ".join(["ggufreap", *(self.argument if word == "MODEL" else shlex.quote(word) for word in words)])


@dataclass(frozen=True)
class Script:
    """Text for a program, shown as it is."""

    text: str


def _models(models: Models) -> None:
    listing = models.listing
    if listing.models:
        say(styled("Mixtures of experts on this machine: size, where it fits, experts, whose folder, name", "italic"))
    for model in listing.models:
        fits = models.machine.fits(model.nbytes)
        experts = f"{model.n_expert}, {model.n_used} used"
        # The name stands last and alone: it is to be copied.
        say(f"{size(model.nbytes):>8}  {fits:<14}  {experts:<12}  {model.owner:<14}  {model.argument}")
    if not listing.models:
        say("no mixture of experts was found here, nor in the folders of llama.cpp, Hugging Face, LM Studio and Ollama")
    _not_told(listing)
    _machine(models.machine)
    if listing.models:
        say(f"\nnext: ggufreap {listing.models[0].argument}")
    else:
        say("\nnext: ggufreap MODEL, with the path of a .gguf file, -hf user/repo or an Ollama name; or ggufreap demo")


def _not_told(listing: Listing) -> None:
    """What was seen and is not listed."""
    if listing.n_other:
        say(f"other GGUF files, which are none: {listing.n_other}")
    for folder in listing.cut_short:
        say(styled(f"not all of {shown(folder.absolute())} was looked at: it holds too much", "yellow"))
    if listing.unreadable:
        say(styled(f"could not be read: {len(listing.unreadable)}", "yellow"))
    for path, why in listing.unreadable:
        say(f"  {path}: {why}")


def _machine(machine: Machine) -> None:
    memory = "not told by this system" if machine.free is None else f"{size(machine.free)} free"
    gpus = "".join(f", {shown(gpu.description)} {size(gpu.free)} free" for gpu in machine.gpus)
    say(f"this machine: memory {memory}{gpus}; a model fits with a tenth left for its context")


def _counsel(counsel: Counsel) -> None:
    advice = counsel.advice
    draw_model(advice.inspection)
    kinds = list(dict.fromkeys(each.type for each in advice.candidates))
    ratios = list(dict.fromkeys(each.ratio for each in advice.candidates))
    cells = {(each.ratio, each.type): f"{size(each.nbytes)}, {each.fits}" for each in advice.candidates}
    rows = [(ratio or "unpruned", *(cells.get((ratio, kind), "-") for kind in kinds)) for ratio in ratios]
    say()
    table("What fits this machine, and where", ("removed", *(kind or "types of now" for kind in kinds)), rows)
    draw_refused(advice.inspection)
    _machine(advice.machine)
    say(styled(advice.verdict, "bold"))
    say()
    for number, (what, command) in enumerate(counsel.commands, 1):
        say(f"{number}  {what}\n   {command}")


def _plain(counsel: Counsel) -> dict[str, Any]:
    commands = [{"does": what, "command": command} for what, command in counsel.commands]
    return {**asdict(counsel.advice), "commands": commands}


def _plain_models(models: Models) -> dict[str, Any]:
    told = asdict(models)
    for plain, model in zip(told["listing"]["models"], models.listing.models, strict=True):
        plain["fits"] = models.machine.fits(model.nbytes)
    return told


DRAWERS: Drawers = {Models: _models, Counsel: _counsel, Script: lambda script: say(script.text)}
PLAIN: Plain = {Counsel: _plain, Models: _plain_models}
