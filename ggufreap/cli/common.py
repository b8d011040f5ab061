"""What the verbs' commands share: how flags become parameters."""

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping
from typing import Any

from ggufreap.cli.flags import AddFlags

Result = tuple[Any, int]  # what to show, and the exit code
# verb -> what runs it, its line in the help, its groups of flags
Verbs = Mapping[str, tuple[Callable[[argparse.Namespace], Result], str, tuple[AddFlags, ...]]]


def command() -> str:
    """The command as it was given, for the report."""
    return shlex.join(["ggufreap", *sys.argv[1:]])


def progress() -> Any:
    """The bars of the console."""
    from ggufreap import console

    return console.progress
