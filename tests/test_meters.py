"""Meters, base files and gates, against their definitions; no llama.cpp."""

import math
import struct
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_engine import FakeEngine

from ggufreap.corpus import Corpus
from ggufreap.errors import InputError, NumericFailure
from ggufreap.evaluation import (
    METRICS,
    Comparison,
    Meters,
    compare_with,
    compare_with_base,
    of_engine,
    open_base,
    parse_gate,
    perplexity,
    writing_base,
)
from ggufreap.evaluation import base_file as base_files
from ggufreap.evaluation import scores as per_token
from ggufreap.evaluation.perplexity import Perplexity
from ggufreap.evaluation.scores import Reference, TokenScores, compare, negative_log_likelihood, targets_of

RNG = np.random.default_rng(0)


def logits(n_rows: int, n_vocab: int, spread: float = 4) -> np.ndarray:
    return (spread * RNG.standard_normal((n_rows, n_vocab)) + 7).astype(np.float32)


def log_softmax(values: np.ndarray) -> np.ndarray:
    exact = values.astype(np.float64)
    return exact - np.logaddexp.reduce(exact, axis=1, keepdims=True)


# Per token.


@pytest.mark.parametrize("kept", [True, False])  # the original's probabilities
@pytest.mark.parametrize("n_vocab", [5, 501, 40_000, 131_073])  # many rows per block, few, and less than one
def test_scores_by_definition(n_vocab: int, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(per_token, "SMALL_NBYTES", 1 << 30 if kept else 0)
    original = logits(37, n_vocab)
    candidate = original + logits(37, n_vocab, 0.3)
    targets = RNG.integers(0, n_vocab, 37).astype(np.int32)
    p, q = log_softmax(original), log_softmax(candidate)
    counts = p > -16
    with ThreadPoolExecutor(2) as pool:
        found = compare(Reference.of(original, pool.map), candidate, targets, pool.map)
    assert n_vocab < 500 or not counts.all(), "the bound must matter"
    expected = np.where(counts, np.exp(p) * (p - q), 0).sum(axis=1)
    np.testing.assert_allclose(found.kld, expected, atol=3e-7)
    np.testing.assert_allclose(found.overlap, 1 - np.abs(np.exp(p) - np.exp(q)).sum(axis=1) / 2, atol=2e-6)
    each = np.arange(37)
    np.testing.assert_allclose(found.nll, -q[each, targets], atol=2e-6)
    np.testing.assert_allclose(found.nll_reference, -p[each, targets], atol=2e-6)
    assert np.array_equal(found.same_top, p.argmax(axis=1) == q.argmax(axis=1))
    np.testing.assert_allclose(negative_log_likelihood(candidate, targets), found.nll)


def test_what_the_original_hardly_expects_does_not_count() -> None:
    original = np.float32([[0, -15.9, -16.1]])
    candidate = np.float32([[0, -18.9, -99]])
    p, q = log_softmax(original)[0], log_softmax(candidate)[0]
    found = compare(Reference.of(original), candidate, np.zeros(1, np.int32))
    assert found.kld[0] == pytest.approx(sum(math.exp(p[i]) * (p[i] - q[i]) for i in (0, 1)), rel=1e-4)


def test_a_model_loses_nothing_against_itself() -> None:
    same = logits(64, 3000, 9)
    found = compare(Reference.of(same), same.copy(), np.zeros(64, np.int32))
    assert (found.kld == 0).all()
    assert found.same_top.all()
    assert np.array_equal(found.nll, found.nll_reference)
    np.testing.assert_allclose(found.overlap, 1, atol=2e-6)


def test_a_small_loss_is_no_rounding() -> None:
    original = logits(8, 4096)
    step = 1e-3 * RNG.standard_normal((8, 4096)).astype(np.float32)
    p, q = log_softmax(original), log_softmax(original + step)
    found = compare(Reference.of(original), original + step, np.zeros(8, np.int32))
    np.testing.assert_allclose(found.kld, (np.exp(p) * (p - q)).sum(axis=1), atol=1e-7)
    assert 1e-8 < found.kld.mean() < 1e-6


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_refused(bad: float) -> None:
    broken = logits(3, 100)
    broken[1, 7] = bad
    with pytest.raises(NumericFailure, match="a logit is NaN or infinite"):
        compare(Reference.of(logits(3, 100)), broken, np.zeros(3, np.int32))


def test_memory_is_that_of_two_chunks_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(per_token, "SMALL_NBYTES", 0)  # this is about large vocabularies
    n_vocab, chunks = 60_000, np.zeros((3, 128), np.int32)
    size = 64 * n_vocab * 4

    class Wide(FakeEngine):
        def logits(self, tokens: np.ndarray, keep: object = None, scored_from: int = 0) -> np.ndarray:
            return np.ones((len(tokens) - scored_from, n_vocab), np.float32)

    candidates = [of_engine(Wide())] * 3
    tracemalloc.start()
    compare_with(of_engine(Wide()), candidates, {"a": Corpus(chunks, "zeros")})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 2 * size <= peak < 2.2 * size


# Figures.


def scores(kld: np.ndarray, same_top: np.ndarray | None = None) -> TokenScores:
    nll = RNG.random(len(kld))
    return TokenScores(kld, np.ones(len(kld), bool) if same_top is None else same_top, 1 - kld / 9, nll, nll - 0.1)


def test_meters_by_definition() -> None:
    kld = RNG.random(101)
    tokens = scores(kld, np.arange(101) < 90)
    found = Meters.of(tokens)
    assert (found.n_scored, found.top1) == (101, 90 / 101)
    assert (found.kld, found.kld_stderr) == pytest.approx((kld.mean(), kld.std(ddof=1) / math.sqrt(101)))
    assert [found.kld_median, found.kld_p90, found.kld_p99] == pytest.approx(np.sort(kld)[[50, 90, 99]].tolist())
    assert found.esap == pytest.approx(1 - kld.mean() / 9)
    assert found.perplexity.value == pytest.approx(math.exp(tokens.nll.mean()))
    assert (found.ppl_ratio, found.ppl_ratio_stderr) == pytest.approx((math.exp(0.1), 0), abs=1e-12)
    assert found.ppl_reference == pytest.approx(math.exp(tokens.nll_reference.mean()))
    assert found.figures.keys() == METRICS.keys()


@pytest.mark.parametrize(("share", "n"), [(0.9, 100), (1.0, 50), (0.0, 50)])
def test_wilson_by_definition(share: float, n: int) -> None:
    """The bounds are the shares from which the found one is 1.96 standard deviations away."""
    found = replace(Meters.of(scores(np.zeros(2))), n_scored=n, top1=share)
    low, high = found.top1_interval
    for bound in (low, high):
        assert abs(share - bound) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / n), rel=1e-6, abs=1e-7)
    assert 0 <= low < high <= 1
    assert low - 1e-12 <= share <= high + 1e-12


