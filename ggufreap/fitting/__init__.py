"""The best file for a memory: prospects, their exact sizes and estimated losses, and the search among them."""

from ggufreap.fitting.budget import Budget, budget_of
from ggufreap.fitting.losses import Curve, table
from ggufreap.fitting.mixes import Mix, possible_mixes
from ggufreap.fitting.pool import KINDS, UNPRUNED, Pool, Prospect
from ggufreap.fitting.search import MADE, Step, contenders, frontier, lowest, spread
from ggufreap.fitting.weighing import Maker, build
from ggufreap.fitting.widths import widths_to_try

__all__ = [
    "KINDS",
    "MADE",
    "UNPRUNED",
    "Budget",
    "Curve",
    "Maker",
    "Mix",
    "Pool",
    "Prospect",
    "Step",
    "budget_of",
    "build",
    "contenders",
    "frontier",
    "lowest",
    "possible_mixes",
    "spread",
    "table",
    "widths_to_try",
]
