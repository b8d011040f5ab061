"""The only room that draws: rich for tables, tqdm for progress, JSON for machines. Results go to standard output,
everything else to standard error.

Every module of the room draws some of the results; a result of a new type takes a row in its DRAWERS, and one in PLAIN
where its JSON is not simply its fields.
"""

import io
import logging
import sys
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

from ggufreap.console import account, contact, doctor, evaluation, fitting, imatrix, narrowing, probing, stages, whole
from ggufreap.console.contact import Counsel, Script
from ggufreap.console.draw import Drawers, Plain
from ggufreap.console.stages import Choice, DryRun
from ggufreap.progress import Bar
from ggufreap.showing import shown, to_json

__all__ = ["Choice", "Counsel", "DryRun", "Script", "listen", "progress", "show"]
_DRAWERS: Drawers = {
    **stages.DRAWERS,
    **imatrix.DRAWERS,
    **evaluation.DRAWERS,
    **probing.DRAWERS,
    **account.DRAWERS,
    **narrowing.DRAWERS,
    **fitting.DRAWERS,
    **whole.DRAWERS,
    **doctor.DRAWERS,
    **contact.DRAWERS,
}
_PLAIN: Plain = {
    **stages.PLAIN,
    **evaluation.PLAIN,
    **probing.PLAIN,
    **account.PLAIN,
    **narrowing.PLAIN,
    **fitting.PLAIN,
    **whole.PLAIN,
    **doctor.PLAIN,
    **contact.PLAIN,
}


def progress(stage: str, total: int | None, unit: str, done: int = 0) -> AbstractContextManager[Bar]:
    """A tqdm bar with rate and time left; silent where standard error is not a terminal."""
    from tqdm import tqdm

    bar: AbstractContextManager[Bar] = tqdm(
        desc=stage, total=total, initial=done, unit=unit, unit_scale=True, dynamic_ncols=True, disable=None
    )
    return bar


def listen(verbosity: int) -> None:
    """Show the library's notes on standard error; with `-v` also what llama.cpp says."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Notes())
    logger = logging.getLogger("ggufreap")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.DEBUG if verbosity else logging.INFO)


class _Notes(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        mark = "WARNING: " if record.levelno >= logging.WARNING else ""
        return mark + shown(record.getMessage())


def show(result: Any, as_json: bool) -> None:
    """Draw a verb's result as tables, or as one JSON object."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names need not be text, nor terminals know every letter
        sys.stdout.reconfigure(errors="backslashreplace")
    if as_json:
        sys.stdout.write(to_json(_PLAIN.get(type(result), asdict)(result), indent=2) + "\n")
    else:
        _DRAWERS[type(result)](result)
    sys.stdout.flush()
