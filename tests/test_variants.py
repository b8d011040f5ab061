"""Requantised variants of a pruned model: one calibration, a sliced importance matrix, llama.cpp's own quantiser."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
from asked import prune
from gguf import GGMLQuantizationType as Kind

from ggufreap import Quantiser, calibrate, imatrix, quantize
from ggufreap.architecture.layout import bind
from ggufreap.cli import main
from ggufreap.container import open_gguf, type_name
from ggufreap.corpus import Reading
from ggufreap.corpus.request import Request
from ggufreap.errors import InputError, MismatchError, OutputError
from ggufreap.options.engine import EngineSettings
from ggufreap.recipe import Variant
from ggufreap.verbs import quantize_variants

pytestmark = pytest.mark.native

SETTINGS = EngineSettings(n_ctx=64, n_ubatch=64, n_threads=1, n_gpu_layers=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.qwen3moe(tmp_path_factory.mktemp("model") / "Toy-F16.gguf", types=Kind.F16, n_expert=8, n_used=2)


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    np.save(tmp_path / "ids.npy", np.random.default_rng(0).integers(0, 320, 1024))
    return tmp_path / "ids.npy"


def test_one_command_makes_all_variants(model: Path, tokens: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = prune(model, ratio="0.25", data=tokens, quant=["q4_k_m", "IQ2_XS"], out=out, settings=SETTINGS)
    assert made.verification is not None
    assert made.verification.ok
    assert sorted(path.name for path in out.glob("*.gguf")) == [
        "Toy-F16.imatrix.gguf",
        "Toy-RANK-AVERAGE-0.25-F16.imatrix.gguf",
        "Toy-RANK-AVERAGE-0.25-IQ2_XS.gguf",
        "Toy-RANK-AVERAGE-0.25-Q4_K_M.gguf",
    ]
    for variant, kind in zip(made.quantized, ("Q4_K", "IQ2_XS"), strict=True):
        file = open_gguf(variant.paths[0])
        assert bind(file).n_expert == 6
        assert type_name(file.by_name["blk.1.ffn_gate_exps.weight"].type) == kind
        assert file.nbytes == variant.nbytes
        assert file.get("quantize.imatrix.entries_count") > 0
        assert file.get("ggufreap.method") == "rank_average"


def test_the_sliced_matrix_is_the_slice_of_the_whole(model: Path, tokens: Path, tmp_path: Path) -> None:
    made = prune(model, ratio="0.5", data=tokens, quant=["Q4_K_M"], out=tmp_path / "out", settings=SETTINGS)
    assert made.imatrix_path is not None
    whole, _ = imatrix.filled(imatrix.load(tmp_path / "out" / "Toy-F16.imatrix.gguf"))
    part = imatrix.load(made.imatrix_path)
    for name, entry in whole.entries.items():
        expected = entry
        if "_exps" in name:
            kept = list(made.plan.keep[int(name.split(".")[1])])
            expected = imatrix.ImatrixEntry(entry.in_sum2[kept], entry.counts[kept])
            assert (part.entries[name].counts > 0).all()
        assert np.array_equal(part.entries[name].in_sum2, expected.in_sum2), name
        assert np.array_equal(part.entries[name].counts, expected.counts), name


def test_a_given_matrix_takes_the_place_of_a_collected_one(model: Path, tokens: Path, tmp_path: Path) -> None:
    first = prune(model, ratio="0.25", data=tokens, quant=["IQ4_XS"], out=tmp_path / "a", settings=SETTINGS)
    second = prune(
        model,
        ratio="0.25",
        data=tokens,
        quant=["IQ4_XS"],
        imatrix=tmp_path / "a" / "Toy-F16.imatrix.gguf",
        out=tmp_path / "b",
        settings=SETTINGS,
    )
    assert not (tmp_path / "b" / "Toy-F16.imatrix.gguf").exists()
    files = [open_gguf(made.quantized[0].paths[0]) for made in (first, second)]
    for record in files[0].tensors:
        assert np.array_equal(files[0].map(record), files[1].map(files[1].by_name[record.name])), record.name


def test_auto_quantises_what_has_8_bits_and_keeps_the_rest(
    model: Path, tokens: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = prune(model, ratio="0.25", data=tokens, out=tmp_path / "a", settings=SETTINGS)
    assert [variant.paths[0].name for variant in made.quantized] == [
        "Toy-RANK-AVERAGE-0.25-Q4_K_M.gguf",
        "Toy-RANK-AVERAGE-0.25-IQ4_XS.gguf",
    ]
    assert not made.script.files[0].path.exists()
    low = tiny_gguf.qwen3moe(tmp_path / "Toy-Q4_K.gguf", types=Kind.Q4_K, n_expert=8)
    with caplog.at_level("INFO", "ggufreap"):
        kept = prune(low, ratio="0.25", data=tokens, out=tmp_path / "b", settings=SETTINGS)
    assert not kept.quantized
    assert kept.script.files[0].path.exists()
    assert "it has weights in Q4_K, and quantising twice loses twice" in caplog.text
    assert not list((tmp_path / "b").glob("*.imatrix.gguf"))


def test_a_file_that_was_named_is_there_at_the_end(model: Path, tokens: Path, tmp_path: Path) -> None:
    made = prune(model, ratio="0.25", data=tokens, quant=["IQ4_XS"], out=tmp_path / "mine.gguf", settings=SETTINGS)
    assert made.script.files[0].path == tmp_path / "mine.gguf"
    assert {path.name for path in tmp_path.glob("mine*")} == {
        "mine.gguf",
        "mine-IQ4_XS.gguf",
        "mine-IQ4_XS.Modelfile",
        "mine.imatrix.gguf",
        "mine.plan.json",
    }


RECIPE = """
[[quantization.variants]]
type = "Q4_K_M"
name = "mixed"
tensor_types = ['blk\\.{last}\\.ffn_down_exps=Q6_K']

