"""The importance matrix of narrower experts: neurons are the inputs of down and of nothing else."""

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ggufreap.architecture.layout import BLOCK_TENSOR
from ggufreap.errors import MismatchError
from ggufreap.imatrix.matrix import Imatrix, ImatrixEntry

_DOWN = re.compile(r"ffn_down_(exps|shexp)\.weight")


def narrowed(imatrix: Imatrix, neurons: Mapping[int, npt.NDArray[np.integer]], shared: int = 0) -> Imatrix:
    """The matrix of the model whose experts keep these `neurons`, `[n_keep, width]` by block.

    `imatrix` is that of the model without the experts that go, sliced by the plan. What `shared` experts are filled up
    to with zeros has no inputs of its own and weighs as the mean of the others. Raises MismatchError where an entry has
    another size.
    """
    entries = dict(imatrix.entries)
    for name, entry in imatrix.entries.items():
        match = BLOCK_TENSOR.fullmatch(name)
        kind = match and _DOWN.fullmatch(match[2])
        if not match or not kind:
            continue
        if kind[1] == "exps" and int(match[1]) in neurons:
            entries[name] = _columns(name, entry, neurons[int(match[1])])
        elif kind[1] == "shexp" and shared:
            entries[name] = _filled_up(entry, shared)
    return replace(imatrix, entries=entries)


def _columns(name: str, entry: ImatrixEntry, ids: npt.NDArray[np.integer]) -> ImatrixEntry:
    sums = entry.in_sum2.reshape(-1)
    if sums.size % len(ids) or sums.size // len(ids) <= ids.max():
        raise MismatchError(
            f"the importance matrix has {sums.size} sums for {name}, of which {len(ids)} experts with neurons up to "
            f"{ids.max()} are to stay; make one from this model"
        )
    return ImatrixEntry.of(np.take_along_axis(sums.reshape(len(ids), -1), ids, axis=1), entry.counts)


def _filled_up(entry: ImatrixEntry, shared: int) -> ImatrixEntry:
    missing = shared - entry.in_sum2.shape[1]
    means = entry.in_sum2.mean(axis=1, keepdims=True)
    return ImatrixEntry.of(np.concatenate([entry.in_sum2, np.repeat(means, missing, axis=1)], axis=1), entry.counts)
