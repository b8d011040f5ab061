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

from ggufreap.decoding.signatures import HEAD, what_is
from ggufreap.engine.protocol import Tokens
from ggufreap.errors import InputError
from ggufreap.evaluation.scores import Logits, Map, Reference, first_scored
from ggufreap.files import replacing

MAGIC = b"_logits_"
LEVELS = np.float32(65535)
RANGE = np.float32(16)  # in nats: what is further below the largest logit is written as if it were just there
SLACK = np.float32(0.01)  # by which rounding may move ln p


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
        self._check(index, rows)
        values = rows["q"][:, : self.n_vocab].astype(np.float32)
        values *= rows["scale"][:, None]
        values += rows["min"][:, None]
        return Reference.of_log_probabilities(values)

    def _check(self, index: int, rows: npt.NDArray[np.void]) -> None:
        """Raise InputError for rows of no probabilities: the largest of each is 1 at most, 1/n_vocab at least."""
        scale, low, most = rows["scale"], rows["min"], rows["q"][:, : self.n_vocab].max(axis=1, initial=0)
        with np.errstate(over="ignore", invalid="ignore"):  # what is looked for
            top = low + scale * most
            fits = (scale >= 0) & (top <= SLACK) & (top >= -np.log(self.n_vocab) - SLACK)
        if len(rows) < _n_scored(self.chunks.shape[1]) or not fits.all():
            raise InputError(
                f"{self.path}: chunk {index + 1} holds what is no log-probability; the file is damaged, write it again"
            )


def open_base(path: Path) -> BaseFile:
    """Open a file for reading; raises InputError for anything else or a truncated one."""
    try:
        with path.open("rb") as file:
            start = file.read(HEAD)
            file.seek(len(MAGIC))
            head = np.fromfile(file, "<i4", 3)
            if not start.startswith(MAGIC) or len(head) < 3 or head.min() < 1:
                is_what = f"is {what_is(start)}, not" if what_is(start) and not start.startswith(MAGIC) else "is not"
                raise InputError(f"{path} {is_what} a file of log-probabilities; write one with --kl-divergence-base")
            n_ctx, n_vocab, n_chunk = (int(value) for value in head)
            if not _n_scored(n_ctx):
                raise InputError(f"{path} has chunks of {n_ctx} tokens, 3 are the least; it is damaged, write it again")
            nbytes_row = 8 + 2 * (n_vocab + n_vocab % 2)  # of what _row describes, whose size numpy limits
            expected = file.tell() + n_chunk * (n_ctx * 4 + _n_scored(n_ctx) * nbytes_row)
            nbytes = path.stat().st_size
            if nbytes != expected:
                raise InputError(
                    f"{path} has {nbytes:,} bytes, {n_chunk} chunks of {n_ctx} tokens and {n_vocab} log-probabilities "
                    f"take {expected:,}; it is truncated or damaged, write it again"
                )
            chunks = np.fromfile(file, "<i4", n_chunk * n_ctx).astype(np.int32).reshape(n_chunk, n_ctx)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if chunks.min() < 0 or chunks.max() >= n_vocab:
        wrong = int(chunks.min() if chunks.min() < 0 else chunks.max())
        raise InputError(f"{path} holds token {wrong}, its vocabulary is 0 to {n_vocab - 1}; it is damaged")
    return BaseFile(path, n_vocab, chunks)


def is_base_of(path: Path, chunks: Tokens, n_vocab: int) -> bool:
    """Whether a file of such log-probabilities of the same chunks is there; of which model, only its bytes tell."""
    try:
        base = open_base(path)
    except InputError:
        return False
    return base.n_vocab == n_vocab and np.array_equal(base.chunks, chunks)


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
