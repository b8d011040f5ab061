"""What the verbs' commands share: how flags become parameters."""

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from ggufreap.cli.flags import AddFlags

Result = tuple[Any, int]  # what to show, and the exit code
# verb -> what runs it, its line in the help, its groups of flags
Verbs = Mapping[str, tuple[Callable[[argparse.Namespace], Result], str, tuple[AddFlags, ...]]]


def settings(options: argparse.Namespace) -> Any:
    """How llama.cpp shall run."""
    from ggufreap.engine.session import EngineSettings

    flags = vars(options)
    return EngineSettings(
        flags.get("ctx_size", 512), flags.get("ubatch_size", 512), options.threads, options.n_gpu_layers
    )


def splitting(options: argparse.Namespace) -> dict[str, Any]:
    """How the result is cut into files."""
    from ggufreap.rewriting import parse_size

    size = parse_size(options.split_max_size) if options.split_max_size else None
    return {"split_max_size": size, "keep_split": options.keep_split, "dry_run": options.dry_run}


def choice(options: argparse.Namespace) -> dict[str, Any]:
    """How many experts go, and which."""
    return {name: getattr(options, name) for name in ("ratio", "keep", "method", "from_imatrix", "mtp", "seed")}


def progress() -> Any:
    """The bars of the console."""
    from ggufreap import console

    return console.progress
