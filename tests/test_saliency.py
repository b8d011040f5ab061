"""Every criterion on numbers made by hand."""

from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize

from ggufreap.architecture.layout import bind
from ggufreap.container import open_gguf
from ggufreap.observation import ExpertStatistics
from ggufreap.saliency import METHOD_NAMES, METHODS, random_scores, weight_norms

# Three experts of one block: a busy weak one, a rare strong one, one that was never routed.
VALUES = {
    "count": [10.0, 2.0, 0.0],
    "sum_g": [5.0, 1.5, 0.0],
    "sum_f": [20.0, 30.0, 0.0],
    "sum_gf": [8.0, 20.0, 0.0],
    "sum_gf2": [10.0, 200.0, 0.0],
    "max_f": [3.0, 9.0, 0.0],
    "sum_gf2_s2": [0.1, 0.5, 0.0],
}
EXPECTED = {
    "reap": [0.8, 10.0, -np.inf],
    "reap_root": [8 / np.sqrt(10), 20 / np.sqrt(2), 0.0],
    "reap_l2": [1.0, 10.0, -np.inf],
    "frequency": [10.0, 2.0, 0.0],
    "ean_sum": [20.0, 30.0, 0.0],
    "ean_mean": [2.0, 15.0, -np.inf],
    "weighted_ean_sum": [8.0, 20.0, 0.0],
    "weighted_frequency_sum": [5.0, 1.5, 0.0],
    "sum_squares": [10.0, 200.0, 0.0],
    "relative_squares": [0.1, 0.5, 0.0],
    "max_activations": [3.0, 9.0, 0.0],
}


@pytest.mark.parametrize("method", METHODS)
def test_scores_by_hand(method: str) -> None:
    values = {name: np.array([VALUES[name]]) for name in VALUES}
    statistics = ExpertStatistics((0,), (2,), 3, 6, 1, values)
    np.testing.assert_allclose(METHODS[method].score(statistics)[0], EXPECTED[method])


def test_every_method_is_checked_here_and_says_where_it_comes_from() -> None:
    assert set(EXPECTED) == set(METHODS)
    assert set(METHOD_NAMES) == {*METHODS, "random", "weight_norm"}
    assert all(method.formula and method.source for method in METHODS.values())


def test_random_is_a_function_of_its_seed() -> None:
    assert np.array_equal(random_scores(2, 8, 1), random_scores(2, 8, 1))
    assert not np.array_equal(random_scores(2, 8, 1), random_scores(2, 8, 2))


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.Q8_0, Kind.Q4_K, Kind.IQ4_XS, Kind.MXFP4])
def test_weight_norms_of_every_type(tmp_path: Path, kind: Kind) -> None:
    path = tiny_gguf.qwen3moe(tmp_path / "m.gguf", n_expert=8, n_used=2, types=kind)
    file = open_gguf(path)
    norms = weight_norms(file, bind(file))
    squares = 0.0
    for name in ("gate", "up", "down"):
        record = file.by_name[f"blk.1.ffn_{name}_exps.weight"]
        data = file.map(record).reshape(*record.shape[:2], -1)
        squares += (dequantize(data, kind).astype(np.float64)[5] ** 2).sum()
    assert norms.shape == (2, 8)
    assert norms[1, 5] == pytest.approx(np.sqrt(squares))
