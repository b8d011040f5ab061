"""What has to fit into memory beside the weights, as one value."""

import re
from dataclasses import dataclass
from pathlib import Path

from ggufreap.errors import InputError
from ggufreap.options.flag import Flag, Options, Parse, check, flagged, whole

AUTO_SIZE = "auto"
CONTEXT = 8192
MARGIN = 1 << 30  # llama.cpp's own, common/common.h, fit_params_target

MEMORY, EFFORT, NEURONS = "memory", "effort", "neurons"
_UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
_BINARY = {"KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30, "TI": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?", re.IGNORECASE)


def memory_size(*words: str) -> Parse:
    """Bytes of `16G`, `16GB` (decimal) or `16GiB`, or one of the words."""

    def parse(text: str) -> int | str:
        if text in words:
            return text
        match = _SIZE.fullmatch(text.strip())
        unit = (_UNITS | _BINARY).get(match[2].upper()) if match else None
        if match is None or unit is None:
            more = "".join(f", or {word}" for word in words)
            raise InputError(f"{text!r} is no size; write it as 16G (of 1000^3 bytes) or 16GiB (of 1024^3){more}")
        return int(float(match[1]) * unit)

    return parse


@dataclass(frozen=True)
class Fit(Options):
    """What shall fit beside the weights, and how the best file is found.

    `ctx`: tokens of context that the model is to be used with; `margin`: bytes that stay free; `mmproj`: a file of the
    vision part, which is loaded too; `fast`: take the lowest estimate, and measure no file; `narrow`: look at experts
    with fewer neurons too, where that can be.
    """

    ctx: int = flagged(
        CONTEXT,
        Flag(("--fit-ctx",), MEMORY, "tokens of context that have to fit too ({})", whole(1), "N", recipe=None),
    )
    margin: int = flagged(
        MARGIN,
        Flag(("--fit-margin",), MEMORY, "memory that stays free (1GiB)", memory_size(), "SIZE", recipe=None),
    )
    mmproj: str | Path | None = flagged(
        None, Flag(("--mmproj",), MEMORY, "the vision part, which has to fit too", str, "FILE", recipe=None)
    )
    fast: bool = flagged(
        False, Flag(("--fast",), EFFORT, "with --fit: make the lowest estimate alone, measure no file", recipe=None)
    )
    narrow: bool = flagged(
        True,
        Flag(("--no-narrow",), NEURONS, "with --fit: all experts stay as wide as they are", recipe=None),
    )

    def __post_init__(self) -> None:
        check(self)
