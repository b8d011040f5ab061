"""Statistics that were observed apart, added."""

import logging
from collections.abc import Sequence
from pathlib import Path

from ggufreap.files import claim, written_by
from ggufreap.observation import DomainStatistics, Stored, save
from ggufreap.observation import merge as merged
from ggufreap.showing import to_copy
from ggufreap.verbs.calibrate import export_matrix

_LOG = logging.getLogger(__name__)


@written_by
def merge(stats: Sequence[str | Path], out: str | Path, *, force: bool = False) -> DomainStatistics:
    """Add statistics that were observed apart, and their importance matrices where all have one.

    The matrix is also written beside `out`, as llama-imatrix would have. Other files are replaced with `force` alone.
    """
    paths = [Path(path) for path in stats]
    target = Path(out)
    matrix = matrix_beside(target)
    claim(target, matrix, inputs=paths)
    whole = merged(paths)
    save(target, *whole)
    if missing := Stored.open(target).provenance.missing:
        _LOG.warning("%s holds %s", target, missing)
    if whole.sums is not None:
        export_matrix(Stored.open(target), matrix, whole.sums.output)
    elif left := [str(matrix_beside(path)) for path in paths if matrix_beside(path).exists()]:
        _LOG.warning(
            "not merged: %s; statistics without importance sums do not tell whether a matrix beside them is theirs. "
            "To add matrices up by themselves: %s",
            ", ".join(left),
            to_copy("imatrix", *left, "-o", matrix),
        )
    return whole.statistics


def matrix_beside(stats: Path) -> Path:
    """Where the importance matrix of the same pass is written: S.imatrix.gguf beside S.npz."""
    return stats.with_name(f"{stats.name.removesuffix('.npz')}.imatrix.gguf")
