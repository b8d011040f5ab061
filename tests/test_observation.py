"""A statistic and a method of your own, one row each, as a researcher adds them; what is finished is not run again."""

import re
import resource
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
import tiny_layouts
import tiny_llama
import tiny_reference
from asked import plan, prune

from ggufreap import calibrate, imatrix, merge, saliency
from ggufreap.corpus.request import Request
from ggufreap.demonstration import MODEL as DEMO_MODEL
from ggufreap.engine.protocol import RoutedBatch
from ggufreap.errors import InputError, MismatchError, OutputError
from ggufreap.observation import STATISTICS, Statistic, Stored, checkpoint_path, load, observables, save
from ggufreap.options.engine import EngineSettings

pytestmark = pytest.mark.native

ROOT = Path(__file__).parents[1]
SETTINGS = EngineSettings(n_ctx=64, n_ubatch=32, n_threads=1, n_gpu_layers=0, exact=True)
CHUNKS = np.random.default_rng(5).integers(0, 320, (3, 64)).astype(np.int32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_gguf.qwen3moe(tmp_path / "m.gguf")


@pytest.fixture
def ids(tmp_path: Path) -> Path:
    np.save(tmp_path / "ids.npy", CHUNKS)
    return tmp_path / "ids.npy"


# Rows added to tables.


def add_rows_of_the_readme(monkeypatch: pytest.MonkeyPatch) -> None:
    """The diff under "Adding a statistic and a method", carried out on the loaded modules."""
    house = (ROOT / "ggufreap" / "README.md").read_text(encoding="utf-8")
    section = house.split("### Adding a statistic and a method")[1]
    diff = re.search(r"```diff\n(.*?)```", section, re.DOTALL)
    assert diff
    parts = re.findall(r"^\+\+\+ b/(\S+)\n@@ (\w+)\n((?:\+(?!\+\+).*\n)+)", diff[1], re.MULTILINE)
    assert [table for _, table, _ in parts] == ["STATISTICS", "METHODS"]
    for path, table, added in parts:
        module = import_module(path.removesuffix(".py").replace("/", "."))
        source = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"^{table}: Mapping\[str, \w+\] = {{$", source, re.MULTILINE), "the table that the diff names"
        rows = eval("{" + re.sub(r"^\+", "", added, flags=re.MULTILINE) + "}", vars(module))
        for name, row in rows.items():
            monkeypatch.setitem(getattr(module, table), name, row)
    # What importing the changed module would have made of it.
    monkeypatch.setattr(saliency, "METHOD_NAMES", (*saliency.METHODS, saliency.RANDOM, saliency.WEIGHT_NORM))


def routed(model: Path) -> list[list[tiny_reference.Routed]]:
    return [tiny_reference.forward(model, chunk.tolist())[1] for chunk in CHUNKS]


