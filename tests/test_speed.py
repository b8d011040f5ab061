"""The benchmark: what is run, what is counted, and that it runs in llama.cpp."""

from collections.abc import Mapping
from itertools import count

import numpy as np
import pytest

from ggufreap import verbs
from ggufreap.demonstration import MODEL
from ggufreap.engine.protocol import Keep, Tokens
from ggufreap.evaluation.speed import Speed, measure
from ggufreap.options.engine import EngineSettings


class Recorder:
    n_vocab, bos = 50, 7

    def __init__(self) -> None:
        self.fed: list[list[dict[int, list[int]]]] = []

    def sequences(self, keep: Keep | None = None) -> "Recorder":
        self.fed.append([])
        return self

    def feed(self, parts: Mapping[int, Tokens], every: bool = False) -> dict[int, np.ndarray]:
        self.fed[-1].append({sequence: part.tolist() for sequence, part in parts.items()})
        return {}

    def drop(self, sequence: int) -> None:
        raise AssertionError("nothing is dropped")


def test_every_test_runs_from_an_empty_memory_and_counts_all_tokens() -> None:
    engine, ticks = Recorder(), count(step=2.0)
    speeds = measure(engine, n_prompt=10, n_gen=3, parallel=(1, 4), repetitions=2, clock=lambda: next(ticks))
    assert speeds == (Speed("pp10", (5.0, 5.0)), Speed("tg3", (1.5, 1.5)), Speed("tg3 x4", (6.0, 6.0)))
    assert [len(run) for run in engine.fed] == [1] * 3 + [3] * 6, "each runs once more, to warm up"
    assert len(engine.fed[0][0][0]) == 10
    assert engine.fed[0][0][0][0] == engine.fed[3][0][0][0] == 7, "BOS comes first"
    assert [sorted(step) for step in engine.fed[-1]] == [[0, 1, 2, 3]] * 3
    assert all(0 <= token < 50 for run in engine.fed for step in run for part in step.values() for token in part)


def test_what_is_left_out_is_not_run() -> None:
    assert [speed.test for speed in measure(Recorder(), n_prompt=0, n_gen=2, repetitions=1)] == ["tg2"]
    assert [speed.test for speed in measure(Recorder(), n_prompt=4, n_gen=0, repetitions=1)] == ["pp4"]


def test_the_deviation_is_that_of_a_sample() -> None:
    assert Speed("pp1", (1.0, 2.0, 3.0)).deviation == 1.0
    assert (Speed("pp1", (4.0,)).mean, Speed("pp1", (4.0,)).deviation) == (4.0, 0.0)


@pytest.mark.native
def test_the_verb_measures_both_models() -> None:
    settings = EngineSettings(n_ubatch=64, n_threads=1, n_gpu_layers=0)
    report = verbs.bench(
        MODEL, reference=MODEL, n_prompt=64, n_gen=4, parallel=(1, 2), repetitions=2, settings=settings
    )
    assert [speed.test for speed in report.speeds] == ["pp64", "tg4", "tg4 x2"]
    assert [speed.test for speed in report.reference_speeds] == ["pp64", "tg4", "tg4 x2"]
    assert all(sample > 0 for speed in (*report.speeds, *report.reference_speeds) for sample in speed.samples)
    # The weights are 8.2 MB, and the same model takes the same.
    assert 8e6 < report.memory < 200e6
    assert report.memory == pytest.approx(report.reference_memory, rel=0.3)
