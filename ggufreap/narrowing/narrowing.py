"""Which neurons of the experts stay, as a value."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Ids = np.ndarray[Any, np.dtype[np.int32]]
Weights = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Narrowing:
    """`width` of the `source_width` neurons stay in each of the experts that a plan keeps.

    `neurons` names them per block, `[n_keep, width]`: ids in the original, ascending, experts in the plan's order.
    `downs` are the columns of down that make up for the others, `[n_keep, n_embd, width]` per block, possibly mapped
    from a file; without them the columns of the source stay as they are.
    """

    source_width: int
    width: int
    neurons: Mapping[int, Ids]
    downs: Mapping[int, Weights] = field(default_factory=dict)