[[quantization.variants]]
type = "IQ4_XS"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    (tmp_path / "mine.toml").write_text(RECIPE)
    return str(tmp_path / "mine.toml")


def test_a_recipe_stands_for_its_variants(model: Path, tokens: Path, tmp_path: Path, recipe: str) -> None:
    quant = [recipe, "edges-high", "q4_k_m"]  # the last is a type and a recipe, which say the same
    made = prune(model, ratio="0.25", data=tokens, quant=quant, out=tmp_path, settings=SETTINGS, dry_run=True)
    assert [variant.paths[0].name for variant in made.quantized] == [
        f"Toy-RANK-AVERAGE-0.25-{name}.gguf" for name in ("mixed", "IQ4_XS", "Q4_K_M-edges-high", "Q4_K_M")
    ]
    mixed = made.quantized[0].types
    assert (mixed["blk.0.ffn_down_exps.weight"], mixed["blk.1.ffn_down_exps.weight"]) != ("Q6_K", "Q6_K")
    assert mixed["blk.1.ffn_down_exps.weight"] == "Q6_K"


@pytest.mark.parametrize(
    ("quant", "message"),
    [
        (["Q4_K_N"], "did you mean Q4_K_.*; or keep, auto, or a recipe: edges-high"),
        (["reap-qwen3.5-35b-a3b-20"], "has no quantization.variants; add one"),
        (["none.toml"], "cannot read none.toml"),
        ([Variant("Q4_K_M", "x"), Variant("IQ4_XS", "X")], "2 variants are named x"),
    ],
)
def test_what_cannot_be_made_is_one_line(model: Path, tmp_path: Path, quant: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        prune(model, ratio="0.25", quant=quant, out=tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("source", ["tokens", "file", "domains", "given"])
def test_a_dry_run_tells_every_variant_to_the_byte(model: Path, tmp_path: Path, tokens: Path, source: str) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 60)
    other = tmp_path / "other.txt"
    other.write_text("and the lazy dog sleeps on while the fox is far away\n" * 60)
    matrix = tmp_path / "whole.imatrix.gguf"
    if source == "given":
        calibrate(model, tmp_path / "S.npz", data=tokens, imatrix_out=matrix, settings=SETTINGS)
    options = {
        "tokens": {"data": tokens},
        "file": {"data": str(text)},
        "domains": {"data": Request(file=(str(text),), domain=(f"two={other}",), reading=Reading(n_chunks=8))},
        "given": {"data": tokens, "imatrix": matrix},
    }[source]
    options |= {"ratio": "0.25", "quant": ["Q4_K_M", "Q5_K_S"], "out": tmp_path / "out"}
    before = set(tmp_path.iterdir())
    foreseen = prune(model, **options, settings=SETTINGS, dry_run=True)
    assert set(tmp_path.iterdir()) == before
    made = prune(model, **options, settings=SETTINGS)
    for said, did in zip(foreseen.quantized, made.quantized, strict=True):
        assert said.nbytes == did.nbytes == did.paths[0].stat().st_size
        assert (said.paths, said.types, said.type_nbytes) == (did.paths, did.types, did.type_nbytes)


def test_shards_are_foretold_as_well(model: Path, tokens: Path, tmp_path: Path) -> None:
    options = {
        "ratio": "0.25",
        "data": tokens,
        "quant": ["keep", "IQ4_XS"],
        "split_max_size": 1_000_000,
        "out": tmp_path,
    }
    foreseen = prune(model, **options, settings=SETTINGS, dry_run=True)
    assert len(foreseen.script.files) > 1
    made = prune(model, **options, settings=SETTINGS)
    assert foreseen.quantized[0].nbytes == made.quantized[0].paths[0].stat().st_size


def test_all_files_together_must_fit_the_disk(
    model: Path, tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"ratio": "0.25", "data": tokens, "out": tmp_path / "out", "settings": SETTINGS}
    foreseen = prune(model, **options, dry_run=True)
    needed = foreseen.script.nbytes + sum(variant.nbytes for variant in foreseen.quantized)
    usage = shutil.disk_usage(tmp_path)._replace(free=needed)  # and nothing for the importance matrices
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match=rf"the output needs [\d,]+ bytes and .* has {needed:,} free; free some"):
        prune(model, **options)
    assert not list((tmp_path / "out").iterdir())


