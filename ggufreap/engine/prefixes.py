"""A loaded model of which some blocks at a time are observed, and all before them computed again."""

from dataclasses import replace
from typing import BinaryIO

from ggufreap.engine.graph import Piece
from ggufreap.engine.observing import Wanted
from ggufreap.engine.protocol import RoutedBatch, Tokens
from ggufreap.engine.session import LlamaSession


class Prefixes:
    """As Piecewise, wherever the weights lie: nothing waits on disk, and every piece begins at the first block."""

    spills = False

    def __init__(self, session: LlamaSession, n_blocks: int) -> None:
        self._session, self._n_blocks = session, n_blocks

    def ends(self, _tokens: Tokens) -> list[int]:
        """The blocks after which a piece may end: all."""
        return list(range(self._n_blocks))

    def begin(self, piece: Piece) -> None:
        """The weights are there."""

    def end(self, piece: Piece) -> None:
        """The weights stay."""

    def observe(
        self, tokens: Tokens, piece: Piece, _source: BinaryIO | None, _sink: BinaryIO | None, wanted: Wanted
    ) -> list[RoutedBatch]:
        """What the blocks of `piece` did with one chunk, as `wanted`."""
        return list(self._session.observe(tokens, replace(wanted, blocks=piece.blocks)))
