"""The type in which a whole model comes nearest to a size."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cache

from ggufreap.engine.quantizer import ImatrixData
from ggufreap.errors import InputError
from ggufreap.quantization import QuantRequest
from ggufreap.sizing.sizer import Sizer

# From large to small, but for neighbours that change places in models of few blocks or narrow rows.
TYPES = (
    "Q8_0",
    "Q6_K",
    "Q5_K_M",
    "Q5_K_S",
    "Q4_K_M",
    "Q4_K_S",
    "IQ4_XS",
    "Q3_K_L",
    "Q3_K_M",
    "Q3_K_S",
    "IQ3_XXS",
    "Q2_K",
    "IQ2_M",
    "IQ2_S",
    "IQ2_XS",
    "IQ2_XXS",
    "IQ1_M",
    "IQ1_S",
)
NEIGHBOURS = 2  # on either side of where the bisection ends


def nearest_type(
    sizer: Sizer,
    nbytes: int,
    *,
    imatrix: ImatrixData | None = None,
    imatrix_later: Collection[str] | None = None,
    metadata: Mapping[str, str | int] | None = None,
) -> tuple[str, int]:
    """The type in which the whole model comes nearest to `nbytes`, and its exact size then.

    Types that need an importance matrix are passed over where there is none. `imatrix`, `imatrix_later` and `metadata`
    as in `quantize_file` and QuantRequest. Raises InputError where no type can be had, as of a model in MXFP4.
    """
    request = QuantRequest(TYPES[0], allow_requantize=True, metadata=metadata or {})

    def size(kind: str) -> int | None:
        asked = replace(request, type=kind)
        try:
            return sizer.quantised(None, asked, imatrix=imatrix, imatrix_later=imatrix_later).nbytes
        except InputError:  # a type that needs a matrix, or rows that do not fit it
            return None

    nearest = bisect(TYPES, size, nbytes)
    if nearest is None:
        raise InputError(f"{sizer.source.path} can be quantised to no smaller type; compare without --compare")
    return nearest


def bisect(kinds: Sequence[str], size: Callable[[str], int | None], nbytes: int) -> tuple[str, int] | None:
    """The kind whose size is nearest to `nbytes`, with its size; among equals the first.

    `kinds` come from large to small, up to neighbours that have changed places; `size` is None for one that cannot be
    had, and asked about once.
    """
    size, places = cache(size), list(kinds)
    low, high = 0, len(places)  # what stands before low is too large, what stands from high on is not
    while low < high:
        middle = (low + high) // 2
        there = size(places[middle])
        if there is None:
            del places[middle]
            high -= 1
        elif there > nbytes:
            low = middle + 1
        else:
            high = middle
    while (near := places[max(0, low - NEIGHBOURS) : low + NEIGHBOURS]) and None in map(size, near):
        gone = places.index(next(kind for kind in near if size(kind) is None))
        del places[gone]
        low -= gone < low
    sizes = {kind: there for kind in near if (there := size(kind)) is not None}
    return min(sizes.items(), key=lambda item: abs(item[1] - nbytes), default=None)
