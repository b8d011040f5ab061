"""Scores become a plan: which experts stay, as a value and as a file that a person can read."""

from ggufreap.planning.choosing import (
    NOTES,
    ModelIdentity,
    PruningPlan,
    as_fraction,
    check_plan,
    count_to_keep,
    least_ratio,
    make_plan,
    ratio_label,
    select,
)
from ggufreap.planning.storage import load_plan, save_plan

__all__ = [
    "NOTES",
    "ModelIdentity",
    "PruningPlan",
    "as_fraction",
    "check_plan",
    "count_to_keep",
    "least_ratio",
    "load_plan",
    "make_plan",
    "ratio_label",
    "save_plan",
    "select",
]
