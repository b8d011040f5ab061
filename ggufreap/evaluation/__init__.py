"""What a model is worth: how well it predicts held-out text, what it lost against another, and what it writes."""

from ggufreap.evaluation.base_file import BaseFile, is_base_of, open_base, writing_base
from ggufreap.evaluation.comparing import (
    compare_passes,
    compare_with,
    compare_with_base,
    of_engine,
    threads,
    together,
)
from ggufreap.evaluation.gates import METRICS, Gate, Outcome, parse_gate
from ggufreap.evaluation.generation import Answer, answers
from ggufreap.evaluation.meters import Comparison, Meters
from ggufreap.evaluation.perplexity import Perplexity, geometric_mean, ignore, perplexity
from ggufreap.evaluation.scores import Logits

__all__ = [
    "METRICS",
    "Answer",
    "BaseFile",
    "Comparison",
    "Gate",
    "Logits",
    "Meters",
    "Outcome",
    "Perplexity",
    "answers",
    "compare_passes",
    "compare_with",
    "compare_with_base",
    "geometric_mean",
    "ignore",
    "is_base_of",
    "of_engine",
    "open_base",
    "parse_gate",
    "perplexity",
    "threads",
    "together",
    "writing_base",
]
