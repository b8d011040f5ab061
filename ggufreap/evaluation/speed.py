"""Tokens per second as llama-bench measures them (tools/llama-bench/llama-bench.cpp, test_prompt and test_gen).

Pruning experts leaves the number of experts per token as it is, so what is computed per token does not change. A
smaller model is faster where it fits a faster memory, or where fewer experts share a batch's tokens.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Protocol

import numpy as np

from ggufreap.engine.generator import Memory
from ggufreap.engine.protocol import Keep, Tokens
from ggufreap.progress import Progress, silent


class TimedEngine(Protocol):
    """A loaded model, as the benchmark uses it."""

    n_vocab: int
    bos: int | None

    def sequences(self, keep: Keep | None = None) -> Memory:
        """An empty memory."""


@dataclass(frozen=True)
class Speed:
    """`test`: llama-bench's name, such as pp512 or tg128; tokens per second of every repetition."""

    test: str
    samples: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Tokens per second."""
        return fmean(self.samples)

    @property
    def deviation(self) -> float:
        """Standard deviation of the repetitions; of one, 0."""
        return stdev(self.samples) if len(self.samples) > 1 else 0.0


@dataclass(frozen=True)
class SpeedReport:
    """The same tests of a model, and of a reference where there was one; memory in bytes, None where unknown."""

    model: str
    speeds: tuple[Speed, ...]
    reference: str | None = None
    reference_speeds: tuple[Speed, ...] = ()
    memory: int | None = None
    reference_memory: int | None = None


def measure(
    engine: TimedEngine,
    *,
    n_prompt: int,
    n_gen: int,
    parallel: Sequence[int] = (1,),
    repetitions: int = 5,
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress = silent,
    stage: str = "speed",
) -> tuple[Speed, ...]:
    """Read `n_prompt` random tokens, and write `n_gen` for each of several texts at once; 0 leaves either out.

    Every test runs once to warm up and then `repetitions` times, each from an empty memory. The tokens of all texts
    count: `tg128 x4` is 512 tokens.
    """
    random = np.random.default_rng(0)

    def tokens(n: int) -> Tokens:
        ids = random.integers(0, engine.n_vocab, n).astype(np.int32)
        if engine.bos is not None:
            ids[0] = engine.bos
        return ids

    def read(memory: Memory) -> None:
        memory.feed({0: tokens(n_prompt)})

    def written(n: int) -> Callable[[Memory], None]:
        def write(memory: Memory) -> None:
            for column in np.stack([tokens(n_gen) for _ in range(n)], axis=1):
                memory.feed({sequence: column[sequence : sequence + 1] for sequence in range(n)})

        return write

    tests: dict[str, tuple[Callable[[Memory], None], int]] = {}
    if n_prompt:
        tests[f"pp{n_prompt}"] = read, n_prompt
    for n in parallel if n_gen else ():
        tests[f"tg{n_gen}" if n == 1 else f"tg{n_gen} x{n}"] = written(n), n * n_gen
    speeds = []
    with progress(stage, len(tests) * (repetitions + 1), "runs") as bar:
        for name, (run, n_tokens) in tests.items():
            run(engine.sequences())
            bar.update(1)
            samples = []
            for _ in range(repetitions):
                memory, start = engine.sequences(), clock()
                run(memory)
                samples.append(n_tokens / (clock() - start))
                bar.update(1)
            speeds.append(Speed(name, tuple(samples)))
    return tuple(speeds)
