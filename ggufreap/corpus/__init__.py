"""Calibration and held-out data, from where people have it to chunks of tokens."""

from ggufreap.corpus.chunks import Chunk, Chunks, Corpus, from_text, from_tokens, read_text, read_tokens
from ggufreap.corpus.record import SourceRecord
from ggufreap.options.data import Reading

__all__ = [
    "Chunk",
    "Chunks",
    "Corpus",
    "Reading",
    "SourceRecord",
    "from_text",
    "from_tokens",
    "read_text",
    "read_tokens",
]
