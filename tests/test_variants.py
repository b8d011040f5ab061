"""Requantised variants of a pruned model: one calibration, a sliced importance matrix, llama.cpp's own quantiser."""

from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
from gguf import GGMLQuantizationType as Kind

from ggufreap import imatrix, prune, quantize
from ggufreap.architecture.layout import bind
from ggufreap.container import open_gguf, type_name
from ggufreap.engine.session import EngineSettings
from ggufreap.errors import InputError, MismatchError

pytestmark = pytest.mark.native

SETTINGS = EngineSettings(n_ctx=64, n_ubatch=64, n_threads=1, n_gpu_layers=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.qwen3moe(tmp_path_factory.mktemp("model") / "Toy-F16.gguf", types=Kind.F16)


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    np.save(tmp_path / "ids.npy", np.random.default_rng(0).integers(0, 320, 2048))
    return tmp_path / "ids.npy"


def test_one_command_makes_all_variants(model: Path, tokens: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = prune(model, ratio="0.25", tokens=tokens, quant=["q4_k_m", "IQ2_XS"], out=out, settings=SETTINGS)
    assert made.verification is not None
    assert made.verification.ok
    assert sorted(path.name for path in out.glob("*.gguf")) == [
        "Toy-F16.imatrix.gguf",
        "Toy-REAP-0.25-F16.imatrix.gguf",
        "Toy-REAP-0.25-IQ2_XS.gguf",
        "Toy-REAP-0.25-Q4_K_M.gguf",
    ]
    for variant, kind in zip(made.quantized, ("Q4_K", "IQ2_XS"), strict=True):
        file = open_gguf(variant.paths[0])
        assert bind(file).n_expert == 12
        assert type_name(file.by_name["blk.1.ffn_gate_exps.weight"].type) == kind
        assert file.nbytes == variant.nbytes
        assert file.get("quantize.imatrix.entries_count") > 0
        assert file.get("ggufreap.method") == "reap"


def test_the_sliced_matrix_is_the_slice_of_the_whole(model: Path, tokens: Path, tmp_path: Path) -> None:
    made = prune(model, ratio="0.5", tokens=tokens, quant=["Q4_K_M"], out=tmp_path / "out", settings=SETTINGS)
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
    first = prune(model, ratio="0.25", tokens=tokens, quant=["IQ4_XS"], out=tmp_path / "a", settings=SETTINGS)
    second = prune(
        model,
        ratio="0.25",
        tokens=tokens,
        quant=["IQ4_XS"],
        imatrix=tmp_path / "a" / "Toy-F16.imatrix.gguf",
        out=tmp_path / "b",
        settings=SETTINGS,
    )
    assert not (tmp_path / "b" / "Toy-F16.imatrix.gguf").exists()
    files = [open_gguf(made.quantized[0].paths[0]) for made in (first, second)]
    for record in files[0].tensors:
        assert np.array_equal(files[0].map(record), files[1].map(files[1].by_name[record.name])), record.name


def test_auto_quantises_what_has_8_bits_and_keeps_the_rest(model: Path, tokens: Path, tmp_path: Path) -> None:
    made = prune(model, ratio="0.25", tokens=tokens, quant=["auto"], out=tmp_path / "a", settings=SETTINGS)
    assert [variant.paths[0].name for variant in made.quantized] == [
        "Toy-REAP-0.25-Q4_K_M.gguf",
        "Toy-REAP-0.25-IQ4_XS.gguf",
    ]
    low = tiny_gguf.qwen3moe(tmp_path / "Toy-Q4_K.gguf", types=Kind.Q4_K)
    kept = prune(low, ratio="0.25", tokens=tokens, quant=["auto"], out=tmp_path / "b", settings=SETTINGS)
    assert not kept.quantized
    assert kept.script.files[0].path.exists()


def test_quantising_twice_is_refused_before_the_work(tokens: Path, tmp_path: Path) -> None:
    low = tiny_gguf.qwen3moe(tmp_path / "Toy-Q4_K.gguf", types=Kind.Q4_K)
    options = {"ratio": "0.25", "tokens": tokens, "quant": ["IQ4_XS"], "out": tmp_path / "a", "settings": SETTINGS}
    with pytest.raises(InputError, match="experts are Q4_K already"):
        prune(low, **options)
    assert not (tmp_path / "a").exists()
    made = prune(low, **options, allow_requantize=True)
    assert any("second time" in warning for warning in made.quantized[0].warnings)


def test_the_byte_exact_file_stays_where_it_is_wanted(model: Path, tokens: Path, tmp_path: Path) -> None:
    for name, options in {
        "asked": {"quant": ["keep", "Q4_K_M"]},
        "intermediate": {"quant": ["Q4_K_M"], "keep_intermediate": True},
    }.items():
        prune(model, ratio="0.25", tokens=tokens, out=tmp_path / name, settings=SETTINGS, **options)
        assert (tmp_path / name / "Toy-REAP-0.25-F16.gguf").exists()


def test_the_matrix_of_another_model_is_refused_before_the_work(model: Path, tokens: Path, tmp_path: Path) -> None:
    prune(model, ratio="0.25", tokens=tokens, quant=["Q4_K_M"], out=tmp_path / "a", settings=SETTINGS)
    sliced = tmp_path / "a" / "Toy-REAP-0.25-F16.imatrix.gguf"
    with pytest.raises(MismatchError, match="slice its original"):
        prune(model, ratio="0.25", tokens=tokens, quant=["Q4_K_M"], imatrix=sliced, out=tmp_path / "b")
    assert not list((tmp_path / "b").glob("*.gguf"))


def test_an_unknown_type_is_refused_before_the_work(model: Path, tokens: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Q4_K_M"):
        prune(model, ratio="0.25", tokens=tokens, quant=["Q4_K_N"], out=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_quantising_alone_says_which_experts_had_no_data(model: Path, tokens: Path, tmp_path: Path) -> None:
    prune(model, ratio="0.25", tokens=tokens, quant=["Q4_K_M"], out=tmp_path / "a", settings=SETTINGS)
    path = tmp_path / "a" / "Toy-F16.imatrix.gguf"
    whole = imatrix.load(path)
    name = "blk.0.ffn_up_exps.weight"
    entry = whole.entries[name]
    entry.in_sum2[3], entry.counts[3] = 0, 0
    imatrix.save(path, whole)
    made = quantize(model, tmp_path / "q.gguf", "Q4_K_M", imatrix=path)
    assert any(name in note and "mean of the other 15" in note for note in made.warnings)
