"""Several files of one domain in turn, where a limit of chunks would else be reached in the first of them."""

import heapq
from collections.abc import Iterator, Sequence
from itertools import count

from ggufreap.corpus.packing import Piece

IN_TURN = "files in turn"  # tells such chunks from those of versions that read one file after the other
MOST_OPEN = 32  # files at a time, each of which holds a MiB of text


def in_turn(files: Sequence[Iterator[Piece]], n_tokens: int) -> Iterator[Piece]:
    """The pieces of all files, cut to `n_tokens`: the file with the fewest tokens so far is next.

    At most MOST_OPEN are open; the next one begins when one has ended.
    """
    waiting, numbers = iter(files), count()
    opened: list[tuple[int, int, Iterator[Piece]]] = []
    while True:
        while len(opened) < MOST_OPEN and (file := next(waiting, None)) is not None:
            heapq.heappush(opened, (0, next(numbers), _cut(file, n_tokens)))
        if not opened:
            return
        taken, number, file = opened[0]
        if (piece := next(file, None)) is None:
            heapq.heappop(opened)
        else:
            heapq.heapreplace(opened, (taken + len(piece.tokens), number, file))
            yield piece


def _cut(pieces: Iterator[Piece], n_tokens: int) -> Iterator[Piece]:
    for piece in pieces:
        for start in range(0, len(piece.tokens), n_tokens):
            part = slice(start, start + n_tokens)
            yield Piece(piece.tokens[part], piece.counted[part], piece.source, piece.opens and not start)
