"""What to calibrate on, in all the ways in which it can be said."""

import logging
from dataclasses import replace
from pathlib import Path

from ggufreap import blending
from ggufreap.corpus.default import DEFAULT_SOURCES
from ggufreap.corpus.held_out import parse_share, split
from ggufreap.corpus.request import Opened, open_request
from ggufreap.corpus.standard_library import calibration_text
from ggufreap.errors import InputError
from ggufreap.options.data import Request
from ggufreap.options.flag import refuse_unused

# A file, all that a request can name, data that is open already, or None: the built-in mix of public data sets. A
# request that names no data is the mix too, read as the request says.
Data = Request | Opened | str | Path | None
TRYING_OUT, TRYING_OUT_BYTES = "trying-out", 200_000
_LOG = logging.getLogger(__name__)


def open_data(data: Data, blend: str | None = None) -> Opened:
    """Find the data; raises InputError where it cannot be found, read or understood, or not be weighed by `blend`."""
    opened = _opened(data)
    if blend is not None:
        blending.check_blend(blend, {record.domain for record in opened.records})
    return opened


def _opened(data: Data) -> Opened:
    if isinstance(data, Opened):
        return data
    request = Request() if data is None else as_request(data)
    if request.names_data:
        return open_request(request)
    try:
        return open_request(replace(request, domain=DEFAULT_SOURCES))
    except InputError as error:
        raise InputError(
            f"no text was given, and the built-in mix of data sets cannot be had: {error}; "
            "to try out without network: --offline-default"
        ) from error


def open_own_data(data: Data) -> Opened:
    """The same where nothing but the data is drawn by its seed; raises InputError for one that draws nothing."""
    opened = open_data(data)
    if not opened.draws:
        refuse_unused(opened.request, {"seed": "what is drawn at random, of which there is nothing here"})
    return opened


def asks(data: Data) -> bool:
    """Whether anything is said of text at all."""
    return data.asks if isinstance(data, Request) else data is not None


def split_off(data: Data, share: str | None, seed: int) -> tuple[Data, tuple[Opened, ...]]:
    """The data without `share` of its documents, and these by domain; all and none for None."""
    return (data, ()) if share is None else split(open_data(data), parse_share(share), seed)


def as_request(data: Request | str | Path) -> Request:
    """A bare path is token ids where it ends in .npy, else a file."""
    if isinstance(data, Request):
        return data
    return Request(tokens=data) if Path(data).suffix == ".npy" else Request(file=(str(data),))


def offline_default(request: Request | None = None) -> Request:
    """The text that every Python has, read as `request` says, with a loud warning; InputError if that names data."""
    if request is not None and request.names_data:
        raise InputError("both data and --offline-default were given; give one of them")
    _LOG.warning(
        "calibrating on the Python documentation and source on this machine. "
        "That is ONLY FOR TRYING OUT: what the text does not cover, the pruned model forgets. Give your own with -f."
    )
    return replace(request or Request(), text={TRYING_OUT: calibration_text(TRYING_OUT_BYTES)})
