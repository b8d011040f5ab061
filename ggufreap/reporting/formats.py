"""How values are written, by the name of their format; what was not measured is a dash."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ggufreap.showing import shown
from ggufreap.units import scaled, size

MISSING, MINUS, TIMES, SPACE = "\N{EN DASH}", "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}", "\N{NO-BREAK SPACE}"


def _parameters(count: float) -> str:
    value, unit = scaled(count, ("", "K", "M", "B", "T"))
    return f"{value:.3g}{unit}"


def _decimal(value: float) -> str:
    """Three significant digits, more where there are more before the point; never with an exponent."""
    if value == 0:
        return "0"
    digits = max(0, 2 - _magnitude(value))
    return f"{value:,.{min(digits, 6)}f}"


def _magnitude(value: float) -> int:
    return int(f"{abs(value):.2e}".partition("e")[2])


def _ranges(ids: Sequence[int]) -> str:
    """Ids with runs drawn together: `0-3, 5, 7-9`."""
    runs: list[list[int]] = []
    for each in ids:
        if runs and each == runs[-1][-1] + 1:
            runs[-1][1:] = [each]
        else:
            runs.append([each])
    return ", ".join("-".join(map(str, run)) for run in runs)


def _signed(write: Callable[[float], str]) -> Callable[[float], str]:
    def signed(value: float) -> str:
        text = write(abs(value))
        zero = not any(digit in text for digit in "123456789")
        return ("" if zero else "+" if value > 0 else MINUS) + text

    return signed


FORMATS: Mapping[str, Callable[[Any], str]] = {
    "text": shown,
    "count": lambda value: f"{value:,}",
    "size": lambda nbytes: size(nbytes).replace(" ", SPACE),
    "parameters": _parameters,
    "decimal": _decimal,
    "share": lambda value: f"{100 * value:.1f}{SPACE}%",
    "speed": lambda value: f"{_decimal(value)}{SPACE}t/s",
    "factor": lambda value: f"{TIMES}{value:.3f}",
    "relative": _signed(lambda value: f"{100 * value:.1f}{SPACE}%"),
    "points": _signed(lambda value: f"{100 * value:.1f}{SPACE}points"),
    "change": _signed(_decimal),
    "ranges": _ranges,
    "short": lambda value: shown(str(value)[:12]),
}


# How an estimate is scaled, and what stands before and after it.
ESTIMATES: Mapping[str, tuple[float, str, str]] = {
    "decimal": (1, "", ""),
    "share": (100, "", f"{SPACE}%"),
    "speed": (1, "", f"{SPACE}t/s"),
    "factor": (1, TIMES, ""),
}


def written(value: Any, name: str) -> str:
    """`value` in the format `name`; an estimate with as many digits as its standard error deserves."""
    if value is None or value == "":
        return MISSING
    if not isinstance(value, Mapping):
        return FORMATS[name](value)
    if not value["stderr"]:
        return FORMATS[name](value["value"])
    scale, before, after = ESTIMATES[name]
    error = scale * value["stderr"]
    digits = min(max(0, 1 - _magnitude(error)), 6)
    return f"{before}{scale * value['value']:,.{digits}f} ± {error:,.{digits}f}{after}"
