"""The importance matrix of a calibration pass, out of the file that holds its sums."""

from ggufreap.engine.importance import ImportanceSums
from ggufreap.imatrix.matrix import Imatrix, ImatrixEntry
from ggufreap.observation import Stored


def of_sums(sums: ImportanceSums, dataset: str, n_chunks: int, chunk_size: int) -> Imatrix:
    """What was collected over `n_chunks` chunks of `chunk_size` tokens of `dataset`."""
    entries = {weight: ImatrixEntry.of(squares.values, squares.counts) for weight, squares in sums.named().items()}
    return Imatrix(entries, (dataset,), n_chunks, chunk_size)


def collected(stored: Stored, output: bool) -> Imatrix:
    """The matrix that calibration collected into statistics; of the output head only with `output`.

    Raises InputError where it collected none.
    """
    sums = stored.importance_sums()
    names = ", ".join(record.name for record in stored.provenance.sources)
    kept = sums if output else sums.without_output()
    return of_sums(kept, names, stored.n_chunks, stored.provenance.n_ctx)
