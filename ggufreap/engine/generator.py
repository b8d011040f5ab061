"""What a model writes: prompt in, token by token out, several prompts at once."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ggufreap.engine.protocol import Keep, Tokens
from ggufreap.errors import InputError
from ggufreap.progress import Progress, silent


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, `n_predict` at most: the likeliest at `temperature` 0, else at random.

    `seed` is mixed with the prompt's place among the prompts.
    """

    n_predict: int
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Generated:
    """What was written; `ended`: the model itself stopped, with an end-of-generation token that is left out."""

    tokens: Tokens
    ended: bool


class Memory(Protocol):
    """ggufreap.engine.sequences.Sequences, as the generator uses it."""

    def feed(self, parts: Mapping[int, Tokens], every: bool = False) -> dict[int, npt.NDArray[np.float32]]:
        """Append tokens; the logits after each sequence's last."""

    def drop(self, sequence: int) -> None:
        """Forget a sequence."""


class GenerativeEngine(Protocol):
    """A loaded model that remembers `n_parallel` texts of `n_ctx` tokens together."""

    n_ctx: int
    n_parallel: int

    def sequences(self, keep: Keep | None = None) -> Memory:
        """An empty memory."""

    def is_end(self, token: int) -> bool:
        """Whether `token` ends a text."""


@dataclass
class _Run:
    index: int
    prompt: Tokens
    random: np.random.Generator
    written: list[int] = field(default_factory=list)

    @property
    def pending(self) -> Tokens:
        """What the memory has not seen yet."""
        return np.asarray(self.written[-1:], np.int32) if self.written else self.prompt


def generate(
    engine: GenerativeEngine,
    prompts: Sequence[Tokens],
    sampling: Sampling,
    *,
    keep: Keep | None = None,
    stop: Callable[[Sequence[int]], bool] | None = None,
    progress: Progress = silent,
    stage: str = "generating",
) -> list[Generated]:
    """Continue every prompt, experts outside `keep` masked out of the router, until the model or `stop` ends it.

    `stop` sees all tokens written so far. A text does not depend on those beside it but for the last bits of the
    logits, which change with the batch. Raises InputError when a prompt does not fit.
    """
    _check_fit(engine, prompts, sampling)
    waiting = deque(
        _Run(index, prompt, np.random.default_rng([sampling.seed, index])) for index, prompt in enumerate(prompts)
    )
    free, running, done = list(range(engine.n_parallel)), dict[int, _Run](), dict[int, Generated]()
    memory = engine.sequences(keep)
    with progress(stage, len(prompts), "prompts") as bar:
        while waiting or running:
            while waiting and free:
                running[free.pop()] = waiting.popleft()
            logits = memory.feed({sequence: run.pending for sequence, run in running.items()})
            for sequence, run in list(running.items()):
                token = sample(logits[sequence][-1], sampling.temperature, run.random)
                ended = engine.is_end(token)
                if not ended:
                    run.written.append(token)
                if ended or len(run.written) == sampling.n_predict or (stop and stop(run.written)):
                    done[run.index] = Generated(np.asarray(run.written, np.int32), ended)
                    del running[sequence]
                    memory.drop(sequence)
                    free.append(sequence)
                    bar.update(1)
    return [done[index] for index in range(len(prompts))]


def sample(logits: npt.NDArray[np.float32], temperature: float, random: np.random.Generator) -> int:
    """One token of the softmax of `logits / temperature`, or the likeliest, the first of equals, at 0."""
    if temperature == 0:
        return int(logits.argmax())
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    return int(random.choice(len(weights), p=weights / weights.sum()))


def _check_fit(engine: GenerativeEngine, prompts: Iterable[Tokens], sampling: Sampling) -> None:
    share = engine.n_ctx // engine.n_parallel
    for number, prompt in enumerate(prompts, 1):
        if len(prompt) == 0:
            raise InputError(f"prompt {number} has no tokens; a model needs some text to go on from")
        if len(prompt) + sampling.n_predict > share:
            raise InputError(
                f"prompt {number} has {len(prompt)} tokens, with -n {sampling.n_predict} it does not fit the {share} "
                f"of -c {engine.n_ctx} that each of {engine.n_parallel} texts may take; raise -c or lower -n or -np"
            )