def test_importance_that_will_be_missing_is_found_before_the_work(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="which takes an importance matrix, and none covers it"):
        prune(model, ratio="0.25", method="random", quant=["IQ2_XS"], out=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_fp4_experts_are_kept_or_refused(tokens: Path, tmp_path: Path) -> None:
    fp4 = tiny_gguf.qwen3moe(tmp_path / "Toy-MXFP4.gguf", types=Kind.MXFP4)
    options = {"ratio": "0.25", "data": tokens, "settings": SETTINGS, "dry_run": True}
    assert not prune(fp4, **options).quantized
    with pytest.raises(InputError, match="are MXFP4, often the type a model was trained in"):
        prune(fp4, **options, quant=["Q4_K_M"], allow_requantize=True)


# A finished model, and a recipe.


def test_the_variants_of_a_recipe(model: Path, tmp_path: Path, recipe: str) -> None:
    foreseen = quantize_variants(model, tmp_path / "out", recipe, dry_run=True)
    assert not (tmp_path / "out").exists()
    made = quantize_variants(model, tmp_path / "out", recipe)
    assert [path.name for each in made.quantized for path in each.paths] == ["Toy-mixed.gguf", "Toy-IQ4_XS.gguf"]
    assert made == foreseen
    assert made.nbytes == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    types = {record.name: type_name(record.type) for record in open_gguf(tmp_path / "out" / "Toy-mixed.gguf").tensors}
    assert types["blk.1.ffn_down_exps.weight"] == "Q6_K"
    with pytest.raises(OutputError, match=r"one.gguf is one file, recipe .* makes 2; name a folder"):
        quantize_variants(model, tmp_path / "one.gguf", recipe)


def test_a_single_variant_may_name_its_file(model: Path, tmp_path: Path) -> None:
    made = quantize_variants(model, tmp_path / "one.gguf", "q4_k_m")
    plain = quantize(model, tmp_path / "plain.gguf", "Q4_K_M")
    assert made.quantized[0].paths == (tmp_path / "one.gguf",)
    assert (tmp_path / "one.gguf").read_bytes() == plain.paths[0].read_bytes()


def test_quantising_twice_is_refused_before_the_work(tokens: Path, tmp_path: Path) -> None:
    low = tiny_gguf.qwen3moe(tmp_path / "Toy-Q4_K.gguf", types=Kind.Q4_K, n_expert=8)
    options = {"ratio": "0.25", "data": tokens, "quant": ["IQ4_XS"], "out": tmp_path / "a", "settings": SETTINGS}
    with pytest.raises(InputError, match="are Q4_K and would become IQ4_XS; quantising twice loses twice"):
        prune(low, **options)
    assert not (tmp_path / "a").exists()
    made = prune(low, **options, allow_requantize=True)
    assert any("second time" in warning for warning in made.quantized[0].warnings)


def test_the_byte_exact_file_stays_where_it_is_wanted(model: Path, tokens: Path, tmp_path: Path) -> None:
    for name, options in {
        "asked": {"quant": ["keep", "Q4_K_M"]},
        "intermediate": {"quant": ["Q4_K_M"], "keep_intermediate": True},
    }.items():
        prune(model, ratio="0.25", data=tokens, out=tmp_path / name, settings=SETTINGS, **options)
        assert (tmp_path / name / "Toy-RANK-AVERAGE-0.25-F16.gguf").exists()


def test_the_matrix_of_another_model_is_refused_before_the_work(model: Path, tokens: Path, tmp_path: Path) -> None:
    prune(model, ratio="0.25", data=tokens, quant=["Q4_K_M"], out=tmp_path / "a", settings=SETTINGS)
    sliced = tmp_path / "a" / "Toy-RANK-AVERAGE-0.25-F16.imatrix.gguf"
    with pytest.raises(MismatchError, match="slice its original"):
        prune(model, ratio="0.25", data=tokens, quant=["Q4_K_M"], imatrix=sliced, out=tmp_path / "b")
    assert not list((tmp_path / "b").glob("*.gguf"))


def test_an_unknown_type_is_refused_before_the_work(model: Path, tokens: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Q4_K_M"):
        prune(model, ratio="0.25", data=tokens, quant=["Q4_K_N"], out=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_quantising_alone_says_which_experts_had_no_data(model: Path, tokens: Path, tmp_path: Path) -> None:
    prune(model, ratio="0.25", data=tokens, quant=["Q4_K_M"], out=tmp_path / "a", settings=SETTINGS)
    path = tmp_path / "a" / "Toy-F16.imatrix.gguf"
    whole = imatrix.load(path)
    name = "blk.0.ffn_up_exps.weight"
    entry = whole.entries[name]
    entry.in_sum2[3], entry.counts[3] = 0, 0
    imatrix.save(path, whole, own=True)
    made = quantize(model, tmp_path / "q.gguf", "Q4_K_M", Quantiser(imatrix=path))
    assert any(name in note and "mean of the other 7" in note for note in made.warnings)


def test_the_command_line_takes_a_type_or_a_recipe(
    model: Path, tmp_path: Path, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["quantize", str(model), "-o", str(tmp_path / "out"), "--recipe", recipe]
    assert main([*command, "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["quantized"]
    assert [Path(made["paths"][0]).name for made in told] == ["Toy-mixed.gguf", "Toy-IQ4_XS.gguf"]
    assert main([*command, "--tensor-type", "attn_=q8_0"]) == 1
    assert "--tensor-type was given beside recipe" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--type", "Q4_K_M"])
    assert "not allowed with argument" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
