"""What files are worth beside the original: held-out text, one pass of the original for all of them, and masks."""

from ggufreap.judging.exam import Exam, open_engine
from ggufreap.judging.expected import Expected
from ggufreap.judging.masking import Candidate, Masking
from ggufreap.judging.passes import compare_files

__all__ = ["Candidate", "Exam", "Expected", "Masking", "compare_files", "open_engine"]
