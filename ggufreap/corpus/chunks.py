"""Calibration data as blocks of tokens, with a record of where they came from."""

import hashlib
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from ggufreap.engine.protocol import Engine, Tokens
from ggufreap.errors import InputError


@dataclass(frozen=True)
class Corpus:
    """Chunks `[n_chunks, n_ctx]` of token ids; `sha256` identifies the ids, `source` says where they came from."""

    chunks: Tokens
    source: str

    @property
    def n_tokens(self) -> int:
        """All tokens."""
        return int(self.chunks.size)

    def head(self, n_chunks: int | None) -> Self:
        """The first `n_chunks` chunks, or all of them."""
        return replace(self, chunks=self.chunks[:n_chunks])

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
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text: byte {error.object[error.start]:#04x} at offset {error.start:,}; "
            "convert it, for example with iconv -t UTF-8"
        ) from None


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
            ids = np.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, MemoryError):
        raise InputError(f"{path} is not an .npy file of numbers; write one with numpy.save") from None
    if ids.ndim not in (1, 2) or not np.issubdtype(ids.dtype, np.integer):
        raise InputError(
            f"{path} holds {ids.dtype} of shape {ids.shape}; integers of shape [n] or [n_chunks, n_ctx] are read"
        )
    if ids.size == 0:
        raise InputError(f"{path} holds zero tokens: calibration needs some")
    return ids


def from_tokens(ids: npt.NDArray[np.integer], n_ctx: int, n_vocab: int, source: str) -> Corpus:
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
    return Corpus(tokens if tokens.ndim == 2 else _cut(tokens, n_ctx, source), source)


def _cut(ids: Tokens, n_ctx: int, source: str) -> Tokens:
    n_chunks = len(ids) // n_ctx
    if n_chunks == 0:
        raise InputError(
            f"{source} has {len(ids):,} tokens, one chunk of -c {n_ctx} needs {n_ctx:,}; give more text or a smaller -c"
        )
    return ids[: n_chunks * n_ctx].reshape(n_chunks, n_ctx)
