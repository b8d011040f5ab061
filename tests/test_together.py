"""Chunks that run together, in one graph, tell what they tell one by one: in every architecture."""

import logging
import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
import tiny_native

from ggufreap.architecture.layout import MoeLayout, bind
from ggufreap.container import open_gguf
from ggufreap.corpus import Chunk, Corpus
from ggufreap.engine import context
from ggufreap.engine.importance import ImportanceSums
from ggufreap.engine.protocol import RoutedBatch, Tokens
from ggufreap.engine.session import LlamaSession
from ggufreap.errors import EngineError
from ggufreap.evaluation import compare_passes, compare_with, of_engine, together
from ggufreap.observation import ExpertStatistics, Stored, checkpoint_path, observables, observe
from ggufreap.observation.chunkwise import grouped
from ggufreap.options.engine import EngineSettings
from ggufreap.verbs import calibrate

pytestmark = pytest.mark.native

NAMES = [name for name in (*tiny_native.NATIVE, *tiny_native.VARIANTS) if name not in tiny_native.REFUSED]
# 88 tokens of each are micro-batches of 64 and 24.
CHUNKS = np.random.default_rng(5).integers(0, tiny_native.N_VOCAB, (3, 88)).astype(np.int32)
SETTINGS = EngineSettings(n_ctx=88, n_ubatch=64, n_threads=1, n_gpu_layers=0, exact=True)
# What each product or sum may differ by, of the largest: its order is another.
STATISTICS, SUMS = 1e-5, 1e-5
ROUGH: dict[str, float] = {}


def observed(
    path: Path, layout: MoeLayout, chunks: Sequence[Tokens], n_together: int
) -> tuple[list[ExpertStatistics], ImportanceSums, int]:
    """Statistics of every chunk, the importance sums of all, and how many ran at once."""
    blocks, used = [block.index for block in layout.trunk], [block.n_used for block in layout.trunk]
    nothing, sums, found = ExpertStatistics.empty(blocks, used, layout.n_expert), ImportanceSums(), []
    with LlamaSession(path, layout.nodes, replace(SETTINGS, n_together=n_together), together=9) as session:
        for start in range(0, len(chunks), session.n_together):
            group = chunks[start : start + session.n_together]
            for batches in session.route_together(group, sums, observables()):
                found.append(nothing.observe(batches, len(group[0])))
        return found, sums, session.n_together


