"""The vocabulary of a loaded model: text to tokens and back."""

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from ggufreap.engine.protocol import Tokens
from ggufreap.errors import EngineError

PIECE_NBYTES = 256  # of the text of one token, to begin with


class Vocabulary:
    """`bos`: the token that every text begins with, None where it does with none; `opening`: the token before any text.

    Lives as long as the model.
    """

    def __init__(self, llama: Any, model: Any) -> None:
        self._llama, self._vocab = llama, llama.llama_model_get_vocab(model)
        self.n_vocab: int = llama.llama_vocab_n_tokens(self._vocab)
        bos: int = llama.llama_vocab_bos(self._vocab)
        self.bos = bos if llama.llama_vocab_get_add_bos(self._vocab) else None
        self.opening = bos if bos >= 0 else int(llama.llama_vocab_eos(self._vocab))

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> Tokens:
        """Tokens of `text`; raises EngineError where the model has no tokenizer, or it cannot."""
        llama = self._llama
        if llama.llama_vocab_type(self._vocab) == llama.LLAMA_VOCAB_TYPE_NONE or self.n_vocab == 0:
            raise EngineError("this model has no tokenizer; give token ids with --tokens IDS.npy")
        data = text.encode()
        tokens = np.empty(len(data) + 8, np.int32)
        pointer = tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        count = llama.llama_tokenize(self._vocab, data, len(data), pointer, len(tokens), add_special, parse_special)
        if count < 0:
            raise EngineError("llama.cpp cannot tokenise the text with this model's vocabulary; use --tokens IDS.npy")
        return tokens[:count].copy()

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`."""
        return b"".join(self._piece(int(token), PIECE_NBYTES) for token in tokens).decode(errors="replace")

    def _piece(self, token: int, nbytes: int) -> bytes:
        buffer = ctypes.create_string_buffer(nbytes)
        length = self._llama.llama_token_to_piece(self._vocab, token, buffer, nbytes, 0, False)
        # Negative, the buffer is too small: a long run of spaces, in some vocabularies.
        return buffer.raw[:length] if length >= 0 else self._piece(token, -length)

    def is_end(self, token: int) -> bool:
        """Whether `token` ends what a model writes, as llama.cpp's programs see it."""
        return bool(self._llama.llama_vocab_is_eog(self._vocab, token))
