"""Calibration data as blocks of tokens, with a record of where they came from."""

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from ggufreap.corpus.packing import Mask
from ggufreap.corpus.record import SourceRecord
from ggufreap.decoding import Damaged
from ggufreap.decoding.arrays import read_array
from ggufreap.engine.protocol import Engine, Tokens
from ggufreap.errors import InputError


@dataclass(frozen=True)
class Chunk:
    """`tokens` `[n]`, the `number`-th chunk of its domain; `counted` `[n]` marks the tokens that count, None: all."""

    tokens: Tokens
    domain: str
    number: int
    counted: Mask | None = None


class Chunks(Protocol):
    """Chunks in a fixed order; `records` and `notes` tell of what was read so far."""

    @property
    def domains(self) -> tuple[str, ...]:
        """All domains, in order."""

    @property
    def estimate(self) -> int | None:
        """About how many tokens there are in all, None where that is unknown."""

    def __iter__(self) -> Iterator[Chunk]: ...

    def records(self) -> tuple[SourceRecord, ...]:
        """What was taken from every source."""

    def notes(self) -> tuple[str, ...]:
        """What was left out and why."""


@dataclass(frozen=True)
class Corpus:
    """Chunks `[n_chunks, n_ctx]` of token ids, all there at once; `source` says where they came from."""

    chunks: Tokens
    source: str
    domain: str = "text"

    @property
    def n_tokens(self) -> int:
        """All tokens."""
        return int(self.chunks.size)

    def head(self, n_chunks: int | None) -> Self:
        """The first `n_chunks` chunks, or all of them."""
        return replace(self, chunks=self.chunks[:n_chunks])

    @property
    def domains(self) -> tuple[str, ...]:
        """The one domain."""
        return (self.domain,)

    @property
    def estimate(self) -> int:
        """All tokens."""
        return self.n_tokens

    def __iter__(self) -> Iterator[Chunk]:
        for number, tokens in enumerate(self.chunks):
            yield Chunk(tokens, self.domain, number)

    def records(self) -> tuple[SourceRecord, ...]:
        """The one source."""
        return (SourceRecord(self.source, self.domain, samples=1, tokens=self.n_tokens, sha256=self.sha256),)

    def notes(self) -> tuple[str, ...]:
        """Nothing was left out."""
        return ()

    @property
    def sha256(self) -> str:
        """The identity of the ids and of their chunking."""
        shape = f"{self.chunks.shape}".encode()
        return hashlib.sha256(shape + np.ascontiguousarray(self.chunks, "<i4").tobytes()).hexdigest()


def read_text(path: str) -> str:
    """The UTF-8 text of a file, or of standard input for `-`."""
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        return data.decode()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text: byte {error.object[error.start]:#04x} at offset {error.start:,}; "
            "convert it, for example with iconv -t UTF-8"
        ) from error


def from_text(engine: Engine, text: str, n_ctx: int, source: str) -> Corpus:
    """Tokenise and cut into chunks as llama-imatrix does (tools/imatrix/imatrix.cpp, compute_imatrix).

    The text is one stream; the first token of every chunk gives way to BOS where the model wants one, and the rest
    that fills no chunk is left out. One newline at the end is no text (common/arg.cpp, -f).
    """
    if not text.strip():
        raise InputError(f"{source} has no text: calibration needs some")
    chunks = _cut(engine.tokenize(text.removesuffix("\n")), n_ctx, source).copy()
    if engine.bos is not None:
        chunks[:, 0] = engine.bos
    return Corpus(chunks, source)


def read_tokens(path: Path) -> npt.NDArray[np.integer]:
    """The token ids of an .npy file, `[n]` or `[n_chunks, n_ctx]`."""
    try:
        with path.open("rb") as file:
            ids = read_array(file, path.stat().st_size)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except Damaged as error:
        raise InputError(f"{path} is not an .npy file of numbers: {error}; write one with numpy.save") from error
    if ids.ndim not in (1, 2) or not np.issubdtype(ids.dtype, np.integer):
        raise InputError(
            f"{path} holds {ids.dtype} of shape {ids.shape}; integers of shape [n] or [n_chunks, n_ctx] are read"
        )
    if ids.size == 0:
        raise InputError(f"{path} holds zero tokens: calibration needs some")
    return ids


def from_tokens(ids: npt.NDArray[np.integer], n_ctx: int, n_vocab: int, source: str, domain: str = "tokens") -> Corpus:
    """Token ids `[n]`, cut into chunks of `n_ctx`, or `[n_chunks, n]` as they are (n <= n_ctx)."""
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= n_vocab:
        raise InputError(
            f"{source} holds token {low if low < 0 else high}, the model's vocabulary is 0 to {n_vocab - 1}; "
            "tokenise with this model's own vocabulary"
        )
    tokens = ids.astype(np.int32)
    if tokens.ndim == 2 and tokens.shape[1] > n_ctx:
        raise InputError(f"{source} has chunks of {tokens.shape[1]} tokens, -c is {n_ctx}; raise -c")
    return Corpus(tokens if tokens.ndim == 2 else _cut(tokens, n_ctx, source), source, domain)


def _cut(ids: Tokens, n_ctx: int, source: str) -> Tokens:
    n_chunks = len(ids) // n_ctx
    if n_chunks == 0:
        raise InputError(
            f"{source} has {len(ids):,} tokens, one chunk of -c {n_ctx} needs {n_ctx:,}; give more text or a smaller -c"
        )
    return ids[: n_chunks * n_ctx].reshape(n_chunks, n_ctx)