def check_equal(one: np.ndarray, other: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(other, one, rtol=0, atol=tolerance * np.abs(one).max())


@pytest.mark.parametrize("name", NAMES)
def test_of_every_architecture(name: str, tmp_path: Path) -> None:
    file = open_gguf(tiny_native.build(name, tmp_path / "model.gguf"))
    layout = bind(file)
    alone, sums_alone, _ = observed(file.path, layout, list(CHUNKS), 1)
    grouped_up, sums, at_once = observed(file.path, layout, list(CHUNKS), 2)
    assert at_once == (2 if layout.nodes.causal and not layout.nodes.headless else 1)
    for one, other in zip(alone, grouped_up, strict=True):
        assert np.array_equal(one.values["count"], other.values["count"])
        for statistic, values in one.values.items():
            check_equal(values, other.values[statistic], STATISTICS)
    expected = sums_alone.named()
    assert expected.keys() == sums.named().keys()
    for weight, found in sums.named().items():
        assert np.array_equal(found.counts, expected[weight].counts)
        check_equal(expected[weight].values, found.values, SUMS)


@pytest.mark.parametrize("name", NAMES)
def test_keep_sets_of_every_architecture(name: str, tmp_path: Path) -> None:
    """Each text of a graph is masked by its own keep-set, and by no other's."""
    file = open_gguf(tiny_native.build(name, tmp_path / "model.gguf"))
    nodes = bind(file).nodes
    if nodes.headless:
        pytest.skip("hidden states are not compared")
    keeps = [None, *({block.index: range(first, first + 12) for block in nodes.blocks} for first in (0, 4))]
    with LlamaSession(file.path, nodes, SETTINGS) as session:
        alone = [session.logits(CHUNKS[0], keep, 44) for keep in keeps]
    with LlamaSession(file.path, nodes, replace(SETTINGS, n_together=3), together=3) as session:
        at_once = [session.logits_together(CHUNKS[0], keeps, 44)] if session.n_together == 3 else []
    assert bool(at_once) == nodes.causal
    for logits in at_once:
        for one, other in zip(alone, logits, strict=True):
            check_equal(one, other, ROUGH.get(name, STATISTICS))
        assert all(np.abs(alone[0] - one).max() > 1e-4 for one in alone[1:]), "keep-sets matter, or nothing was shown"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_gguf.qwen3moe(tmp_path / "m.gguf")


def ids_in(folder: Path, n_chunks: int) -> Path:
    np.save(folder / "ids.npy", np.random.default_rng(3).integers(0, 320, (n_chunks, 88)))
    return folder / "ids.npy"


def sums_of(path: Path) -> dict[str, np.ndarray]:
    return {name: sums.values for name, sums in Stored.open(path).importance_sums().named().items()}


def test_what_is_left_of_a_micro_batch_counts_as_in_a_graph_of_one_chunk(model: Path) -> None:
    layout, short = bind(open_gguf(model)), [chunk[:70] for chunk in CHUNKS]  # micro-batches of 64 and 6
    _, expected, _ = observed(model, layout, short, 1)
    _, found, _ = observed(model, layout, short, 3)
    assert {name: sums.counts.tolist() for name, sums in found.named().items()} == {
        name: sums.counts.tolist() for name, sums in expected.named().items()
    }


def test_calibrating_together_tells_the_same_of_every_half_and_domain(model: Path, tmp_path: Path) -> None:
    ids = ids_in(tmp_path, 5)
    for count in (1, 2, 8):
        settings = replace(SETTINGS, n_together=count)
        calibrate(model, tmp_path / f"{count}.npz", ids, imatrix_out=tmp_path / f"{count}.gguf", settings=settings)
    alone = Stored.open(tmp_path / "1.npz")
    for count in (2, 8):
        stored = Stored.open(tmp_path / f"{count}.npz")
        assert stored.provenance == replace(alone.provenance, n_together=count)
        assert stored.domain_statistics().counts == alone.domain_statistics().counts
        for half in (0, 1):
            expected = alone.domain_statistics().half(half).total.values
            for statistic, values in stored.domain_statistics().half(half).total.values.items():
                check_equal(expected[statistic], values, STATISTICS)
        for weight, values in sums_of(stored.path).items():
            check_equal(sums_of(alone.path)[weight], values, SUMS)


class Killed(RuntimeError):
    """Nothing is saved but the checkpoints."""


@pytest.fixture
def killed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every group is followed by a checkpoint, and the second one of this test never ends."""
    usual, count = LlamaSession.route_together, iter(range(1, 1000))
    monkeypatch.setattr(import_module("ggufreap.verbs.calibrate"), "observe", partial(observe, checkpoint_seconds=0))

    def route(
        self: LlamaSession,
        chunks: Sequence[Tokens],
        importance: ImportanceSums | None = None,
        observables: Collection[str] = (),
    ) -> list[list[RoutedBatch]]:
        if next(count) == 2:
            raise Killed
        return usual(self, chunks, importance, observables)

    monkeypatch.setattr(LlamaSession, "route_together", route)


@pytest.mark.usefixtures("killed_once")
def test_a_killed_run_goes_on_in_the_same_groups_to_the_same_bits(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ids, out, whole = ids_in(tmp_path, 7), tmp_path / "S.npz", tmp_path / "whole.npz"
    settings = replace(SETTINGS, n_together=3)
    with pytest.raises(Killed):
        calibrate(model, out, ids, imatrix_out=tmp_path / "S.gguf", settings=settings)
    assert Stored.open(checkpoint_path(out)).provenance.n_together == 3
    with caplog.at_level(logging.INFO):
        calibrate(model, out, ids, imatrix_out=tmp_path / "S.gguf", settings=replace(settings, n_together=0))
    assert "in chunks of 88, 3 at once" in caplog.text, "as the unfinished run, not as there is room for"
    calibrate(model, whole, ids, imatrix_out=tmp_path / "whole.gguf", settings=settings)
    with np.load(out) as found, np.load(whole) as expected:
        assert all(np.array_equal(found[name], expected[name]) for name in expected.files)


@pytest.mark.usefixtures("killed_once")
def test_going_on_with_other_groups_is_said(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ids, out = ids_in(tmp_path, 5), tmp_path / "S.npz"
    with pytest.raises(Killed):
        calibrate(model, out, ids, settings=replace(SETTINGS, n_together=2))
    calibrate(model, out, ids, settings=replace(SETTINGS, n_together=1))
    assert "-np 1: the unfinished calibration ran 2 chunks at once" in caplog.text
    assert Stored.open(out).domain_statistics().n_chunks == 5


def test_chunks_of_one_length_go_together_in_order() -> None:
    lengths = [8, 8, 8, 5, 8, 8, 8]
    chunks = [Chunk(np.zeros(length, np.int32), "text", number) for number, length in enumerate(lengths)]
    assert [[chunk.number for chunk in group] for group in grouped(chunks, 2)] == [[0, 1], [2], [3], [4, 5], [6]]


@pytest.mark.parametrize(("free", "count"), [(None, 4), (1 << 40, 4), (0, 1)])
def test_as_many_at_once_as_there_is_room_for(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, free: int | None, count: int
) -> None:
    monkeypatch.setattr(context, "free_memory", lambda: free)
    caplog.set_level(logging.INFO)
    with LlamaSession(model, bind(open_gguf(model)).nodes, SETTINGS, together=9) as session:
        assert session.n_together == count
        assert re.search(rf"{count} texts at once, in [\d.]+ .?B of memory beside the weights", caplog.text)
        with pytest.raises(EngineError, match=f"9 chunks at once, there is room for {count}; raise -np"):
            session.route_together([CHUNKS[0]] * 9)


def test_half_the_room_is_taken_at_most(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between what 2 and 4 chunks take, and the file beside."""
    nodes = bind(open_gguf(model)).nodes
    taken = 4 * 64 * 320  # logits of a chunk; what llama.cpp computes in comes on top
    monkeypatch.setattr(context, "free_memory", lambda: model.stat().st_size + 2 * 4 * taken)
    with LlamaSession(model, nodes, SETTINGS, together=9) as session:
        assert 1 <= session.n_together < 4


def test_a_model_that_looks_ahead_takes_one_chunk_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = open_gguf(tiny_native.build("llada-moe", tmp_path / "m.gguf"))
    assert not bind(file).nodes.causal
    with LlamaSession(file.path, bind(file).nodes, replace(SETTINGS, n_together=4), together=9) as session:
        assert session.n_together == 1
    assert "-np 4: this model looks ahead and takes a chunk at once, so its chunks are run one by one" in caplog.text


def test_block_by_block_it_is_said_that_chunks_run_one_by_one(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = replace(SETTINGS, exact=False, repack=False, n_together=4, blockwise=1)
    calibrate(model, tmp_path / "S.npz", ids_in(tmp_path, 2), settings=settings)
    assert "-np 4 is not used: block by block, chunks are run one by one" in caplog.text


@pytest.mark.parametrize("n_together", [1, 2, 3, 4])
def test_a_preview_in_groups_costs_what_it_costs_one_by_one(model: Path, n_together: int) -> None:
    keeps = [None, *({0: range(first, first + 8), 1: range(8)} for first in (0, 2, 8))]
    domains = {"ids": Corpus(CHUNKS, "ids")}
    nodes = bind(open_gguf(model)).nodes
    with LlamaSession(model, nodes, SETTINGS) as session:
        expected = compare_with(of_engine(session), [of_engine(session, keep) for keep in keeps[1:]], domains)
    for n_ubatch in (64, 88):
        settings = replace(SETTINGS, n_together=n_together, n_ubatch=n_ubatch)
        with LlamaSession(model, nodes, settings, together=len(keeps)) as session:
            assert session.n_together == n_together
            comparisons = compare_passes(together(session, keeps), 3, domains)
        for one, other in zip(expected, comparisons, strict=True):
            assert other.mean.kld == pytest.approx(one.mean.kld, rel=1e-4)
            assert one.mean.kld > 1e-3
