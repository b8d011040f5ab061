"""Pruning by an importance matrix alone, and importance matrices by themselves: shown, merged, checked, sliced."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
from asked import plan, prune
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize

from ggufreap import apply, imatrix, saliency
from ggufreap.architecture.layout import MoeLayout, bind
from ggufreap.cli import main
from ggufreap.container import GgufFile, open_gguf
from ggufreap.errors import FormatError, InputError, MismatchError, OutputError
from ggufreap.imatrix import Imatrix, ImatrixEntry
from ggufreap.options.engine import EngineSettings
from ggufreap.planning import load_plan, save_plan
from ggufreap.quantization import QuantRequest, quantize_file
from ggufreap.verbs import imatrix as imatrix_verb

SETTINGS = EngineSettings(n_ctx=64, n_ubatch=64, n_threads=1, n_gpu_layers=0)
N_EXPERT = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.qwen3moe(tmp_path_factory.mktemp("model") / "Toy-F16.gguf", types=Kind.F16)


def of_model(file: GgufFile, layout: MoeLayout, seed: int = 0, empty: tuple[int, ...] = ()) -> Imatrix:
    """An importance matrix of all weights of the blocks; the `empty` experts of every block had no data."""
    rng = np.random.default_rng(seed)
    entries = {}
    for record in file.tensors:
        if not record.name.startswith("blk.") or len(record.shape) < 2:
            continue
        n_mat = N_EXPERT if "_exps" in record.name else 1
        counts = rng.integers(1, 500, n_mat) if n_mat > 1 else np.array([2048])
        sums = rng.random((n_mat, record.shape[-1]), np.float32) * counts[:, None]
        if n_mat > 1:
            counts[list(empty)], sums[list(empty)] = 0, 0
        entries[record.name] = ImatrixEntry.of(sums, counts)
    return Imatrix(entries, ("a text",), 4, 512)


@pytest.fixture(scope="module")
def matrix(model: Path) -> Path:
    file = open_gguf(model)
    path = model.with_name("whole.imatrix.gguf")
    imatrix.save(path, of_model(file, bind(file), empty=(3, 5)))
    return path


# --- choosing by it ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Kind.F32, Kind.Q8_0, Kind.Q4_K])
def test_the_score_is_the_formula(tmp_path: Path, kind: Kind) -> None:
    file = open_gguf(tiny_gguf.qwen3moe(tmp_path / "m.gguf", types=kind))
    layout = bind(file)
    given = of_model(file, layout, empty=(3,))
    scores = saliency.imatrix_scores(given, file, layout)
    down = file.by_name["blk.1.ffn_down_exps.weight"]
    weights = dequantize(file.map(down).reshape(*down.shape[:2], -1), kind).astype(np.float64)
    router = np.array(file.map(file.by_name["blk.1.ffn_gate_inp.weight"])).view(np.float32).reshape(N_EXPERT, -1)
    first, last = (given.entries[f"blk.1.ffn_{part}_exps.weight"] for part in ("gate", "down"))
    outputs = (np.square(weights) * last.in_sum2[:, None, :]).sum(axis=(1, 2)) / np.maximum(last.counts, 1)
    logits = (np.square(router, dtype=np.float64) * first.in_sum2).sum(axis=1) / np.maximum(last.counts, 1)
    expected = np.sqrt(outputs * logits)
    expected[3] = -np.inf
    np.testing.assert_allclose(scores[1], expected, rtol=1e-5)
    assert scores.shape == (2, N_EXPERT)


def test_the_score_of_independent_inputs_is_of_true_outputs_and_logits(tmp_path: Path) -> None:
    """Experts that see Gaussian noise: what the matrix tells is within a few percent of what calibration would."""
    file = open_gguf(tiny_gguf.qwen3moe(tmp_path / "m.gguf", n_block=1))
    layout, rng = bind(file), np.random.default_rng(0)
    entries, true = dict(of_model(file, layout).entries), np.zeros(N_EXPERT)
    weights = {
        part: np.array(file.map(file.by_name[f"blk.0.ffn_{part}.weight"])).view(np.float32).reshape(N_EXPERT, -1, 256)
        for part in ("gate_inp", "down_exps")
    }
    counts = 100 + 20 * np.arange(N_EXPERT)
    sums = {part: np.zeros((N_EXPERT, 256), np.float32) for part in weights}
    for expert, count in enumerate(counts):
        mean_squares = []
        for part, matrices in weights.items():
            inputs = rng.normal(size=(count, 256)) * rng.random(256)
            sums[part][expert] = np.square(inputs).sum(axis=0)
            mean_squares.append(np.square(inputs @ matrices[expert].T).sum(axis=1).mean())
        true[expert] = np.sqrt(np.prod(mean_squares))
    entries["blk.0.ffn_down_exps.weight"] = ImatrixEntry.of(sums["down_exps"], counts)
    entries["blk.0.ffn_gate_exps.weight"] = ImatrixEntry.of(sums["gate_inp"], counts)
    scores = saliency.imatrix_scores(Imatrix(entries), file, layout)
    np.testing.assert_allclose(scores[0], true, rtol=0.2)
    assert np.corrcoef(scores[0], true)[0, 1] > 0.5


def test_a_broken_weight_is_told_of(model: Path, matrix: Path, tmp_path: Path) -> None:
    file = open_gguf(model)
    record = file.by_name["blk.0.ffn_down_exps.weight"]
    data = bytearray(model.read_bytes())
    data[record.offset : record.offset + 2] = np.float16(np.nan).tobytes()
    (tmp_path / "nan.gguf").write_bytes(data)
    with pytest.raises(FormatError, match=r"ffn_down_exps\.weight, expert 0: a weight is NaN"):
        plan(tmp_path / "nan.gguf", from_imatrix=matrix, ratio="0.25")


def test_a_plan_says_that_it_is_the_weaker_choice(
    model: Path, matrix: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "ggufreap"):
        chosen = plan(model, from_imatrix=matrix, ratio="0.25")
    assert "weaker than reap" in caplog.text
    assert (chosen.method, chosen.label, chosen.corpus) == ("imatrix", "IMATRIX-0.25", "")
    assert all({3, 5}.isdisjoint(kept) for kept in chosen.keep.values()), "experts without data go first"
    save_plan(tmp_path / "P.json", chosen)
    assert "weaker than reap" in json.loads((tmp_path / "P.json").read_text())["note"]
    assert load_plan(tmp_path / "P.json") == chosen
    assert "note" not in json.loads(plan(model, method="random", ratio="0.25").to_json())


@pytest.mark.native
def test_prune_without_any_calibration(
    model: Path, matrix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    command = ["prune", str(model), "--ratio", "0.25", "--from-imatrix", str(matrix), "-o", str(tmp_path), "-t", "1"]
    assert main([*command, "--quant", "keep", "--quant", "IQ4_XS"]) == 0
    said = capsys.readouterr()
    assert "note: chosen from an importance matrix alone" in said.out
    assert "weaker than reap" in said.out
    assert {path.name for path in tmp_path.iterdir()} == {
        "Toy-IMATRIX-0.25-F16.gguf",
        "Toy-IMATRIX-0.25-F16.imatrix.gguf",
        "Toy-IMATRIX-0.25-F16.plan.json",
        "Toy-IMATRIX-0.25-IQ4_XS.gguf",
        "Toy-IMATRIX-0.25-IQ4_XS.Modelfile",
    }
    for path in tmp_path.glob("*-F16.gguf"):
        file = open_gguf(path)
        assert file.get("ggufreap.method") == "imatrix"
        assert "imatrix" in file.get("general.tags")
        assert bind(file).n_expert == 12


def test_what_does_not_go_with_it_is_refused(model: Path, matrix: Path, tmp_path: Path) -> None:
    options = {"ratio": "0.25", "from_imatrix": matrix}
    with pytest.raises(InputError, match="method frequency does not work from an importance matrix"):
        plan(model, **options, method="frequency")
    with pytest.raises(InputError, match="both statistics and an importance matrix"):
        plan(model, **options, stats="S.npz")
    with pytest.raises(InputError, match="both an importance matrix to choose from and a text"):
        prune(model, **options, data="text.txt", out=tmp_path / "a")
    with pytest.raises(InputError, match="method imatrix needs an importance matrix; name one with --from-imatrix"):
        plan(model, ratio="0.25", method="imatrix")
    legacy = tmp_path / "old.dat"
    imatrix.save(legacy, imatrix.load(matrix), legacy=True)
    with pytest.raises(InputError, match=r"one count for all 16 experts .* as a \.dat does; use one in GGUF"):
        prune(model, ratio="0.25", from_imatrix=legacy, out=tmp_path / "a")
    other = tiny_gguf.qwen3moe(tmp_path / "other.gguf", n_expert=8)
    with pytest.raises(MismatchError, match="another size"):
        plan(other, **options)
    assert not list((tmp_path).glob("a/*.gguf"))


# --- by itself --------------------------------------------------------------------------------------------------------


def test_a_slice_is_the_slice_of_the_whole_byte_for_byte(model: Path, matrix: Path, tmp_path: Path) -> None:
    chosen = plan(model, from_imatrix=matrix, keep=12)
    save_plan(tmp_path / "P.json", chosen)
    out = tmp_path / "sliced.imatrix.gguf"
    report = imatrix_verb([matrix], out=out, model=model, plan=tmp_path / "P.json")
    whole = imatrix.load(matrix)
    complete, gaps = imatrix.filled(whole)
    expected = tmp_path / "expected.gguf"
    rows = dict(complete.entries)
    for name, entry in complete.entries.items():
        if "_exps" in name:
            kept = list(chosen.keep[int(name.split(".")[1])])
            rows[name] = ImatrixEntry(entry.in_sum2[kept], entry.counts[kept])
    imatrix.save(expected, Imatrix(rows, whole.datasets, whole.chunk_count, whole.chunk_size))
    assert out.read_bytes() == expected.read_bytes()
    assert report.filled == gaps
    assert report.coverage
    assert not report.coverage.missing
    assert report.path == out


@pytest.mark.native
def test_a_slice_has_no_hole_and_will_do_for_the_smallest_types(tmp_path: Path) -> None:
    """The plan keeps an expert that had no data."""
    file = open_gguf(tiny_gguf.qwen3moe(tmp_path / "m.gguf", types=Kind.F16, n_block=1))
    imatrix.save(tmp_path / "whole.gguf", of_model(file, bind(file), empty=(3, 5)))
    plans = (plan(file.path, method="random", keep=4, seed=seed) for seed in range(100))
    chosen = next(made for made in plans if 5 in made.keep[0])
    report = imatrix_verb([tmp_path / "whole.gguf"], out=tmp_path / "I.gguf", model=file.path, plan=chosen)
    sliced = imatrix.load(tmp_path / "I.gguf")
    # Columns of other experts tell nothing of a down's: those are weighted evenly.
    down = "blk.0.ffn_down_exps.weight"
    assert [name for name, entry in sliced.entries.items() if not (entry.counts > 0).all()] == [down]
    assert [entry.weight for entry in report.summary.entries if entry.n_empty] == [down]
    values = {name: imatrix.means(entry) for name, entry in sliced.entries.items()}
    assert all((array > 0).all() for array in values.values())
    apply(file.path, chosen, tmp_path / "pruned.gguf")
    pruned = open_gguf(tmp_path / "pruned.gguf")
    made = quantize_file(pruned, tmp_path / "Q.gguf", QuantRequest("IQ2_XS"), imatrix=values)
    assert made.types["blk.0.ffn_gate_exps.weight"] == "IQ2_XS"
    assert (tmp_path / "Q.gguf").stat().st_size == made.nbytes


def test_matrices_are_shown_and_merged(
    model: Path, matrix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, other, whole = tmp_path / "both.gguf", tmp_path / "other.gguf", imatrix.load(matrix)
    imatrix.save(other, replace(whole, datasets=("another text",)))
    assert main(["imatrix", str(matrix), str(other), "--model", str(model), "-o", str(out)]) == 0
    drawn = capsys.readouterr().out
    assert "from     a text, another text\ntext     8 chunks of 512 tokens" in drawn
    row = next(line.split() for line in drawn.splitlines() if line.startswith("ffn_down_exps"))
    most = max(whole.entries[f"blk.{block}.ffn_down_exps.weight"].counts.max() for block in (0, 1))
    assert row[1:6] == ["2", "16", "256", f"{2 * most:,}", "4"]
    assert f"fits the model: {len(whole.entries)} of its weights" in drawn
    assert drawn.splitlines()[-1] == str(out)
    for name, entry in imatrix.load(out).entries.items():
        assert np.array_equal(entry.counts, 2 * whole.entries[name].counts)
        assert np.array_equal(entry.in_sum2, 2 * whole.entries[name].in_sum2)


def test_the_legacy_format_goes_in_and_out(matrix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["imatrix", str(matrix), "-o", str(tmp_path / "old.dat"), "--json"]) == 0
    whole, told = imatrix.load(matrix), json.loads(capsys.readouterr().out)
    assert {entry["weight"]: entry["n_empty"] for entry in told["summary"]["entries"]} == {
        name: int((entry.counts == 0).sum()) for name, entry in whole.entries.items()
    }
    assert imatrix.load(tmp_path / "old.dat").per_chunk
    assert main(["imatrix", str(tmp_path / "old.dat"), "-o", str(tmp_path / "new.gguf")]) == 0
    again = imatrix.load(tmp_path / "new.gguf")
    name = "blk.0.attn_q.weight"
    np.testing.assert_allclose(imatrix.means(again.entries[name]), imatrix.means(whole.entries[name]), rtol=1e-5)


def test_bad_input_is_one_line(model: Path, matrix: Path, tmp_path: Path) -> None:
    other = tiny_gguf.qwen3moe(tmp_path / "other.gguf", n_expert=8)
    with pytest.raises(MismatchError, match="another size"):
        imatrix_verb([matrix], model=other)
    with pytest.raises(InputError, match="without the model it was made for; name the unpruned one with --model"):
        imatrix_verb([matrix], plan=plan(model, method="random", keep=12))
    with pytest.raises(MismatchError, match="make a plan for this file"):
        imatrix_verb([matrix], model=model, plan=plan(other, method="random", keep=6))
    with pytest.raises(OutputError, match="is the input itself"):
        imatrix_verb([matrix], out=matrix)
    with pytest.raises(InputError, match="cannot read"):
        imatrix_verb([tmp_path / "none.gguf"])
