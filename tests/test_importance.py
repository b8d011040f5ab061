"""The importance matrix against its definition, and against what llama-imatrix itself wrote."""

from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
import tiny_native

from ggufreap import calibrate, corpus, imatrix
from ggufreap.architecture.layout import bind
from ggufreap.container import open_gguf
from ggufreap.engine.importance import ImportanceSums
from ggufreap.engine.session import LlamaSession
from ggufreap.observation import ExpertStatistics, observables
from ggufreap.options.engine import EngineSettings

pytestmark = pytest.mark.native

SETTINGS = EngineSettings(n_ctx=64, n_ubatch=64, n_threads=1, n_gpu_layers=0, exact=True)


def collected(path: Path, chunks: np.ndarray, settings: EngineSettings = SETTINGS) -> ImportanceSums:
    file, sums = open_gguf(path), ImportanceSums()
    with LlamaSession(file.path, bind(file).nodes, settings) as engine:
        for chunk in chunks:
            engine.route(chunk, sums)
    return sums


Reference = dict[str, tuple[np.ndarray, np.ndarray]]  # name -> counts `[n_mat]` and sums of squares `[n_mat, width]`


@pytest.fixture(scope="module")
def reference(shared: Path) -> Reference:
    """llama-imatrix -f text/mixed.calib.txt -c 256 --chunks 120, of the trained model."""
    file = open_gguf(shared / "reference" / "imatrix.gguf")

    def part(name: str) -> np.ndarray:
        return np.array(file.map(file.by_name[name]).view("<f4"))

    names = [name.removesuffix(".counts") for name in file.by_name if name.endswith(".counts")]
    counts = {name: part(f"{name}.counts").ravel() for name in names}
    return {name: (counts[name], part(f"{name}.in_sum2").reshape(len(counts[name]), -1)) for name in names}


@pytest.fixture(scope="module")
def observed(shared: Path) -> tuple[ExpertStatistics, ImportanceSums]:
    """The same model and text, observed by the engine."""
    file = open_gguf(shared / "models" / "six-domain-moe-f16.gguf")
    statistics, sums = ExpertStatistics.empty(range(4), [4] * 4, 32), ImportanceSums()
    with LlamaSession(file.path, bind(file).nodes, EngineSettings(n_ctx=256, n_ubatch=256, n_threads=1)) as engine:
        text = corpus.read_text(str(shared / "text" / "mixed.calib.txt"))
        for chunk in corpus.from_text(engine, text, 256, "mixed").chunks[:120]:
            statistics = statistics.observe(engine.route(chunk, sums, observables()), len(chunk))
    return statistics, sums


# The reference comes from a CPU with AVX-512. Another one rounds the last bit of some router score the other way, which
# moves one token in a thousand to another expert of a block.
MOVED = 1e-3


def test_experts_are_counted_as_llama_imatrix_counted_them(
    observed: tuple[ExpertStatistics, ImportanceSums], reference: Reference
) -> None:
    statistics, sums = observed
    for block, counts in enumerate(statistics.values["count"]):
        name = f"blk.{block}.ffn_down_exps.weight"
        assert np.array_equal(counts, sums.named()[name].counts)
        assert counts.sum() == reference[name][0].sum() == 120 * 256 * 4
        assert np.abs(counts - reference[name][0]).sum() <= MOVED * counts.sum()


def test_it_equals_what_llama_imatrix_wrote(
    observed: tuple[ExpertStatistics, ImportanceSums], reference: Reference
) -> None:
    found = observed[1].named()
    assert found.keys() == reference.keys()
    for name, (counts, values) in reference.items():
        errors = np.abs(found[name].values - values) / values
        if np.array_equal(found[name].counts, counts):
            assert np.quantile(errors, 0.999) < 1e-4, name
            assert errors.max() < 1e-3, name
            continue
        assert "_exps" in name, "what every token passes is counted alike everywhere"
        assert np.median(errors) < 1e-4, name
        rows, expected = found[name].values.sum(axis=1), values.sum(axis=1)
        assert (np.abs(rows - expected) < 1e-2 * expected).all(), name
        if "down" not in name:  # all experts together saw each token n_used times, whoever they were
            np.testing.assert_allclose(found[name].values.sum(axis=0), values.sum(axis=0), rtol=1e-4, err_msg=name)


def test_the_legacy_format_is_written_on_request(tmp_path: Path) -> None:
    path = tiny_gguf.qwen3moe(tmp_path / "m.gguf")
    np.save(tmp_path / "ids.npy", np.random.default_rng(0).integers(0, 320, 256))
    for suffix in ("gguf", "dat"):
        out = tmp_path / f"{suffix}.npz"
        calibrate(path, out, data=tmp_path / "ids.npy", imatrix_out=tmp_path / f"imatrix.{suffix}", settings=SETTINGS)
    new, old = (imatrix.load(tmp_path / f"imatrix.{suffix}") for suffix in ("gguf", "dat"))
    assert old.per_chunk
    assert not new.per_chunk
    for name, entry in new.entries.items():
        np.testing.assert_allclose(imatrix.means(old.entries[name]), imatrix.means(entry), rtol=1e-6, err_msg=name)


