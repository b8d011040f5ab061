"""Figures without pyplot, and what they become: SVG that takes the page's colours, PNG on white.

Only the object-oriented interface of matplotlib is used: no backend is chosen, no global state is left behind.
"""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO, StringIO
from typing import TYPE_CHECKING

from ggufreap.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette without yellow and black: told apart with every kind of colour vision, on white and on black.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
MUTED = "#8a8f98"
MAP = "viridis"
INK = "#010203"  # stands for the page's text colour, a colour that nothing else has
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a $ in a name is a $
    "svg.hashsalt": "ggufreap",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"), INK
    ),
    "grid.alpha": 0.15,
}
_DPI = 150
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


@contextmanager
def style() -> Iterator[None]:
    """The context in which figures are drawn and saved; raises InputError where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        raise InputError(
            "the report's pictures need matplotlib, which is not installed; pip install 'ggufreap[report]'"
        ) from None
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # Names in scripts that the font lacks are boxes in the PNG; in the page the browser's fonts write them.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        yield


def canvas(height: float = 3.2, width: float = 5.6) -> tuple["Figure", "Axes"]:
    """A figure in inches with one plot; small, so that its text stays readable on a phone."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def svg_of(figure: "Figure") -> str:
    """The figure as an `<svg>` element for inlining: transparent, text and axes in `currentColor`."""
    text = StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata=_NO_METADATA)
    element = text.getvalue()[text.getvalue().index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', element, count=1)
    return element.replace(INK, "currentColor")


def png_of(figure: "Figure", software: str) -> bytes:
    """The figure as PNG on white, for pages that are not ours to style."""
    data = BytesIO()
    figure.savefig(data, format="png", dpi=_DPI, facecolor="white", metadata={"Software": software})
    return data.getvalue()
