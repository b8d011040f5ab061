"""Pieces of tokens become chunks: packed one behind the other, or one sample each."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ggufreap.engine.protocol import Tokens

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Piece:
    """The tokens of a sample of the `source`-th source or file, or of a part of it; `opens`: of its beginning."""

    tokens: Tokens
    counted: Mask
    source: int
    opens: bool


# Tokens and mask of a chunk, and whose tokens they are in turn: (source, count, whether a sample begins there).
Filled = tuple[Tokens, Mask, list[tuple[int, int, bool]]]


def packed(pieces: Iterator[Piece], n_ctx: int) -> Iterator[Filled]:
    """Full chunks, one piece behind the other; what fills no chunk at the end is left out."""
    waiting: deque[Piece] = deque()
    length = 0
    for piece in pieces:
        waiting.append(piece)
        length += len(piece.tokens)
        while length >= n_ctx:
            yield _cut_off(waiting, n_ctx)
            length -= n_ctx


def _cut_off(waiting: deque[Piece], n_ctx: int) -> Filled:
    tokens, counted, owners, missing = [], [], [], n_ctx
    while missing:
        piece = waiting.popleft()
        tokens.append(piece.tokens[:missing])
        counted.append(piece.counted[:missing])
        owners.append((piece.source, len(tokens[-1]), piece.opens))
        if len(piece.tokens) > missing:
            waiting.appendleft(Piece(piece.tokens[missing:], piece.counted[missing:], piece.source, opens=False))
        missing -= len(tokens[-1])
    return np.concatenate(tokens), np.concatenate(counted), owners


def unpacked(pieces: Iterator[Piece], n_ctx: int) -> Iterator[Filled]:
    """A chunk per sample, which is cut where the chunk is full."""
    for piece in pieces:
        if piece.opens and len(piece.tokens):
            tokens = piece.tokens[:n_ctx].copy()
            yield tokens, piece.counted[:n_ctx], [(piece.source, len(tokens), True)]
