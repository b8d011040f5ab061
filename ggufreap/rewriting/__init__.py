"""Turns a plan into the exact file it asks for: first as a script of bytes, then on disk."""

from ggufreap.rewriting.narrow import Narrow
from ggufreap.rewriting.script import RewriteScript, execute, lower, parse_size, release, write_skeleton

__all__ = ["Narrow", "RewriteScript", "execute", "lower", "parse_size", "release", "write_skeleton"]