def test_every_domain_counts_the_same_and_the_worst_is_named() -> None:
    domains = {"short": Meters.of(scores(np.full(10, 0.4))), "long": Meters.of(scores(np.full(1000, 0.2)))}
    comparison = Comparison(domains)
    assert comparison.mean.kld == pytest.approx(0.3)
    assert comparison.mean.n_scored == 1010
    geometric = math.sqrt(domains["short"].perplexity.value * domains["long"].perplexity.value)
    assert comparison.mean.perplexity.value == pytest.approx(geometric)
    assert comparison.mean.nll_stderr == pytest.approx(
        math.hypot(domains["short"].nll_stderr, domains["long"].nll_stderr) / 2
    )
    assert (comparison.worst_domain, comparison.worst) == ("short", domains["short"])


def test_perplexity_scores_the_second_half() -> None:
    engine, chunks = FakeEngine(), RNG.integers(0, 128, (3, 65)).astype(np.int32)
    table = log_softmax(engine.logits(np.arange(128)))
    losses = [-table[chunk[i], chunk[i + 1]] for chunk in chunks for i in range(32, 64)]
    found = perplexity(engine, Corpus(chunks, "ids"))
    assert found.n_scored == len(losses) == 96
    assert found.value == pytest.approx(math.exp(np.mean(losses)), rel=1e-6)
    assert found.stderr == pytest.approx(found.value * np.std(losses, ddof=1) / math.sqrt(96), rel=1e-6)


# Base files.


