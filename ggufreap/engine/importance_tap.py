"""Collects the importance matrix: the sum of squares of every weight's input, as llama-imatrix does.

Same weights, same counts (tools/imatrix/imatrix.cpp, IMatrixCollector::collect_imatrix). Weights that multiply the very
same activations (query, key and value; gate and up) share one sum, so it is computed and held once. Which do is seen by
the address of the activations, in the first graph. Where weights lie on several devices, each may have a copy of them:
then sums are kept apart, which costs time and memory and is as right. The next graph may be laid out otherwise, since
small batches stay on the CPU (ggml-backend.cpp, op_offload); what was decided holds for all of them.
"""

from collections.abc import Callable

import numpy as np

from ggufreap.engine.importance import OUTPUT, ImportanceSums, Sums
from ggufreap.engine.native import GgmlTensor, TensorReader, op_at, op_code, origin_at, tensor_at
from ggufreap.engine.taps import not_finite

MIN_TOKENS = 16  # llama-imatrix leaves smaller products out
F32 = 0


class ImportanceTap:
    """Adds every chunk that runs through the graph to `totals`."""

    def __init__(self, totals: ImportanceSums, reader: TensorReader) -> None:
        self.totals, self.reader = totals, reader
        self._matmul, self._matmul_id = op_code("MUL_MAT"), op_code("MUL_MAT_ID")
        self._seen: dict[tuple[int, int], str] = {}

    def begin(self) -> None:
        """Forget the addresses of the previous graph."""
        self._seen.clear()

    def handler_of(self, pointer: int) -> Callable[[int], bool] | None:
        """What to do with a node once it is computed; None where nothing is collected, or collected already."""
        op = op_at(pointer)
        if op == self._matmul_id:
            tensor = tensor_at(pointer)
            return self._once(tensor, (tensor.src[1], tensor.src[2]), self._routed)
        if op == self._matmul:
            tensor = tensor_at(pointer)
            inputs = tensor_at(tensor.src[1])
            if inputs.ne[1] >= MIN_TOKENS and inputs.type == F32 and self._wants(_weight(tensor)):
                return self._once(tensor, (tensor.src[1], 0), self._dense)
        return None

    def _wants(self, weight: str) -> bool:
        return weight.startswith("blk.") or (self.totals.output and weight == OUTPUT)

    def _once(
        self, tensor: GgmlTensor, inputs: tuple[int, int], collect: Callable[[int], bool]
    ) -> Callable[[int], bool] | None:
        weight = _weight(tensor)
        if weight not in self.totals.input_of:
            holder = self._seen.setdefault(inputs, weight)
            # A weight with several matrices, or with another number of them, keeps sums of its own.
            if holder != weight and _n_mat(tensor) != self.totals.sums[holder].values.shape[0]:
                holder = weight
            self.totals.input_of[weight] = holder
        return collect if self.totals.input_of[weight] == weight else None

    def _routed(self, pointer: int) -> bool:
        tensor = tensor_at(pointer)
        experts = self.reader.read(tensor.src[2])[0, 0].copy()  # [n_tokens, n_used], strided
        inputs = self.reader.read(tensor.src[1])[0]  # [n_tokens, 1 or n_used, n_in]
        n_used = experts.shape[1]
        sums = self._sums(tensor, inputs.shape[-1], _n_mat(tensor))
        flat = inputs.reshape(-1, inputs.shape[-1])
        order = np.argsort(experts, axis=None, kind="stable")
        reached, starts = np.unique(experts.ravel()[order], return_index=True)
        places = order if inputs.shape[1] > 1 else order // n_used
        for expert, own in zip(reached.tolist(), np.split(places, starts[1:]), strict=True):
            # Expert by expert, whose rows stay in the cache: np.add.reduceat over all of them takes ten times as long.
            rows = flat[own]
            np.square(rows, out=rows)
            sums.values[expert] += rows.sum(axis=0)
            sums.counts[expert] += len(own)
        broken = reached[~np.isfinite(sums.values[reached]).all(axis=1)]
        if broken.size:
            raise not_finite(f"block {_weight(tensor).split('.')[1]}, expert {broken[0]}")
        return True

    def _dense(self, pointer: int) -> bool:
        tensor = tensor_at(pointer)
        inputs = self.reader.read(tensor.src[1])  # [ne3, ne2, n_tokens, n_in]
        n_mat = _n_mat(tensor)
        sums = self._sums(tensor, inputs.shape[-1], n_mat, n_count=1)
        squares = np.einsum("abtn,abtn->abn", inputs, inputs).reshape(-1, inputs.shape[-1])
        np.add.at(sums.values, np.arange(len(squares)) % n_mat, squares)
        sums.counts += inputs.shape[0] * inputs.shape[1] * inputs.shape[2] // n_mat
        if not np.isfinite(sums.values).all():
            raise not_finite(f"the input of {_weight(tensor)}")
        return True

    def _sums(self, tensor: GgmlTensor, n_in: int, n_mat: int, n_count: int | None = None) -> Sums:
        def empty() -> Sums:
            return Sums(np.zeros((n_mat, n_in), np.float32), np.zeros(n_count or n_mat, np.int64))

        weight = _weight(tensor)
        if weight not in self.totals.sums:
            self.totals.sums[weight] = empty()
        return self.totals.sums[weight]


def _weight(tensor: GgmlTensor) -> str:
    return origin_at(tensor.src[0]).decode()


def _n_mat(tensor: GgmlTensor) -> int:
    weight = tensor_at(tensor.src[0])
    return int(weight.ne[2] * weight.ne[3])
