"""The engine against a numpy MoE: the same routing, the same weights, the same outputs, in every block."""

import ctypes
import os
import signal
import threading
import time
from collections import deque
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
import tiny_layouts
import tiny_native
import tiny_reference
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from tiny_reference import Routed

from ggufreap import corpus
from ggufreap.architecture.layout import bind
from ggufreap.container import OutputTensor, Piece, lay_out, open_gguf, write
from ggufreap.engine import native, subprocess_probe, taps
from ggufreap.engine.observables import OBSERVABLES, OF_OUTPUTS, OF_WEIGHTED, STREAM, Measure, measured
from ggufreap.engine.session import LlamaSession
from ggufreap.errors import EngineError, NumericFailure
from ggufreap.observation import ExpertStatistics, observables
from ggufreap.options.engine import EngineSettings
from ggufreap.planning import ModelIdentity, make_plan
from ggufreap.progress import silent
from ggufreap.saliency import METHODS

pytestmark = pytest.mark.native

EXACT = EngineSettings(n_ctx=96, n_ubatch=96, n_threads=1, n_gpu_layers=0, exact=True)


def session(path: Path, settings: EngineSettings = EXACT) -> LlamaSession:
    file = open_gguf(path)
    return LlamaSession(file.path, bind(file).nodes, settings)


def observed(path: Path, chunks: np.ndarray, settings: EngineSettings) -> ExpertStatistics:
    nodes = bind(open_gguf(path)).nodes
    blocks, used = [block.index for block in nodes.blocks], [block.n_used for block in nodes.blocks]
    statistics = ExpertStatistics.empty(blocks, used, nodes.n_expert)
    with session(path, settings) as engine:
        for chunk in chunks:
            statistics = statistics.observe(engine.route(chunk, observables=observables()), len(chunk))
    statistics.check()
    return statistics


def reference_values(routed: list[list[Routed]], n_expert: int) -> dict[str, np.ndarray]:
    """The same statistics from numpy: one list of blocks per chunk."""
    shape = (len(routed[0]), n_expert)
    names = ("count", "sum_g", "sum_f", "sum_gf", "sum_gf2", "max_f", "sum_gf2_s2")
    values = {name: np.zeros(shape) for name in names} | {"gram": np.zeros((*shape, n_expert))}
    for chunk in routed:
        for row, block in enumerate(chunk):
            norms, squares = np.linalg.norm(block.f, axis=-1), (block.s**2).sum(axis=-1)
            for name, per_token in (
                ("count", np.ones_like(norms)),
                ("sum_g", block.g),
                ("sum_f", norms),
                ("sum_gf", block.g * norms),
                ("sum_gf2", (block.g * norms) ** 2),
                ("sum_gf2_s2", (block.g * norms) ** 2 / squares[:, None]),
            ):
                np.add.at(values[name][row], block.ids.ravel(), per_token.ravel())
            np.maximum.at(values["max_f"][row], block.ids.ravel(), np.abs(block.f).max(axis=-1).ravel())
            for ids, g, f, square in zip(block.ids, block.g, block.f, squares, strict=True):
                weighted = g[:, None] * f
                values["gram"][row][np.ix_(ids, ids)] += weighted @ weighted.T / square
    return values


@pytest.mark.parametrize(("n_ubatch", "n_threads"), [(96, 1), (32, 2), (7, 1)])
def test_statistics_equal_the_numpy_reference(tmp_path: Path, n_ubatch: int, n_threads: int) -> None:
    path = tiny_gguf.qwen3moe(tmp_path / "m.gguf", changes=[tiny_layouts.scaled])
    chunks = np.random.default_rng(0).integers(0, 320, (2, 96)).astype(np.int32)
    found = observed(path, chunks, replace(EXACT, n_ubatch=n_ubatch, n_threads=n_threads))
    expected = reference_values([tiny_reference.forward(path, chunk.tolist())[1] for chunk in chunks], 16)
    for name, values in found.values.items():
        scale = np.abs(expected[name]).max()  # of the terms: those of a Gram matrix have either sign
        np.testing.assert_allclose(values, expected[name], rtol=1e-4, atol=1e-4 * scale, err_msg=name)


def test_logits_equal_the_numpy_reference(tmp_path: Path) -> None:
    path = tiny_gguf.qwen3moe(tmp_path / "m.gguf")
    tokens = np.random.default_rng(0).integers(0, 320, 96).astype(np.int32)
    expected, _ = tiny_reference.forward(path, tokens.tolist())
    with session(path) as engine:
        np.testing.assert_allclose(engine.logits(tokens), expected, rtol=1e-3, atol=1e-4)


