"""What the verbs' commands share: how flags become parameters."""

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from ggufreap.cli.flags import AddFlags

Result = tuple[Any, int]  # what to show, and the exit code
# verb -> what runs it, its line in the help, its groups of flags
Verbs = Mapping[str, tuple[Callable[[argparse.Namespace], Result], str, tuple[AddFlags, ...]]]


def data(options: argparse.Namespace) -> Any:
    """What shall be calibrated on, and how it is read; None where nothing was said of either."""
    from ggufreap.corpus import Reading
    from ggufreap.corpus.request import Request
    from ggufreap.verbs.data import offline_default

    request = Request(
        file=tuple(options.file),
        dataset=tuple(options.dataset),
        domain=tuple(options.domain),
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
    if options.offline_default:
        return offline_default(request)
    # The seed draws the experts of --method random too, beside a matrix.
    alone = request.seed == 0 or vars(options).get("from_imatrix")
    return None if alone and request == Request(seed=request.seed) else request


def splitting(options: argparse.Namespace) -> dict[str, Any]:
    """How the result is cut into files."""
    from ggufreap.rewriting import parse_size

    size = parse_size(options.split_max_size) if options.split_max_size else None
    return {"split_max_size": size, "keep_split": options.keep_split, "dry_run": options.dry_run}


def choice(options: argparse.Namespace) -> dict[str, Any]:
    """How many experts go, and which."""
    return {
        name: getattr(options, name) for name in ("ratio", "keep", "method", "from_imatrix", "blend", "mtp", "seed")
    }


def progress() -> Any:
    """The bars of the console."""
    from ggufreap import console

    return console.progress
