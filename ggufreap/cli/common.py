"""What the verbs' commands share: how flags become parameters."""

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from typing import Any

from ggufreap.cli.flags import AddFlags
from ggufreap.showing import file_name, published

Result = tuple[Any, int]  # what to show, and the exit code
# verb -> what runs it, its line in the help, its groups of flags
Verbs = Mapping[str, tuple[Callable[[argparse.Namespace], Result], str, tuple[AddFlags, ...]]]


def command() -> str:
    """The command as it was given, for the report, which is published: of files it tells the names alone."""
    return shlex.join(["ggufreap", *map(_without_folders, sys.argv[1:])])


def _without_folders(argument: str) -> str:
    name, equals, file = argument.rpartition("=")
    return f"{name}{equals}{file_name(file) if os.path.exists(file) else published(file)}"


def progress() -> Any:
    """The bars of the console."""
    from ggufreap import console

    return console.progress