def coded(row: np.ndarray) -> bytes:
    """One row as llama-perplexity's log_softmax writes it, value by value."""
    high, low = max(row), max(min(row), max(row) - np.float32(16))
    total = np.float32(math.log(sum(math.exp(float(value - high)) for value in row)))
    scale = (high - low) / np.float32(65535)
    levels = [round(float(np.float32(1) / scale * (value - low))) if value > low else 0 for value in row]
    padding = [0] * (len(row) % 2)
    return struct.pack(f"<ff{len(row) + len(padding)}H", scale, low - high - total, *levels, *padding)


@pytest.mark.parametrize("n_vocab", [128, 127])
def test_a_base_file_is_llama_perplexity_s(tmp_path: Path, n_vocab: int) -> None:
    chunks = RNG.integers(0, n_vocab, (2, 17)).astype(np.int32)
    rows = [logits(8, n_vocab, 9), logits(8, n_vocab, 1)]
    path = tmp_path / "base"
    with writing_base(path, chunks, n_vocab) as writer:
        for each in rows:
            writer.add(each)
        assert not path.exists(), "a base file appears whole"
    head = b"_logits_" + struct.pack("<3i", 17, n_vocab, 2) + chunks.astype("<i4").tobytes()
    data = path.read_bytes()
    expected = head + b"".join(coded(row) for each in rows for row in each)
    assert len(data) == len(expected)
    assert data[: len(head)] == head
    found, wanted = (np.frombuffer(raw, "<u2", offset=len(head)).reshape(16, -1) for raw in (data, expected))
    assert np.array_equal(found[:, 4:], wanted[:, 4:])
    np.testing.assert_allclose(found[:, :4].copy().view("<f4"), wanted[:, :4].copy().view("<f4"), rtol=1e-6)
    base = open_base(path)
    assert (base.n_vocab, base.chunks.tolist()) == (n_vocab, chunks.tolist())
    for index, each in enumerate(rows):
        kept = np.maximum(each, each.max(axis=1, keepdims=True) - 16)
        wanted = log_softmax(each) + (kept - each)
        np.testing.assert_allclose(base.reference(index).logits, wanted, atol=16 / 65535)


def test_a_row_without_differences_has_no_scale(tmp_path: Path) -> None:
    with writing_base(tmp_path / "base", np.zeros((1, 4), np.int32), 6) as writer:
        writer.add(np.full((1, 6), 3, np.float32))
    np.testing.assert_allclose(open_base(tmp_path / "base").reference(0).logits, -math.log(6), rtol=1e-6)


