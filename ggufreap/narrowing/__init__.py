"""Fewer neurons in every expert: rows of gate and up, columns of down."""

from ggufreap.narrowing.narrowing import Ids, Narrowing, Weights, check_narrowing
from ggufreap.narrowing.storage import downs_path, load_narrowing, save_narrowing, solves

__all__ = ["Ids", "Narrowing", "Weights", "check_narrowing", "downs_path", "load_narrowing", "save_narrowing", "solves"]
