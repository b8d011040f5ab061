"""Statistics are sums: of hand-made batches, over any split of the data, through files and interruptions."""

import itertools
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_engine import FakeEngine

from ggufreap.corpus import Corpus
from ggufreap.engine.importance import ImportanceSums
from ggufreap.engine.protocol import RoutedBatch
from ggufreap.errors import InputError, MismatchError, OutputError
from ggufreap.observation import (
    STATISTICS,
    DomainStatistics,
    ExpertStatistics,
    Importance,
    Provenance,
    Stored,
    checkpoint_path,
    load,
    observables,
    observe,
    per_expert,
)

PROVENANCE = Provenance("model", "corpus", 16, 16, "test", "0")


def corpus(n_chunks: int = 6, n_ctx: int = 16) -> Corpus:
    return Corpus(np.random.default_rng(1).integers(0, 128, (n_chunks, n_ctx)).astype(np.int32), "test")


def test_the_sums_of_a_batch_made_by_hand() -> None:
    batch = RoutedBatch(
        block=3,
        experts=np.array([[0, 2], [2, 1]], np.int32),
        weights=np.array([[0.75, 0.25], [0.5, 0.5]], np.float32),
        observed={
            "norms": np.array([[4, 8], [2, 6]], np.float32),
            "contributions": np.array([[3, 2], [1, 3]], np.float32),
            "peaks": np.array([[1, 5], [2, 7]], np.float32),
            "products": np.array([[[9, -4], [-4, 4]], [[1, 2], [2, 9]]], np.float32),
            "stream_norms": np.array([1, 2], np.float32),
        },
    )
    found = ExpertStatistics.empty([3], [2], 4).observe([batch], n_tokens=2)
    expected = {
        "count": [1, 1, 2, 0],
        "sum_g": [0.75, 0.5, 0.75, 0],
        "sum_f": [4, 6, 10, 0],
        "sum_gf": [3, 3, 3, 0],
        "sum_gf2": [9, 9, 5, 0],
        "max_f": [1, 7, 5, 0],
        "sum_gf2_s2": [9, 2.25, 4.25, 0],
        "gram": [[9, 0, -4, 0], [0, 2.25, 0.5, 0], [-4, 0.5, 4.25, 0], [0, 0, 0, 0]],
    }
    assert {name: values[0].tolist() for name, values in found.values.items()} == expected
    assert set(expected) == set(STATISTICS)
    found.check()


def observed(chunks: np.ndarray, engine: FakeEngine) -> ExpertStatistics:
    statistics = ExpertStatistics.empty([0, 1], [2, 2], 8)
    for chunk in chunks:
        statistics = statistics.observe(engine.route(chunk, None, observables()), len(chunk))
    return statistics


@pytest.mark.parametrize("cut", range(7))
def test_two_parts_add_up_to_the_whole(cut: int) -> None:
    chunks, engine = corpus().chunks, FakeEngine()
    whole = observed(chunks, engine)
    parts = observed(chunks[:cut], engine) + observed(chunks[cut:], engine)
    assert (parts.n_tokens, parts.n_chunks) == (whole.n_tokens, whole.n_chunks)
    for name in STATISTICS:
        scale = np.abs(whole.values[name]).max()  # of the terms: those of a Gram matrix have either sign
        np.testing.assert_allclose(parts.values[name], whole.values[name], rtol=1e-14, atol=1e-14 * scale)


def test_statistics_of_different_models_do_not_add() -> None:
    with pytest.raises(MismatchError, match="different models"):
        ExpertStatistics.empty([0], [2], 8) + ExpertStatistics.empty([0], [2], 9)


def test_a_missing_token_is_noticed() -> None:
    statistics = observed(corpus().chunks, FakeEngine())
    with pytest.raises(MismatchError, match="block 0 counted 192 routed tokens"):
        replace(statistics, n_tokens=statistics.n_tokens + 1).check()


def same(a: DomainStatistics, b: DomainStatistics) -> bool:
    pairs = [(a.halves[domain][half], b.halves[domain][half]) for domain in a.halves for half in (0, 1)]
    values = all(np.array_equal(x.values[name], y.values[name]) for x, y in pairs for name in STATISTICS)
    frames = all(replace(x, values={}) == replace(y, values={}) for x, y in pairs)
    return a.domains == b.domains and values and frames and replace(a, halves={}) == replace(b, halves={})