def test_routed_inputs_are_summed_per_expert(tmp_path: Path) -> None:
    path = tiny_gguf.qwen3moe(tmp_path / "m.gguf")
    chunk = np.random.default_rng(0).integers(0, 320, 64).astype(np.int32)
    found = collected(path, chunk[None]).named()
    gate, up, router = (found[f"blk.1.ffn_{part}.weight"] for part in ("gate_exps", "up_exps", "gate_inp"))
    assert gate is up, "one input, one sum"
    assert gate.counts.sum() == 64 * 4
    # Every token's input goes to the router once and to four experts.
    np.testing.assert_allclose(gate.values.sum(axis=0), 4 * router.values[0], rtol=1e-5)
    file = open_gguf(path)
    with LlamaSession(file.path, bind(file).nodes, SETTINGS) as engine:
        counts = np.bincount(engine.route(chunk)[1].experts.ravel(), minlength=16)
    assert np.array_equal(gate.counts, counts)
    assert (gate.values[counts == 0] == 0).all()


@pytest.mark.parametrize(
    "name", ["qwen3moe", "deepseek2", "gpt-oss", "llama4", "qwen35moe", "gemma4", "nemotron_h_moe"]
)
def test_sums_of_two_chunks_add_up(tmp_path: Path, name: str) -> None:
    path = tiny_native.build(name, tmp_path / "m.gguf")
    chunks = np.random.default_rng(1).integers(0, tiny_native.N_VOCAB, (2, 64)).astype(np.int32)
    whole, parts = collected(path, chunks), ImportanceSums()
    for chunk in chunks:
        parts.add(collected(path, chunk[None]))
    again = ImportanceSums.from_arrays(parts.to_arrays())
    assert whole.input_of == again.input_of
    for weight, sums in whole.named().items():
        assert np.array_equal(sums.counts, again.named()[weight].counts)
        np.testing.assert_allclose(again.named()[weight].values, sums.values, rtol=1e-5)


@pytest.mark.parametrize("name", ["qwen3moe", "deepseek2", "cohere2moe", "granitehybrid", "lfm2moe"])
def test_every_expert_weight_and_most_others_are_there(tmp_path: Path, name: str) -> None:
    path = tiny_native.build(name, tmp_path / "m.gguf")
    found = collected(path, np.zeros((1, 64), np.int32)).named()
    expected = {tensor for tensor in bind(open_gguf(path)).per_expert if tensor.endswith("_exps.weight")}
    assert expected <= set(found)
    assert any("attn_output" in weight or "shortconv" in weight or "ssm_out" in weight for weight in found)


def test_the_output_head_is_summed_on_request(tmp_path: Path) -> None:
    file, chunks = (
        open_gguf(tiny_gguf.qwen3moe(tmp_path / "m.gguf")),
        np.arange(128, dtype=np.int32).reshape(2, 64) % 100,
    )
    nodes = bind(file).nodes
    plain, whole = ImportanceSums(), ImportanceSums(output=True)
    with LlamaSession(file.path, nodes, EngineSettings(n_ctx=64, n_ubatch=32, n_threads=1)) as engine:
        for chunk in chunks:
            engine.route(chunk, plain)
            engine.route(chunk, whole)
        head = np.array(file.map(file.by_name["output.weight"])).view(np.float32).reshape(-1, 256)
        logits = np.concatenate([engine.logits(chunk) for chunk in chunks]).astype(np.float64)
    assert set(whole.named()) - set(plain.named()) == {"output.weight"}
    for name, sums in plain.named().items():
        assert np.array_equal(sums.values, whole.named()[name].values), name
    found = whole.named()["output.weight"]
    assert found.counts.tolist() == [128]
    inputs = np.linalg.lstsq(head.astype(np.float64), logits.T, rcond=None)[0]
    np.testing.assert_allclose(found.values[0], np.square(inputs).sum(axis=1), rtol=1e-3)


def test_tied_output_heads_have_no_entry_as_in_llama_imatrix(tmp_path: Path) -> None:
    model = tiny_gguf.qwen3moe(tmp_path / "m.gguf", changes=[lambda model: model.tensors.pop("output.weight")])
    np.save(tmp_path / "ids.npy", np.arange(256) % 100)
    options = {"data": tmp_path / "ids.npy", "settings": SETTINGS, "process_output": True}
    calibrate(model, tmp_path / "S.npz", imatrix_out=tmp_path / "I.gguf", **options)
    assert all(name.startswith("blk.") for name in imatrix.load(tmp_path / "I.gguf").entries)


def test_an_existing_matrix_without_the_head_is_made_again(tmp_path: Path) -> None:
    model = tiny_gguf.qwen3moe(tmp_path / "m.gguf")
    np.save(tmp_path / "ids.npy", np.arange(256) % 100)
    options = {"data": tmp_path / "ids.npy", "settings": SETTINGS, "imatrix_out": tmp_path / "I.gguf"}
    first = calibrate(model, tmp_path / "S.npz", **options)
    assert "output.weight" not in imatrix.load(tmp_path / "I.gguf").entries
    second = calibrate(model, tmp_path / "S.npz", **options, process_output=True)
    assert "output.weight" in imatrix.load(tmp_path / "I.gguf").entries
    for name, values in first.total.values.items():
        assert np.array_equal(values, second.total.values[name])