def test_a_model_against_its_own_base_file_loses_the_rounding(tmp_path: Path) -> None:
    engine, chunks = FakeEngine(bos=3), RNG.integers(0, 128, (2, 64)).astype(np.int32)
    with writing_base(tmp_path / "base", chunks, 128) as writer:
        for chunk in chunks:
            writer.add(of_engine(engine)(chunk))
    found = compare_with_base(open_base(tmp_path / "base"), engine, "x").domains["x"]
    exact = perplexity(engine, Corpus(chunks, "ids"))
    assert 0 < abs(found.kld) < 1e-5
    assert found.top1 == 1
    assert (found.perplexity.value, found.n_scored) == (exact.value, exact.n_scored)
    assert found.ppl_ratio == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: data[:-1], r"it is truncated or damaged"),
        (lambda data: data + b"x", r"it is truncated or damaged"),
        (lambda data: b"GGUF" + data[4:], r"is a GGUF file, not a file of log-probabilities"),
        (lambda data: data[:8] + struct.pack("<3i", 2, 10, 1) + data[20:], r"chunks of 2 tokens, 3 are the least"),
        (lambda data: data[:12] + struct.pack("<i", 2**31 - 1) + data[16:], r"it is truncated or damaged"),
        (lambda data: data[:20] + struct.pack("<i", -7) + data[24:], r"holds token -7, its vocabulary is 0 to 9"),
        (lambda data: data[:20] + struct.pack("<i", 10) + data[24:], r"holds token 10, its vocabulary is 0 to 9"),
        (lambda data: data[:15], r"is not a file of log-probabilities"),
        (lambda data: data[:8] + struct.pack("<i", -1) + data[12:], r"is not a file of log-probabilities"),
    ],
)
def test_a_spoilt_base_file_is_refused(tmp_path: Path, spoil: object, message: str) -> None:
    path = tmp_path / "base"
    with writing_base(path, np.zeros((1, 8), np.int32), 10) as writer:
        writer.add(logits(3, 10))
    path.write_bytes(spoil(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(InputError, match=message):
        open_base(path)
    with pytest.raises(InputError, match="cannot read"):
        open_base(tmp_path / "missing")


@pytest.mark.parametrize("number", [np.nan, np.inf, -1e30, 3e38])
@pytest.mark.parametrize("field", [0, 1])
def test_a_base_file_without_probabilities_is_refused(tmp_path: Path, number: float, field: int) -> None:
    path = tmp_path / "base"
    with writing_base(path, np.zeros((1, 8), np.int32), 10) as writer:
        writer.add(logits(3, 10))
    data, at = path.read_bytes(), 20 + 8 * 4 + 4 * field
    path.write_bytes(data[:at] + struct.pack("<f", number) + data[at + 4 :])
    with pytest.raises(InputError, match="chunk 1 holds what is no log-probability"):
        open_base(path).reference(0)


def test_figures_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(NumericFailure, match=r"perplexity is not a number: exp\(1e\+06\)"):
        Perplexity.of(1e6, 1.0, 3)
    values = np.array([1.0, np.nan])
    scores = TokenScores(values, np.array([True, False]), values, values, values)
    with pytest.raises(NumericFailure, match="kld is not a number"):
        Meters.of(scores)


def test_nothing_half_written_stays(tmp_path: Path) -> None:
    writing = writing_base(tmp_path / "base", np.zeros((1, 8), np.int32), 10)
    writing.__enter__().add(logits(3, 10))
    assert not writing.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert list(tmp_path.iterdir()) == []


def test_positions_and_targets() -> None:
    assert targets_of(np.arange(8)).tolist() == [5, 6, 7]
    assert targets_of(np.arange(9)).tolist() == [5, 6, 7, 8]
    assert base_files._n_scored(8) == 3


# Gates.

DOMAINS = {
    "code": dict.fromkeys(METRICS, 1.0) | {"kld": 0.1, "top1": 0.8},
    "de.x": dict.fromkeys(METRICS, 1.0) | {"kld": 0.3, "top1": 0.9},
}
MEAN = dict.fromkeys(METRICS, 1.0) | {"kld": 0.2, "top1": 0.85}


@pytest.mark.parametrize(
    ("text", "where", "value", "failed"),
    [
        ("kld>0.19", "mean", 0.2, True),
        ("mean.kld > 2e-1", "mean", 0.2, False),
        ("kld>=0.2", "mean", 0.2, True),
        (" worst_domain.kld>0.2", "domain.de.x", 0.3, True),
        ("worst_domain.kld>0.3", "domain.de.x", 0.3, False),
        ("worst_domain.top1<0.85", "domain.code", 0.8, True),
        ("domain.de.x.top1<=0.9", "domain.de.x", 0.9, True),
        ("domain.code.ppl<1", "domain.code", 1.0, False),
    ],
)
def test_gates(text: str, where: str, value: float, failed: bool) -> None:
    outcome = parse_gate(text).check(DOMAINS, MEAN)
    assert (outcome.gate, outcome.where, outcome.value, outcome.failed) == (text.strip(), where, value, failed)


def test_a_value_that_is_no_number_fails_whatever_the_limit() -> None:
    assert parse_gate("kld<0").check(DOMAINS, MEAN | {"kld": math.nan}).failed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kld", "is not understood"),
        ("kld=0.2", "is not understood"),
        ("kld>", "is not understood"),
        ("kld>much", "'much' is not a number"),
        ("kld>nan", "'nan' is not a number"),
        ("kl>1", "metric 'kl' is not known; choose one of kld, "),
        ("best.kld>1", "scope 'best' is not known"),
        ("domain..kld>1", "scope 'domain.' is not known"),
    ],
)
def test_gates_that_are_none(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_gate(text)


def test_gates_ask_for_what_will_be_known() -> None:
    with pytest.raises(InputError, match=r"there is no domain 'fr', only code, de\.x"):
        parse_gate("domain.fr.kld>1").require(DOMAINS, METRICS)
    with pytest.raises(InputError, match="kld needs an original"):
        parse_gate("kld>1").require(DOMAINS, ["ppl"])
