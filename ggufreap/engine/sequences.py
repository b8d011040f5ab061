"""Several texts at once, each of which goes on from what llama.cpp remembers of it (the KV cache)."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ggufreap.engine.native import bindings
from ggufreap.engine.protocol import Tokens
from ggufreap.engine.taps import Tap


class Decoder(Protocol):
    """What texts in memory need of the session that holds them."""

    n_batch: int  # tokens that one call of `decode` takes
    n_parallel: int
    n_vocab: int

    def decode(
        self,
        tokens: Tokens,
        positions: npt.ArrayLike,
        sequences: npt.ArrayLike,
        outputs: npt.ArrayLike,
        tap: Tap | None = None,
    ) -> None:
        """Run `[n]` tokens, `n_batch` at most, at their positions in their sequences; `outputs`: whose logits count."""

    def outputs(self, count: int) -> npt.NDArray[np.float32]:
        """The logits `[count, n_vocab]` that `decode` just computed; llama.cpp's own memory."""


class Sequences:
    """Texts in the memory of `session`, numbered from 0; LlamaSession.sequences makes it."""

    def __init__(self, session: Decoder, memory: Any, tap: Tap | None) -> None:
        self._session, self._memory, self._tap = session, memory, tap
        self._llama = bindings()
        self._lengths = [0] * session.n_parallel

    def feed(self, parts: Mapping[int, Tokens], every: bool = False) -> dict[int, npt.NDArray[np.float32]]:
        """Append tokens `[n]` to sequences; the logits `[1, n_vocab]` after the last of each, or `[n, n_vocab]`.

        Raises EngineError when the memory is full.
        """
        sequences = np.repeat(list(parts), [len(part) for part in parts.values()])
        positions = np.concatenate([self._lengths[s] + np.arange(len(part)) for s, part in parts.items()])
        tokens = np.concatenate(list(parts.values())).astype(np.int32)
        wanted = np.ones(len(tokens), bool) if every else np.append(sequences[1:] != sequences[:-1], True)
        logits = self._run(tokens, positions, sequences, wanted)
        for sequence, part in parts.items():
            self._lengths[sequence] += len(part)
        return {sequence: logits[sequences[wanted] == sequence] for sequence in parts}

    def fork(self, source: int, targets: Sequence[int]) -> None:
        """Let `targets`, which are empty, go on from what `source` holds."""
        for target in targets:
            self._llama.llama_memory_seq_cp(self._memory, source, target, -1, -1)
            self._lengths[target] = self._lengths[source]

    def drop(self, sequence: int) -> None:
        """Forget a sequence."""
        self._llama.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        self._lengths[sequence] = 0

    def _run(
        self, tokens: Tokens, positions: npt.NDArray[Any], sequences: npt.NDArray[Any], wanted: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.float32]:
        session, row = self._session, 0
        logits = np.empty((int(wanted.sum()), session.n_vocab), np.float32)
        for start in range(0, len(tokens), session.n_batch):
            part = slice(start, start + session.n_batch)
            session.decode(tokens[part], positions[part], sequences[part], wanted[part], self._tap)
            if count := int(wanted[part].sum()):
                logits[row : row + count] = session.outputs(count)
            row += count
        return logits
