"""Which mixtures of experts lie on this machine."""

from dataclasses import dataclass

from ggufreap.finding import Listing, Machine, find_models


@dataclass(frozen=True)
class Models:
    """What was found, and the machine that it is to fit."""

    listing: Listing
    machine: Machine


def models() -> Models:
    """Look where people have models: the current folder, those of llama.cpp, Hugging Face, LM Studio and Ollama."""
    return Models(find_models(), Machine.here())