class Interrupted(FakeEngine):
    """Ctrl-C, or worse, in the middle of chunk `at`."""

    def __init__(self, at: int, failure: type[BaseException]) -> None:
        super().__init__()
        self.at, self.failure = at, failure

    def route(
        self, tokens: np.ndarray, importance: ImportanceSums | None = None, observables: Collection[str] = ()
    ) -> list[RoutedBatch]:
        if self.n_routed == self.at:
            raise self.failure
        return super().route(tokens, importance, observables)


class Killed(BaseException):
    """Stands for a process that ends without a word."""


@pytest.mark.parametrize(("at", "failure"), list(itertools.product([0, 1, 4, 5], [KeyboardInterrupt, Killed])))
def test_a_resumed_calibration_ends_bit_identical(tmp_path: Path, at: int, failure: type[BaseException]) -> None:
    engine, out, whole_path = FakeEngine(), tmp_path / "s.npz", tmp_path / "whole.npz"
    options = {"importance": Importance(), "checkpoint_seconds": 0}
    whole = observe(engine, engine.nodes, corpus(), PROVENANCE, whole_path, **options)
    with pytest.raises(failure):
        observe(Interrupted(at, failure), engine.nodes, corpus(), PROVENANCE, out, **options)
    assert not out.exists()
    engine.n_routed = 0
    resumed = observe(engine, engine.nodes, corpus(), PROVENANCE, out, **options)
    assert engine.n_routed == 6 - at
    assert same(resumed, whole)
    assert out.read_bytes() == whole_path.read_bytes(), "importance sums included"
    assert not checkpoint_path(out).exists()


def test_a_finished_calibration_is_used_again(tmp_path: Path) -> None:
    engine, out = FakeEngine(), tmp_path / "s.npz"
    first = observe(engine, engine.nodes, corpus(), PROVENANCE, out)
    engine.n_routed = 0
    assert same(observe(engine, engine.nodes, corpus(), PROVENANCE, out), first)
    assert engine.n_routed == 0


def test_statistics_of_other_text_are_not_overwritten(tmp_path: Path) -> None:
    engine, out = FakeEngine(), tmp_path / "s.npz"
    observe(engine, engine.nodes, corpus(), PROVENANCE, out)
    before = out.read_bytes()
    with pytest.raises(MismatchError, match="holds statistics with another corpus"):
        observe(engine, engine.nodes, corpus(), replace(PROVENANCE, corpus="other"), out)
    assert out.read_bytes() == before


def test_a_missing_folder_is_noticed_before_the_work(tmp_path: Path) -> None:
    engine = FakeEngine()
    with pytest.raises(OutputError, match="does not exist"):
        observe(engine, engine.nodes, corpus(), PROVENANCE, tmp_path / "absent" / "s.npz")
    assert engine.n_routed == 0


def test_an_unfinished_calibration_of_other_text_is_not_touched(tmp_path: Path) -> None:
    engine, out = FakeEngine(), tmp_path / "s.npz"
    with pytest.raises(KeyboardInterrupt):
        observe(Interrupted(3, KeyboardInterrupt), engine.nodes, corpus(), PROVENANCE, out)
    with pytest.raises(MismatchError, match="another corpus"):
        observe(engine, engine.nodes, corpus(), replace(PROVENANCE, corpus="other"), out)
    assert load(checkpoint_path(out))[0].n_chunks == 3


@pytest.mark.parametrize("before", [False, True])
def test_a_matrix_is_finished_as_it_was_begun(tmp_path: Path, before: bool) -> None:
    engine, out = FakeEngine(), tmp_path / "s.npz"
    interrupted = Interrupted(3, KeyboardInterrupt)
    begun, other = Importance(output=before), Importance(output=not before)
    with pytest.raises(KeyboardInterrupt):
        observe(interrupted, engine.nodes, corpus(), PROVENANCE, out, importance=begun)
    with pytest.raises(MismatchError, match=f"{'with' if before else 'without'} --process-output; finish it so"):
        observe(engine, engine.nodes, corpus(), PROVENANCE, out, importance=other)
    observe(engine, engine.nodes, corpus(), PROVENANCE, out, importance=begun)
    assert out.exists()