def test_routing_is_the_reference_s_in_every_block_and_the_last_one_too(tmp_path: Path) -> None:
    path = tiny_gguf.qwen3moe(tmp_path / "m.gguf", n_block=3)
    tokens = np.random.default_rng(1).integers(0, 320, 50).astype(np.int32)
    _, expected = tiny_reference.forward(path, tokens.tolist())
    with session(path) as engine:
        batches = engine.route(tokens, observables=OBSERVABLES)
    assert [batch.block for batch in batches] == [0, 1, 2]
    for batch, routed in zip(batches, expected, strict=True):
        assert np.array_equal(batch.experts, routed.ids)
        np.testing.assert_allclose(batch.weights, routed.g, rtol=1e-4)
        np.testing.assert_allclose(batch["norms"], np.linalg.norm(routed.f, axis=-1), rtol=1e-4)
        np.testing.assert_allclose(batch["contributions"], batch.weights * batch["norms"])
        np.testing.assert_allclose(batch["peaks"], np.abs(routed.f).max(axis=-1), rtol=1e-3)
        weighted = routed.g[..., None] * routed.f
        np.testing.assert_allclose(batch["output_norms"], np.linalg.norm(weighted.sum(axis=1), axis=-1), rtol=1e-4)
        products = np.einsum("tie,tje->tij", weighted, weighted)
        np.testing.assert_allclose(batch["products"], products, rtol=1e-3, atol=1e-4 * products.max())


@pytest.mark.parametrize(
    "name", ["qwen3moe", "gpt-oss", "deepseek2", "gemma4", "nemotron_h_moe", "grok", "llama4", "qwen2moe", "lfm2moe"]
)
def test_observables_agree_with_each_other(tmp_path: Path, name: str) -> None:
    """What is measured of f and of g f, at two nodes: |g|‖f‖ is the norm of g f, and h their sum."""
    path = tiny_native.build(name, tmp_path / "m.gguf")
    with session(path, replace(EXACT, n_ubatch=24)) as engine:
        for batch in engine.route(np.arange(40, dtype=np.int32), observables=OBSERVABLES):
            norms = np.sqrt(np.einsum("tii->ti", batch["products"]))
            np.testing.assert_allclose(batch["contributions"], norms, rtol=1e-4)
            np.testing.assert_allclose(batch["output_norms"] ** 2, batch["products"].sum(axis=(1, 2)), rtol=1e-3)


@pytest.mark.parametrize(
    "name", ["qwen3moe", "llama4", "nemotron_h_moe", "step35", "mimo2", "deepseek4", "glm5-next", "nomic-bert-moe"]
)
def test_the_norms_of_the_stream_are_those_of_what_the_next_block_reads(tmp_path: Path, name: str) -> None:
    """Of one node, of the sum of several, of several streams; the last block's also where it has another name."""
    path = tiny_native.build(name, tmp_path / "m.gguf")
    nodes = bind(open_gguf(path)).nodes
    with session(path) as engine:
        tokens = np.arange(40, dtype=np.int32)
        _, found = engine.blocks(tokens)
        batches = engine.route(tokens, observables=("stream_norms",))
    for batch in batches:
        parts = [found[f"{node}-{batch.block}"] for node in nodes.stream if f"{node}-{batch.block}" in found]
        assert parts or (name, batch.block) == ("mimo2", batches[-1].block)
        if parts:
            norms = np.linalg.norm(sum(parts).reshape(len(tokens), -1), axis=-1)
            np.testing.assert_allclose(batch["stream_norms"], norms, rtol=1e-4)
        assert np.ptp(batch["stream_norms"]) > 0


