"""What to calibrate on, in all the ways in which it can be said."""

import logging
from pathlib import Path

from ggufreap.corpus.default import DEFAULT_SOURCES
from ggufreap.corpus.request import Opened, Request, open_request
from ggufreap.corpus.standard_library import calibration_text
from ggufreap.errors import InputError

# A file, all that a request can name, data that is open already, or None: the built-in mix of public data sets.
Data = Request | Opened | str | Path | None
TRYING_OUT, TRYING_OUT_BYTES = "trying-out", 200_000
_LOG = logging.getLogger(__name__)


def open_data(data: Data) -> Opened:
    """Find the data; raises InputError where it cannot be found, read or understood."""
    if isinstance(data, Opened):
        return data
    if data is not None:
        return open_request(as_request(data))
    try:
        return open_request(Request(domain=DEFAULT_SOURCES))
    except InputError as error:
        raise InputError(
            f"no text was given, and the built-in mix of data sets cannot be had: {error}; "
            "to try out without network: --offline-default"
        ) from error


def as_request(data: Request | str | Path) -> Request:
    """A bare path is token ids where it ends in .npy, else a file."""
    if isinstance(data, Request):
        return data
    return Request(tokens=data) if Path(data).suffix == ".npy" else Request(file=(str(data),))


def offline_default() -> Request:
    """The text that every Python has, with a loud warning."""
    _LOG.warning(
        "calibrating on the Python documentation and source on this machine. "
        "That is ONLY FOR TRYING OUT: what the text does not cover, the pruned model forgets. Give your own with -f."
    )
    return Request(text={TRYING_OUT: calibration_text(TRYING_OUT_BYTES)})
