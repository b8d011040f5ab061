"""Importance matrices: what llama-imatrix collects and llama-quantize weighs errors with, as values and as files."""

from ggufreap.imatrix.collected import collected, of_sums
from ggufreap.imatrix.gaps import Filled, filled
from ggufreap.imatrix.matrix import Imatrix, ImatrixEntry, in_tokens, means, merged
from ggufreap.imatrix.model import (
    Coverage,
    ExpertSums,
    adapted,
    check,
    expert_statistics,
    full_nbytes,
    load_for,
    reached,
    sliced,
)
from ggufreap.imatrix.narrower import narrowed
from ggufreap.imatrix.storage import load, save
from ggufreap.imatrix.summary import EntrySummary, ImatrixSummary, describe

__all__ = [
    "Coverage",
    "EntrySummary",
    "ExpertSums",
    "Filled",
    "Imatrix",
    "ImatrixEntry",
    "ImatrixSummary",
    "adapted",
    "check",
    "collected",
    "describe",
    "expert_statistics",
    "filled",
    "full_nbytes",
    "in_tokens",
    "load",
    "load_for",
    "means",
    "merged",
    "narrowed",
    "of_sums",
    "reached",
    "save",
    "sliced",
]