def test_a_stream_without_a_name_is_said_once_and_weighs_all_tokens_alike(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = open_gguf(tiny_native.build("qwen3moe", tmp_path / "m.gguf"))
    nodes = replace(bind(file).nodes, stream=("not_there",))
    with LlamaSession(file.path, nodes, replace(EXACT, n_ubatch=16)) as engine:
        without = OBSERVABLES.keys() - {STREAM}
        batches = [
            *engine.route(np.arange(40), observables=without),
            *engine.route(np.arange(9), observables=without),
        ]
        with pytest.raises(EngineError, match=r"2 blocks were routed and 0 had stream of the usual kind"):
            engine.route(np.arange(9), observables={STREAM})
    assert all((batch["stream_norms"] == 1).all() for batch in batches)
    assert sum("names no node of the residual stream" in text for text in caplog.messages) == 1


def test_the_weight_of_llama4_is_inside_the_output(tmp_path: Path) -> None:
    path = tiny_native.build("llama4", tmp_path / "m.gguf")
    with session(path) as engine:
        for batch in engine.route(np.arange(40, dtype=np.int32), observables=OBSERVABLES):
            assert np.array_equal(batch["contributions"], batch["norms"])
            assert ((batch.weights > 0) & (batch.weights < 1)).all()  # a sigmoid


@pytest.mark.parametrize("name", ["qwen3moe", "llama4"])
def test_only_what_is_asked_for_is_observed(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_native.build(name, tmp_path / "m.gguf")
    tokens, computed = np.arange(40, dtype=np.int32), []

    def counting(outputs: np.ndarray, measures: dict[str, Measure]) -> dict[str, np.ndarray]:
        computed.extend(measures)
        return measured(outputs, measures)

    monkeypatch.setattr(taps, "measured", counting)
    with session(path) as engine:
        whole = engine.route(tokens, observables=OBSERVABLES)
        for asked, needed in [
            ((), set()),
            (("peaks",), {"peaks"}),
            (("contributions",), {"norms"}),
            (("products", "output_norms"), {"products", "output_norms"}),
            (("stream_norms",), set()),
        ]:
            computed.clear()
            for batch, all_of_it in zip(engine.route(tokens, observables=asked), whole, strict=True):
                assert set(batch.observed) == set(asked)
                assert np.array_equal(batch.experts, all_of_it.experts)
                assert np.array_equal(batch.weights, all_of_it.weights)
                assert all(np.array_equal(batch[observable], all_of_it[observable]) for observable in asked)
            assert set(computed) == needed


def test_chunks_do_not_see_each_other(tmp_path: Path) -> None:
    path = tiny_gguf.qwen3moe(tmp_path / "m.gguf")
    first, second = np.random.default_rng(2).integers(0, 320, (2, 64)).astype(np.int32)
    with session(path) as engine:
        alone = engine.logits(second)
        engine.route(first)
        engine.logits(first, {0: range(8)})
        assert np.array_equal(engine.logits(second), alone)


def test_observables_by_definition() -> None:
    outputs = np.random.default_rng(0).normal(size=(130, 3, 96)).astype(np.float32)
    exact = outputs.astype(np.float64)
    found = measured(outputs, {**OF_OUTPUTS, **OF_WEIGHTED})
    np.testing.assert_allclose(found["norms"], np.linalg.norm(exact, axis=-1), rtol=1e-6)
    assert np.array_equal(found["peaks"], np.abs(outputs).max(axis=-1))
    np.testing.assert_allclose(found["output_norms"], np.linalg.norm(exact.sum(axis=1), axis=-1), rtol=1e-6)
    np.testing.assert_allclose(found["products"], np.einsum("tie,tje->tij", exact, exact), rtol=1e-5, atol=1e-4)


def test_nan_weights_name_block_and_expert(tmp_path: Path) -> None:
    path = tiny_gguf.qwen3moe(tmp_path / "m.gguf")
    record = open_gguf(path).by_name["blk.1.ffn_down_exps.weight"]
    data = bytearray(path.read_bytes())
    size = record.nbytes // 16
    data[record.offset + 5 * size : record.offset + 6 * size] = np.full(size // 4, np.nan, np.float32).tobytes()
    path.write_bytes(data)
    for observable in ("norms", "contributions", "peaks"):
        with session(path) as engine, pytest.raises(NumericFailure, match="block 1, expert 5"):
            engine.route(np.arange(96, dtype=np.int32), observables=(observable,))
    for observable in ("output_norms", "products"):
        with session(path) as engine, pytest.raises(NumericFailure, match="block 1: an activation is NaN"):
            engine.route(np.arange(96, dtype=np.int32), observables=(observable,))


def test_a_model_without_tokenizer_says_so(tmp_path: Path) -> None:
    path = tiny_gguf.qwen3moe(tmp_path / "m.gguf", tokenizer=False)
    with session(path) as engine, pytest.raises(EngineError, match="--tokens"):
        engine.tokenize("text")


def test_a_chunk_longer_than_the_context_is_refused(tmp_path: Path) -> None:
    path = tiny_gguf.qwen3moe(tmp_path / "m.gguf")
    with session(path) as engine, pytest.raises(EngineError, match="does not fit -c 96"):
        engine.route(np.zeros(97, np.int32))


def test_llama_cpp_s_own_reason_is_passed_on(tmp_path: Path) -> None:
    file = open_gguf(tiny_gguf.qwen3moe(tmp_path / "m.gguf"))
    other = tiny_gguf.qwen3moe(tmp_path / "other.gguf", changes=[tiny_layouts.biased])
    with pytest.raises(EngineError, match="wrong number of tensors"):
        LlamaSession(other, bind(file).nodes, EXACT)


def test_an_abort_of_llama_cpp_is_an_error_like_any_other(tmp_path: Path) -> None:
    path = tiny_gguf.qwen3moe(tmp_path / "m.gguf", metadata={"qwen3moe.rope.dimension_count": np.uint32(2**31)})
    with pytest.raises(EngineError, match=r"m\.gguf"):
        subprocess_probe.run(path, np.arange(4, dtype=np.int32), EXACT, [subprocess_probe.Pass()], tmp_path)


def test_ctrl_c_stops_inside_a_chunk(tmp_path: Path) -> None:
    path = tiny_gguf.qwen3moe(tmp_path / "m.gguf", n_block=8)
    with session(path, replace(EXACT, n_ctx=512, n_ubatch=512)) as engine:
        tokens = np.zeros(512, np.int32)
        started = time.perf_counter()
        engine.route(tokens)
        undisturbed = time.perf_counter() - started
        timer = threading.Timer(undisturbed / 4, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            deque((engine.route(tokens) for _ in range(100)), maxlen=0)
        timer.join()
        assert len(engine.route(tokens)) == 8, "the session goes on working"


class _Shifted(ctypes.Structure):
    """The struct of a llama.cpp that put one more field in front of the others."""

    _fields_ = (("new", ctypes.c_int64), *native.GgmlTensor._fields_)


def test_another_struct_layout_is_noticed_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    native._base.cache_clear()
    monkeypatch.setattr(native, "GgmlTensor", _Shifted)
    monkeypatch.setattr(native, "tensor_at", _Shifted.from_address)
    with pytest.raises(EngineError, match="does not match this ggufreap: field"):
        native.bindings()


# The trained model, where it is at hand.

LONG = EngineSettings(n_ctx=256, n_ubatch=256, n_threads=1)


@pytest.fixture(scope="module")
def trained(shared: Path) -> Path:
    return shared / "models" / "six-domain-moe-f16.gguf"


@pytest.fixture(scope="module")
def text_chunks(shared: Path, trained: Path) -> np.ndarray:
    with session(trained, LONG) as engine:
        text = corpus.read_text(str(shared / "text" / "mixed.calib.txt"))
        return corpus.from_text(engine, text, 256, "mixed").chunks


def as_f32(source: Path, out: Path) -> Path:
    """The same model with every weight in F32, where llama.cpp rounds no activation on the way."""
    file, pieces, raw = open_gguf(source), [], out.with_suffix(".bin")
    with raw.open("wb") as blob:
        for record in file.tensors:
            values = dequantize(file.map(record).reshape(*record.shape[:-1], -1), GGMLQuantizationType(record.type))
            piece = Piece(raw, blob.tell(), blob.write(values.astype("<f4").tobytes()))
            pieces.append(OutputTensor(record.name, record.shape, GGMLQuantizationType.F32, (piece,)))
    write(lay_out(out, list(file.metadata.values()), [pieces], file.alignment), silent("", 0, "").__enter__())
    return out


def test_trained_statistics_equal_the_numpy_reference(trained: Path, text_chunks: np.ndarray, tmp_path: Path) -> None:
    chunks, settings = text_chunks[:8], replace(EXACT, n_ctx=256, n_ubatch=256)
    expected = reference_values([tiny_reference.forward(trained, chunk.tolist())[1] for chunk in chunks], 32)
    full = observed(as_f32(trained, tmp_path / "f32.gguf"), chunks, settings)
    half = observed(trained, chunks, settings)
    for name, values in expected.items():
        np.testing.assert_allclose(full.values[name], values, rtol=1e-3, err_msg=name)
        # Products with F16 weights round the activations to F16, which decides a close call between two experts
        # another way for one token in a thousand; so the blocks' totals are compared, not the single experts.
        difference, whole = (np.abs(each).reshape(len(each), -1) for each in (half.values[name] - values, values))
        difference = difference.sum(axis=1) / whole.sum(axis=1)
        assert difference.max() < 1e-3, name


def test_plans_from_q8_0_and_f16_agree(trained: Path, text_chunks: np.ndarray, tmp_path: Path) -> None:
    llama = native.bindings()
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype = llama.LLAMA_FTYPE_MOSTLY_Q8_0
    quantised = tmp_path / "q8_0.gguf"
    assert llama.llama_model_quantize(os.fsencode(trained), os.fsencode(quantised), ctypes.byref(parameters)) == 0
    kept = []
    for path in (trained, quantised):
        statistics = observed(path, text_chunks[:32], LONG)
        scores = METHODS["reap"].score(statistics)
        model = ModelIdentity("", "qwen3moe", "")
        kept.append(make_plan(bind(open_gguf(path)), model, scores, method="reap", ratio="0.25").keep)
    agreeing = sum(len(set(kept[0][block]) & set(kept[1][block])) for block in kept[0])
    assert agreeing >= 0.95 * sum(map(len, kept[0].values()))