def test_an_unfinished_calibration_without_what_is_wanted_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine, out = FakeEngine(), tmp_path / "s.npz"
    with pytest.raises(KeyboardInterrupt):
        observe(Interrupted(3, KeyboardInterrupt), engine.nodes, corpus(), PROVENANCE, out)
    with pytest.raises(MismatchError, match="unfinished calibration without importance matrix"):
        observe(engine, engine.nodes, corpus(), PROVENANCE, out, importance=Importance())
    monkeypatch.setitem(STATISTICS, "sum_g2", per_expert(lambda batch: batch.weights**2, "sum of g²"))
    with pytest.raises(MismatchError, match="unfinished calibration without sum_g2; choose another -o"):
        observe(engine, engine.nodes, corpus(), PROVENANCE, out)
    more = tmp_path / "more.npz"
    with pytest.raises(KeyboardInterrupt):
        observe(Interrupted(3, KeyboardInterrupt), engine.nodes, corpus(), PROVENANCE, more, importance=Importance())
    observe(engine, engine.nodes, corpus(), PROVENANCE, more)
    assert "importance sums of the unfinished calibration are left out" in caplog.text
    assert Stored.open(more).importance is None


def test_what_a_finished_calibration_lacks_is_added_aloud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine, out = FakeEngine(), tmp_path / "s.npz"
    first = observe(engine, engine.nodes, corpus(), PROVENANCE, out)
    wanted = [None, Importance(), Importance(output=True), Importance(), None]
    for importance, lacks in zip(
        wanted, ["", "importance sums", "importance sums of the output head", "", ""], strict=True
    ):
        engine.n_routed = 0
        caplog.clear()
        assert same(observe(engine, engine.nodes, corpus(), PROVENANCE, out, importance=importance), first)
        assert engine.n_routed == (6 if lacks else 0)
        assert (f"{out} lacks {lacks}: calibrating again to add it" in caplog.text) == bool(lacks)
    with pytest.raises(InputError, match=r"hold no sum_g2, only count, .*; calibrate again"):
        load(out)[0].total.values["sum_g2"]
    monkeypatch.setitem(STATISTICS, "sum_g2", per_expert(lambda batch: batch.weights**2, "sum of g²"))
    total = observe(engine, engine.nodes, corpus(), PROVENANCE, out).total
    assert f"{out} lacks sum_g2" in caplog.text
    assert (total.values["sum_g2"] <= total.values["sum_g"]).all()
    monkeypatch.setitem(STATISTICS, "sum_g2", replace(STATISTICS["sum_g2"], version=2))
    assert "sum_g2" not in load(out)[0].names
    assert f"{out} holds sum_g2, recorded by another version of ggufreap; that is left out" in caplog.text
    monkeypatch.delitem(STATISTICS, "sum_g2")
    observe(engine, engine.nodes, corpus(), PROVENANCE, out, importance=Importance())
    assert "lacks importance sums: calibrating again to add it, without sum_g2 of another version" in caplog.text


@pytest.mark.parametrize("name", STATISTICS)
def test_a_statistic_reads_only_what_it_declares_and_folds_in_place(name: str) -> None:
    row = STATISTICS[name]
    batch = FakeEngine().route(corpus().chunks[0], observables=row.needs)[0]
    assert set(batch.observed) == set(row.needs)
    with pytest.raises(KeyError, match="output_norms was not observed; a statistic names in `needs`"):
        batch["output_norms"]
    array = np.full(row.shape(8), row.zero)
    row.fold(array, batch)
    assert array.any()
    half = [np.full(row.shape(8), row.zero) for _ in range(2)]
    tokens = np.arange(16) < 9
    row.fold(half[0], batch.only(tokens))
    row.fold(half[1], batch.only(~tokens))
    np.testing.assert_allclose(row.add(*half), array, rtol=1e-14)


def test_a_need_that_nothing_observes_is_refused() -> None:
    with pytest.raises(InputError, match="needs 'nroms'; what can be observed is norms, contributions"):
        per_expert(lambda batch: batch["nroms"], "", ("nroms",))


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04broken"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "s.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"s\.npz"):
        load(path)


def test_another_npz_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", a=np.zeros(3))
    with pytest.raises(InputError, match="not a statistics file"):
        load(tmp_path / "s.npz")
