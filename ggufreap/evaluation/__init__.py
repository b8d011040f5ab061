"""What a model is worth: how well it predicts held-out text, and what it writes."""

from ggufreap.evaluation.generation import continuation
from ggufreap.evaluation.perplexity import Perplexity, perplexity

__all__ = ["Perplexity", "continuation", "perplexity"]
