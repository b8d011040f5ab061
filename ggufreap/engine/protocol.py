"""What the other rooms may know of a running model. Importing this needs no native library."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ggufreap.engine.importance import ImportanceSums

Tokens = npt.NDArray[np.int32]
Keep = Mapping[int, Sequence[int]]  # block -> the experts that stay, ids of the loaded model


@dataclass(frozen=True)
class RoutedBatch:
    """What one micro-batch did in one MoE block; all arrays are `[n_tokens, n_used]`.

    `experts`: ids; `weights`: g, what llama.cpp multiplies with; `norms`: ‖f‖₂ of the expert's output;
    `contributions`: g‖f‖, the REAP summand (arXiv 2510.13999, eq. 9); `peaks`: max |f| over the embedding.
    """

    block: int
    experts: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    norms: npt.NDArray[np.float32]
    contributions: npt.NDArray[np.float32]
    peaks: npt.NDArray[np.float32]


class Engine(Protocol):
    """A loaded model."""

    n_vocab: int
    bos: int | None  # the token that opens every chunk, where the model wants one

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> Tokens:
        """The model's own tokens of `text`; raises EngineError when it has no tokenizer.

        `add_special`: with the tokens that open and end a text, where the model wants them; `parse_special`: special
        tokens in the text, such as `<|im_start|>`, are what they look like.
        """

    def route(self, tokens: Tokens, importance: ImportanceSums | None = None) -> Sequence[RoutedBatch]:
        """Run one chunk from an empty memory and tell what every MoE block did.

        The squared inputs of all weights are added to `importance` where it is given.
        """

    def logits(self, tokens: Tokens, keep: Keep | None = None, scored_from: int = 0) -> npt.NDArray[np.float32]:
        """Logits `[n_tokens - scored_from, n_vocab]` of one chunk; experts outside `keep` masked out of the router."""
