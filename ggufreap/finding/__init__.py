"""Where people have their models: the folders of other programs, and what a model is called there."""

from ggufreap.finding.machine import Machine
from ggufreap.finding.names import Located, located, names_model
from ggufreap.finding.scan import FoundModel, Listing, find_models

__all__ = ["FoundModel", "Listing", "Located", "Machine", "find_models", "located", "names_model"]
