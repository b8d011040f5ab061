"""Bytes of strangers as checked values: JSON, TOML and arrays, with limits; and what a file is that was meant to be
another.

Nothing here knows what a plan or a recipe is. Numbers are checked as numbers: 0.7 is no count, 1e999 no figure.
"""

from ggufreap.decoding.documents import Damaged, check_limits, load_json, load_toml, parse_json, read_document
from ggufreap.decoding.signatures import what_is

__all__ = ["Damaged", "check_limits", "load_json", "load_toml", "parse_json", "read_document", "what_is"]
