"""What the other rooms may know of a running model. Importing this needs no native library."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from ggufreap.engine.importance import ImportanceSums
from ggufreap.engine.observables import Float32s

Tokens = npt.NDArray[np.int32]
Keep = Mapping[int, Sequence[int]]  # block -> the experts that stay, ids of the loaded model


@dataclass(frozen=True)
class RoutedBatch:
    """What one micro-batch did in one MoE block.

    `experts` `[n_tokens, n_used]`: ids; `weights` `[n_tokens, n_used]`: g, what llama.cpp multiplies with; `observed`:
    what else was asked for, by its name and in the shape of engine.observables.OBSERVABLES.
    """

    block: int
    experts: npt.NDArray[np.integer]
    weights: Float32s
    observed: Mapping[str, Float32s]

    def __getitem__(self, observable: str) -> Float32s:
        """One of `observed`; raises KeyError for what was not asked for."""
        if observable not in self.observed:
            raise KeyError(f"{observable} was not observed; a statistic names in `needs` what it reads of a batch")
        return self.observed[observable]

    def only(self, tokens: npt.NDArray[np.bool_]) -> Self:
        """The marked `[n_tokens]` tokens alone."""
        return self._rows(tokens)

    def part(self, index: int, n_texts: int) -> Self:
        """The tokens of one text of a micro-batch that holds as many of each of `n_texts`, text by text."""
        count = len(self.experts) // n_texts
        return self._rows(slice(index * count, (index + 1) * count))

    def _rows(self, rows: npt.NDArray[np.bool_] | slice) -> Self:
        observed = {name: values[rows] for name, values in self.observed.items()}
        return replace(self, experts=self.experts[rows], weights=self.weights[rows], observed=observed)


class Engine(Protocol):
    """A loaded model."""

    n_vocab: int
    bos: int | None  # the token that opens every chunk, where the model wants one
    n_together: int  # chunks that are run at once

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> Tokens:
        """The model's own tokens of `text`; raises EngineError when it has no tokenizer.

        `add_special`: with the tokens that open and end a text, where the model wants them; `parse_special`: special
        tokens in the text, such as `<|im_start|>`, are what they look like.
        """

    def route(
        self, tokens: Tokens, importance: ImportanceSums | None = None, observables: Collection[str] = ()
    ) -> Sequence[RoutedBatch]:
        """Run one chunk from an empty memory and tell what every MoE block did, with those `observables` and no other.

        The squared inputs of all weights are added to `importance` where it is given.
        """

    def route_together(
        self, chunks: Sequence[Tokens], importance: ImportanceSums | None = None, observables: Collection[str] = ()
    ) -> Sequence[Sequence[RoutedBatch]]:
        """What `route` tells of each of `n_together` chunks at most, all of one length, up to rounding."""

    def logits(self, tokens: Tokens, keep: Keep | None = None, scored_from: int = 0) -> npt.NDArray[np.float32]:
        """Logits `[n_tokens - scored_from, n_vocab]` of one chunk; experts outside `keep` masked out of the router."""

    def logits_together(
        self, tokens: Tokens, keeps: Sequence[Keep | None], scored_from: int = 0
    ) -> npt.NDArray[np.float32]:
        """`[n_keeps, n_tokens - scored_from, n_vocab]`: `logits` with each of `n_together` keep-sets at most.

        It may be the engine's own memory, until the next run.
        """
