"""Rows of weights in ggml types: what is written here is what ggml writes, and comes back as the type rounds it."""

import numpy as np
import pytest
import tiny_llama
from gguf import GGMLQuantizationType as Kind

from ggufreap.container import is_quantized
from ggufreap.engine.encoding import decode_rows, encode_rows, needs_importance
from ggufreap.errors import NumericFailure, UnsupportedModel

ROWS = np.random.default_rng(0).standard_normal((7, 512)).astype(np.float32)
# How far a type rounds random weights, relative to all of them.
ROUNDING = {
    Kind.F32: 0.0,
    Kind.F16: 5e-4,
    Kind.BF16: 4e-3,
    Kind.Q8_0: 1e-2,
    Kind.Q6_K: 3e-2,
    Kind.Q5_0: 5e-2,
    Kind.Q5_1: 5e-2,
    Kind.Q4_0: 0.12,
    Kind.Q4_K: 0.1,
    Kind.IQ4_NL: 0.1,
    Kind.IQ4_XS: 0.1,
    Kind.Q3_K: 0.2,
    Kind.MXFP4: 0.15,
}


@pytest.mark.native
@pytest.mark.parametrize("kind", ROUNDING)
def test_rows_come_back(kind: Kind) -> None:
    found = decode_rows(encode_rows(ROWS, kind), kind, 512)
    off = np.linalg.norm(found - ROWS) / np.linalg.norm(ROWS)
    assert off <= ROUNDING[kind]
    assert off >= ROUNDING[kind] / 20
    if is_quantized(kind):
        assert np.array_equal(encode_rows(ROWS, kind), tiny_llama.quantize_rows(ROWS, kind))


@pytest.mark.native
@pytest.mark.parametrize("kind", [Kind.Q4_K, Kind.IQ4_NL])
def test_importance_guides(kind: Kind) -> None:
    importance = np.where(np.arange(512) % 2, 100.0, 0.01).astype(np.float32)
    guided = decode_rows(encode_rows(ROWS, kind, importance), kind, 512)
    even = decode_rows(encode_rows(ROWS, kind, np.ones(512, np.float32)), kind, 512)
    for found in (guided, even):
        assert found.shape == ROWS.shape
    assert (importance * (guided - ROWS) ** 2).sum() < 0.9 * (importance * (even - ROWS) ** 2).sum()


@pytest.mark.native
def test_what_cannot_be_written() -> None:
    assert needs_importance(Kind.IQ2_XXS)
    assert not needs_importance(Kind.Q4_K)
    with pytest.raises(UnsupportedModel, match="without an importance matrix"):
        encode_rows(ROWS, Kind.IQ2_XXS)
    for bad in (np.nan, np.inf):
        with pytest.raises(NumericFailure, match="NaN or infinite"):
            encode_rows(np.full((1, 256), bad, np.float32), Kind.Q4_K)
    with pytest.raises(NumericFailure, match="beyond what F16 holds"):
        encode_rows(np.full((1, 32), 1e6, np.float32), Kind.F16)
