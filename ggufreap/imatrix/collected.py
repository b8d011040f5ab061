"""The importance matrix of a calibration pass."""

from ggufreap.engine.importance import ImportanceSums
from ggufreap.imatrix.matrix import Imatrix, ImatrixEntry


def of_sums(sums: ImportanceSums, dataset: str, n_chunks: int, chunk_size: int) -> Imatrix:
    """What was collected over `n_chunks` chunks of `chunk_size` tokens of `dataset`."""
    entries = {weight: ImatrixEntry.of(found.values, found.counts) for weight, found in sums.named().items()}
    return Imatrix(entries, (dataset,), n_chunks, chunk_size)
