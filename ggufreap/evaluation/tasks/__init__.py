"""Multiple-choice questions by log-likelihood, scored as llama-perplexity scores them."""

from ggufreap.evaluation.tasks.questions import FORMATS, Question, sample_of
from ggufreap.evaluation.tasks.scoring import Scored, TaskReport, compare, score

__all__ = ["FORMATS", "Question", "Scored", "TaskReport", "compare", "sample_of", "score"]
