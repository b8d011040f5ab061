"""The best file for a memory: prospects, their exact sizes and estimated losses, and the search among them."""

from ggufreap.fitting.budget import Budget, budget_of
from ggufreap.fitting.losses import Curve, table
from ggufreap.fitting.mixes import Mix, possible_mixes
from ggufreap.fitting.pool import Asking, Pool, Prospect, build
from ggufreap.fitting.search import MADE, Step, contenders, frontier, is_pruned, lowest, spread

__all__ = [
    "MADE",
    "Asking",
    "Budget",
    "Curve",
    "Mix",
    "Pool",
    "Prospect",
    "Step",
    "budget_of",
    "build",
    "contenders",
    "frontier",
    "is_pruned",
    "lowest",
    "possible_mixes",
    "spread",
    "table",
]
