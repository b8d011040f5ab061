"""The importance matrix as it grows: raw sums of squared inputs, as llama-imatrix keeps them. No native library.

Importance is what a pass records, these sums; an imatrix is what llama.cpp takes: its files, and its quantiser's input.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ggufreap.decoding import Damaged
from ggufreap.decoding.arrays import parse_header, take
from ggufreap.showing import excerpt

MOST = 1e37  # of a sum of squares; ten of them still are a number in single precision
OUTPUT = "output.weight"  # the output head, where it is not the token embedding


@dataclass
class Sums:
    """Raw sums of squares `[n_mat, n_in]` (F32, as llama-imatrix holds them) and routed rows `[n_count]`.

    `n_mat` counts experts, with a count each, or the matrices of a dense 3-D weight, with one count in all.
    """

    values: npt.NDArray[np.float32]
    counts: npt.NDArray[np.int64]

    def copy(self) -> Self:
        """The same with arrays of their own."""
        return replace(self, values=self.values.copy(), counts=self.counts.copy())


@dataclass
class ImportanceSums:
    """The sums of all inputs; `input_of` names, for every weight, the weight under whose name its sum is held.

    With `output` those of the output head too, which llama-imatrix leaves out without --process-output.
    """

    sums: dict[str, Sums] = field(default_factory=dict)
    input_of: dict[str, str] = field(default_factory=dict)
    output: bool = False

    def named(self) -> dict[str, Sums]:
        """Weight -> its sums."""
        return {weight: self.sums[holder] for weight, holder in self.input_of.items()}

    def add(self, other: Self) -> None:
        """Add the sums of more data, in place: they may take as much memory as a few experts' weights.

        The weights that share a sum afterwards are those that share one on both sides: placed on devices in another
        way, or in batches of another size, a model may have shared others.
        """
        holders: dict[tuple[str | None, str | None], str] = {}
        for weight in self.input_of | other.input_of:
            pair = self.input_of.get(weight), other.input_of.get(weight)
            self.input_of[weight] = holders.setdefault(pair, weight)
        uses = Counter(mine for mine, _ in holders)
        sums = {}
        for (mine, theirs), holder in holders.items():
            parts = [side.sums[name] for side, name in ((self, mine), (other, theirs)) if name is not None]
            first = parts[0] if uses[mine] == 1 and mine is not None else parts[0].copy()
            for part in parts[1:]:
                first.values += part.values
                first.counts += part.counts
            sums[holder] = first
        self.sums = sums

    def without_output(self) -> Self:
        """The same without the output head's."""
        input_of = {weight: holder for weight, holder in self.input_of.items() if weight != OUTPUT}
        return type(self)({holder: self.sums[holder] for holder in input_of.values()}, input_of)

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What a file keeps."""
        arrays: dict[str, npt.NDArray[Any]] = {"input_of": np.array(json.dumps(self.input_of))}
        arrays["output"] = np.array(self.output)
        for weight, squares in self.sums.items():
            arrays |= {f"values {weight}": squares.values, f"counts {weight}": squares.counts}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """What `to_arrays` gave; raises Damaged for what it did not."""
        names = [name.removeprefix("values ") for name in arrays if name.startswith("values ")]
        sums = {name: _sums(arrays, name) for name in names}
        input_of = parse_header(arrays, "input_of", dict[str, str])
        if set(input_of.values()) != set(sums):
            raise Damaged("the importance sums are not those that their names tell of")
        return cls(sums, input_of, bool(take(arrays, "output", "b", ())) if "output" in arrays else False)


def _sums(arrays: Mapping[str, npt.NDArray[Any]], name: str) -> Sums:
    values, counts = arrays[f"values {name}"], f"counts {name}"
    if values.ndim != 2:
        raise Damaged(f"the importance sums of {excerpt(name)} have shape {excerpt(values.shape)}")
    values = take({name: values}, name, "f", values.shape, least=0, most=MOST)
    n_counts = len(values) if arrays.get(counts, values).shape == (len(values),) else 1
    return Sums(values, take(arrays, counts, "i", (n_counts,), least=0))
