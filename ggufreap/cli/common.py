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


def data(options: argparse.Namespace) -> Any:
    """What shall be calibrated on; None where nothing was named."""
    from ggufreap.corpus import Reading
    from ggufreap.corpus.request import Request
    from ggufreap.verbs.data import offline_default

    if options.offline_default:
        return offline_default()
    if not (options.file or options.dataset or options.domain or options.tokens):
        return None
    return Request(
        file=options.file,
        dataset=options.dataset,
        domain=options.domain,
        tokens=options.tokens,
        text_field=options.text_field,
        chat_template=not options.no_chat_template,
        seed=vars(options).get("seed", 0),
        reading=Reading(
            count=options.count,
            packing=not options.no_packing,
            parse_special=options.parse_special,
            n_chunks=options.chunks,
        ),
    )


def splitting(options: argparse.Namespace) -> dict[str, Any]:
    """How the result is cut into files."""
    from ggufreap.rewriting import parse_size

    size = parse_size(options.split_max_size) if options.split_max_size else None
    return {"split_max_size": size, "keep_split": options.keep_split, "dry_run": options.dry_run}


def choice(options: argparse.Namespace) -> dict[str, Any]:
    """How many experts go, and which."""
    return {
        name: getattr(options, name)
        for name in ("ratio", "keep", "method", "budget", "from_imatrix", "blend", "mtp", "seed")
    }


def progress() -> Any:
    """The bars of the console."""
    from ggufreap import console

    return console.progress
