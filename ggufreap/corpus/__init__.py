"""Calibration and held-out data, from where people have it to chunks of tokens."""

from ggufreap.corpus.chunks import Corpus, from_text, from_tokens, read_text, read_tokens

__all__ = ["Corpus", "from_text", "from_tokens", "read_text", "read_tokens"]
