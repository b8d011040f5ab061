"""What a model is worth: how well it predicts held-out text, and what it writes."""

from ggufreap.evaluation.generation import Answer, answers
from ggufreap.evaluation.perplexity import Perplexity, perplexity

__all__ = ["Answer", "Perplexity", "answers", "perplexity"]
