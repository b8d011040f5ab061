"""llama-perplexity's `--kl-divergence-base` file: the log-probabilities of a model over a text, in 16 bits.

Layout, little-endian (tools/perplexity/perplexity.cpp, perplexity() writes and kl_divergence() reads): `_logits_`;
i32 n_ctx, n_vocab, n_chunk; i32 tokens[n_chunk][n_ctx]; then for each chunk the n_ctx - 1 - n_ctx/2 scored rows, each
f32 scale, f32 min and u16 q[n_vocab] with one more as padding if n_vocab is odd: ln p = scale q + min.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from ggufreap.engine.protocol import Tokens
from ggufreap.errors import InputError
from ggufreap.evaluation.scores import Logits, Map, Reference, first_scored
from ggufreap.files import replacing

MAGIC = b"_logits_"
LEVELS = np.float32(65535)
RANGE = np.float32(16)  # in nats: what is further below the largest logit is written as if it were just there


@dataclass(frozen=True)
class BaseFile:
    """An opened file; `chunks` are the tokens `[n_chunks, n_ctx]`, before a BOS takes the first place of each."""

    path: Path
    n_vocab: int
    chunks: Tokens

    def reference(self, index: int) -> Reference:
        """The log-probabilities of one chunk, as they were written: a row need not quite sum to 1."""
        n_ctx = self.chunks.shape[1]
        row = _row(self.n_vocab)
        n_rows = _n_scored(n_ctx)
        start = len(MAGIC) + 12 + self.chunks.size * 4 + index * n_rows * row.itemsize
        rows = np.fromfile(self.path, row, n_rows, offset=start)
        values = rows["q"][:, : self.n_vocab].astype(np.float32)
        values *= rows["scale"][:, None]
        values += rows["min"][:, None]
        return Reference.of_log_probabilities(values)


def open_base(path: Path) -> BaseFile:
    """Open a file for reading; raises InputError for anything else or a truncated one."""
    try:
        with path.open("rb") as file:
            magic, head = file.read(len(MAGIC)), np.fromfile(file, "<i4", 3)
            if magic != MAGIC or len(head) < 3 or head.min() < 1:
                raise InputError(f"{path} is not a file of log-probabilities; write one with --kl-divergence-base")
            n_ctx, n_vocab, n_chunk = (int(value) for value in head)
            expected = file.tell() + n_chunk * (n_ctx * 4 + _n_scored(n_ctx) * _row(n_vocab).itemsize)
            found = path.stat().st_size
            if found != expected:
                raise InputError(
                    f"{path} has {found:,} bytes, {n_chunk} chunks of {n_ctx} tokens and {n_vocab} log-probabilities "
                    f"take {expected:,}; it is truncated or damaged, write it again"
                )
            chunks = np.fromfile(file, "<i4", n_chunk * n_ctx).astype(np.int32).reshape(n_chunk, n_ctx)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    return BaseFile(path, n_vocab, chunks)


def is_base_of(path: Path, chunks: Tokens, n_vocab: int) -> bool:
    """Whether a file of such log-probabilities of the same chunks is there; of which model, only its bytes tell."""
    try:
        found = open_base(path)
    except InputError:
        return False
    return found.n_vocab == n_vocab and np.array_equal(found.chunks, chunks)


class BaseWriter:
    """Takes the logits of one chunk after the other."""

    def __init__(self, file: BinaryIO, n_vocab: int) -> None:
        self._file, self._n_vocab = file, n_vocab

    def add(self, logits: Logits, run: Map = map) -> None:
        """Append the scored rows `[n_scored, n_vocab]` of the next chunk."""
        log_total = Reference.of(logits, run).log_total
        for values, total in zip(logits, log_total, strict=True):
            self._file.write(_coded(values, total).tobytes())


@contextmanager
def writing_base(path: Path, chunks: Tokens, n_vocab: int) -> Iterator[BaseWriter]:
    """Write a file of these chunks `[n_chunks, n_ctx]`, whole or not at all; every chunk must be added in order."""
    with replacing(path) as file:
        n_chunk, n_ctx = chunks.shape
        file.write(MAGIC + np.array([n_ctx, n_vocab, n_chunk], "<i4").tobytes() + chunks.astype("<i4").tobytes())
        yield BaseWriter(file, n_vocab)


def _n_scored(n_ctx: int) -> int:
    return n_ctx - 1 - first_scored(n_ctx)


def _row(n_vocab: int) -> np.dtype[np.void]:
    return np.dtype([("scale", "<f4"), ("min", "<f4"), ("q", "<u2", (n_vocab + n_vocab % 2,))])


def _coded(logits: Logits, log_total: np.float64) -> npt.NDArray[np.void]:
    """One row: 65,536 levels from the largest logit down to the smallest, 16 nats below at most."""
    row = np.zeros(1, _row(len(logits)))
    high = logits.max()
    low = np.maximum(logits.min(), high - RANGE)
    scale = (high - low) / LEVELS
    row["scale"], row["min"] = scale, low - high - np.float32(log_total - high)
    if scale:
        steps = (np.float32(1) / scale) * (np.maximum(logits, low) - low)
        row["q"][0, : len(logits)] = np.rint(steps)
    return row
