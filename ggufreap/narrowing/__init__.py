"""Fewer neurons in every expert: rows of gate and up, columns of down."""

from ggufreap.narrowing.narrowing import Narrowing

__all__ = ["Narrowing"]
