"""An original's logits on disk, so that it need not be in memory beside what is compared with it."""

import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from ggufreap.engine.protocol import Tokens
from ggufreap.errors import OutputError
from ggufreap.evaluation import Logits
from ggufreap.evaluation.comparing import Forward


class Spill:
    """Logits in the order they are added, exactly as they are; the file has no name, so nothing is left of it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # __exit__ closes it
        self._places: list[tuple[int, tuple[int, ...]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, logits: Logits) -> None:
        """Append the rows `[n_scored, n_vocab]` of the next chunk; raises OutputError where there is no room."""
        try:
            self._places.append((self._file.seek(0, 2), logits.shape))
            self._file.write(np.ascontiguousarray(logits).data)
            self._file.flush()
        except OSError as error:
            raise OutputError(
                f"cannot keep the original's logits in {self._folder}: {error.strerror}; free some space there"
            ) from error

    def again(self) -> Forward:
        """The original once more, for the same chunks in the same order."""
        places = iter(self._places)

        def read(_chunk: Tokens) -> Logits:
            start, shape = next(places)
            self._file.seek(start)
            return np.fromfile(self._file, np.float32, shape[0] * shape[1]).reshape(shape)

        return read