def test_a_statistic_and_a_method_are_a_row_each(
    model: Path, ids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = calibrate(model, tmp_path / "before.npz", ids, settings=SETTINGS)
    with pytest.raises(InputError, match="method 'reap_relative' is not known"):
        plan(model, stats=tmp_path / "before.npz", ratio="0.25", method="reap_relative")
    add_rows_of_the_readme(monkeypatch)
    assert "output_norms" in observables()
    statistics = calibrate(model, tmp_path / "S.npz", ids, settings=SETTINGS)
    chosen = plan(model, stats=tmp_path / "S.npz", ratio="0.25", method="reap_relative")

    expected = np.zeros((len(statistics.blocks), 16))
    for chunk in routed(model):
        for row, block in enumerate(chunk):
            output = np.linalg.norm((block.g[..., None] * block.f).sum(axis=1), axis=-1)
            relative = (block.g * np.linalg.norm(block.f, axis=-1) / output[:, None]) ** 2
            np.add.at(expected[row], block.ids.ravel(), relative.ravel())
    np.testing.assert_allclose(statistics.total.values["sum_relative"], expected, rtol=1e-3)
    kept = {block: set(np.argsort(expected[row])[4:]) for row, block in enumerate(statistics.blocks)}
    assert {block: set(experts) for block, experts in chosen.keep.items()} == kept
    assert chosen.method == "reap_relative"
    for name, values in before.total.values.items():
        assert np.array_equal(statistics.total.values[name], values), "no other statistic changes"

    with pytest.raises(InputError, match=r"hold no sum_relative, only count, .*; calibrate again"):
        plan(model, stats=tmp_path / "before.npz", ratio="0.25", method="reap_relative")


def fold_products(array: np.ndarray, batch: RoutedBatch) -> None:
    pairs = batch.experts[:, :, None], batch.experts[:, None, :]
    np.add.at(array, pairs, batch["products"].astype(np.float64))


GRAM = Statistic(
    fold_products, "sum of g_i g_j <f_i, f_j>", needs=("products",), shape=lambda n_expert: (n_expert, n_expert)
)


def test_a_statistic_may_have_another_shape(
    model: Path, ids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alone(statistics: saliency.ExpertStatistics) -> np.ndarray:
        """What leaving out one expert and nothing else would change: the diagonal."""
        return np.einsum("bii->bi", statistics.values["gram"])

    monkeypatch.setitem(STATISTICS, "gram", GRAM)
    monkeypatch.setitem(saliency.METHODS, "alone", saliency.Method(alone, "sum_gf2", "Σ g_j²‖f_j‖²", "a test"))
    monkeypatch.setattr(saliency, "METHOD_NAMES", (*saliency.METHODS, saliency.RANDOM, saliency.WEIGHT_NORM))
    statistics = calibrate(model, tmp_path / "S.npz", ids, settings=SETTINGS)
    gram = statistics.total.values["gram"]
    expected = np.zeros((len(statistics.blocks), 16, 16))
    for chunk in routed(model):
        for row, block in enumerate(chunk):
            parts = np.zeros((len(block.ids), 16, block.f.shape[-1]))
            np.put_along_axis(parts, block.ids[:, :, None], block.g[..., None] * block.f, axis=1)
            expected[row] += np.einsum("tie,tje->ij", parts, parts)
    np.testing.assert_allclose(gram, expected, rtol=1e-3, atol=1e-4 * expected.max())
    np.testing.assert_allclose(alone(statistics.total), statistics.total.values["sum_gf2"], rtol=1e-5)
    kept = {block: set(np.argsort(np.diagonal(gram[row]))[4:]) for row, block in enumerate(statistics.blocks)}
    chosen = plan(model, stats=tmp_path / "S.npz", ratio="0.25", method="alone")
    assert {block: set(experts) for block, experts in chosen.keep.items()} == kept
    again, _ = load(tmp_path / "S.npz")
    assert np.array_equal(again.total.values["gram"], gram)
    for shard in ("1/2", "2/2"):
        calibrate(model, tmp_path / f"{shard[0]}.npz", ids, shard=shard, settings=SETTINGS)
    both = merge([tmp_path / "1.npz", tmp_path / "2.npz"], tmp_path / "both.npz")
    np.testing.assert_allclose(both.total.values["gram"], gram, rtol=1e-12, atol=1e-12 * expected.max())


# What is finished.


def refusing(*_arguments: object, **_options: object) -> None:
    raise AssertionError("a model was loaded")


TEXT = "".join(f"{number} bottles of beer on the wall. " for number in range(200))
ROWS = "".join(f'{{"text": "row {number} of many, and some more words"}}\n' for number in range(60))
KINDS = {
    "text": lambda folder: str(folder / "a.txt"),
    "rows": lambda folder: Request(file=(str(folder / "b.jsonl"),)),
    "drawn": lambda folder: Request(domain=(f"rows={folder}/b.jsonl:40",), seed=3),
    "folder": lambda folder: Request(file=(str(folder),)),
    "data set": lambda folder: Request(dataset=(f"{folder}/set(train)",)),
    "tokens": lambda folder: folder / "ids.npy",
    "given": lambda _: Request(text={"beer": TEXT}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_finished_statistics_are_used_without_loading_the_model(
    model: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out, matrix = tmp_path / "data", tmp_path / "S.npz", tmp_path / "S.imatrix.gguf"
    (folder / "set").mkdir(parents=True)
    (folder / "a.txt").write_text(TEXT)
    for path in (folder / "b.jsonl", folder / "set" / "train.jsonl"):
        path.write_text(ROWS)
    np.save(folder / "ids.npy", CHUNKS)
    options = {"imatrix_out": matrix, "settings": SETTINGS}
    first = calibrate(model, out, KINDS[kind](folder), **options)
    written, found = out.read_bytes(), matrix.read_bytes()
    matrix.unlink()
    monkeypatch.setattr(import_module("ggufreap.verbs.calibrate"), "LlamaSession", refusing)
    again = calibrate(model, out, KINDS[kind](folder), **options)
    assert (again.counts, out.read_bytes(), matrix.read_bytes()) == (first.counts, written, found)
    with pytest.raises(MismatchError, match="holds statistics with another n_ubatch"):
        calibrate(model, out, KINDS[kind](folder), settings=EngineSettings(n_ctx=64, n_ubatch=16))


def test_calibrating_again_takes_less_than_a_second(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    command = [sys.executable, "-m", "ggufreap", "calibrate", str(DEMO_MODEL), "-f", str(tmp_path / "a.txt")]
    command += ["-o", str(tmp_path / "S.npz"), "-c", "128", "-t", "1"]
    subprocess.run(command, check=True, capture_output=True)
    started = processor_seconds()
    said = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "using the statistics in" in said.stderr
    assert processor_seconds() - started < 1  # a busy machine is no failure


def test_an_unfinished_calibration_of_other_work_is_refused_without_loading_the_model(
    model: Path, ids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrate(model, tmp_path / "S.npz", ids, settings=SETTINGS)
    checkpoint = checkpoint_path(tmp_path / "T.npz")
    (tmp_path / "S.npz").rename(checkpoint)
    monkeypatch.setattr(import_module("ggufreap.verbs.calibrate"), "LlamaSession", refusing)
    with pytest.raises(MismatchError, match="holds an unfinished calibration with another shard"):
        calibrate(model, tmp_path / "T.npz", ids, shard="1/2", settings=SETTINGS)
    with pytest.raises(MismatchError, match="holds an unfinished calibration without importance matrix"):
        calibrate(model, tmp_path / "T.npz", ids, imatrix_out=tmp_path / "T.imatrix.gguf", settings=SETTINGS)


def processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_a_matrix_beside_the_statistics_is_never_taken_for_the_collected_one(
    model: Path, ids: Path, tmp_path: Path
) -> None:
    options = {"ratio": "0.25", "quant": ["Q4_K_M"], "settings": SETTINGS, "allow_requantize": True}
    first = prune(model, ids, out=tmp_path / "a", **options)
    beside, sliced = tmp_path / "a" / "m.imatrix.gguf", first.imatrix_path
    assert sliced
    right, made = beside.read_bytes(), (sliced.read_bytes(), first.quantized[0].paths[0].read_bytes())
    other = imatrix.load(beside)
    other.entries["blk.0.ffn_up_exps.weight"].in_sum2[:] *= np.arange(
        other.entries["blk.0.ffn_up_exps.weight"].in_sum2.shape[1]
    )
    imatrix.save(beside, other, own=True)
    foreign = beside.read_bytes()
    with pytest.raises(OutputError, match=r"m\.imatrix\.gguf is there already and is not of this very work"):
        prune(model, ids, out=tmp_path / "a", **options)
    assert beside.read_bytes() == foreign
    again = prune(model, ids, out=tmp_path / "a", force=True, **options)
    assert (sliced.read_bytes(), again.quantized[0].paths[0].read_bytes()) == made
    assert beside.read_bytes() == right


def test_the_matrix_is_that_of_the_statistics_with_or_without_the_head(
    model: Path, ids: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def matrix(name: str, **options: bool) -> set[str]:
        calibrate(model, tmp_path / "S.npz", ids, imatrix_out=tmp_path / name, settings=SETTINGS, **options)
        return set(imatrix.load(tmp_path / name).entries)

    plain = matrix("plain.gguf")
    whole = matrix("whole.gguf", process_output=True)
    assert "S.npz lacks importance sums of the output head: calibrating again to add it" in caplog.text
    assert whole - plain == {"output.weight"}
    assert matrix("again.gguf") == plain
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "plain.gguf").read_bytes()


def test_statistics_of_some_blocks_are_no_ground_for_a_plan(model: Path, ids: Path, tmp_path: Path) -> None:
    calibrate(model, tmp_path / "S.npz", ids, settings=SETTINGS)
    whole, provenance = load(tmp_path / "S.npz")
    frame = {"blocks": whole.blocks[:1], "n_used": whole.n_used[:1]}
    cut = {
        name: tuple(
            replace(half, **frame, values={each: values[:1] for each, values in half.values.items()}) for half in halves
        )
        for name, halves in whole.halves.items()
    }
    save(tmp_path / "some.npz", replace(whole, **frame, halves=cut), provenance)
    with pytest.raises(MismatchError, match="holds 1 of the 2 MoE blocks, not block 1; merge it"):
        plan(model, stats=tmp_path / "some.npz", ratio="0.25")
    with pytest.raises(MismatchError, match="holds statistics of 1 of the 2 MoE blocks; merge it"):
        calibrate(model, tmp_path / "some.npz", ids, settings=SETTINGS)


def test_matrices_beside_statistics_without_sums_are_not_merged_in_silence(
    model: Path, ids: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for shard in ("1/2", "2/2"):
        calibrate(model, tmp_path / f"{shard[0]}.npz", ids, shard=shard, settings=SETTINGS)
    (tmp_path / "1.imatrix.gguf").write_bytes(b"somebody's")
    merge([tmp_path / "1.npz", tmp_path / "2.npz"], tmp_path / "both.npz")
    assert f"not merged: {tmp_path / '1.imatrix.gguf'}; statistics without importance sums do not tell" in caplog.text
    assert Stored.open(tmp_path / "both.npz").importance is None
    assert not (tmp_path / "both.imatrix.gguf").exists()


# Plans that must not depend on how a model is written down.


def plans(path: Path, ids: Path) -> dict[str, object]:
    """What every method keeps, by one calibration; random looks at nothing."""
    stats, matrix = path.with_suffix(".npz"), path.with_suffix(".imatrix.gguf")
    calibrate(path, stats, ids, imatrix_out=matrix, settings=SETTINGS)
    found = {
        name: plan(path, stats=stats if name in saliency.METHODS else None, method=name, ratio="0.25").keep
        for name in saliency.METHOD_NAMES
    }
    return found | {"imatrix": plan(path, from_imatrix=matrix, ratio="0.25").keep}


def test_a_scale_folded_into_the_weights_changes_no_plan(tmp_path: Path, ids: Path) -> None:
    scaled = tiny_gguf.qwen3moe(tmp_path / "scaled.gguf", changes=[tiny_layouts.scaled])
    folded = tiny_gguf.qwen3moe(tmp_path / "folded.gguf", changes=[tiny_layouts.scales_folded])
    tokens = CHUNKS[0].tolist()
    np.testing.assert_allclose(tiny_llama.outputs(scaled, tokens), tiny_llama.outputs(folded, tokens), atol=1e-4)
    assert plans(scaled, ids) == plans(folded, ids)
    # It is the scales that decide: without them, the norms of these weights choose otherwise.
    bare = plan(tiny_gguf.qwen3moe(tmp_path / "bare.gguf"), method="weight_norm", ratio="0.25")
    assert bare.keep != plan(scaled, method="weight_norm", ratio="0.25").keep
