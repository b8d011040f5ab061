"""Narrower experts from end to end: the verb, the whole job, and what the files say of themselves."""

import json
import logging
from pathlib import Path

import asked
import numpy as np
import pytest
import tiny_gguf
from gguf import GGMLQuantizationType as Kind

from ggufreap import verbs
from ggufreap.container import open_gguf
from ggufreap.errors import InfeasiblePlan, InputError, MismatchError, OutputError, UnsupportedModel
from ggufreap.narrowing import downs_path, load_narrowing
from ggufreap.options.engine import EngineSettings
from ggufreap.options.output import Output
from ggufreap.options.quantisation import Quantiser
from ggufreap.planning import load_plan

SETTINGS = EngineSettings(n_ctx=64, n_ubatch=64, n_threads=1)
SIZES = {"n_expert": 8, "n_used": 2, "n_embd": 64, "n_ff": 96}

pytestmark = pytest.mark.native


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_gguf.qwen3moe(tmp_path / "Tiny-F16.gguf", types=Kind.F16, **SIZES)
    tiny_gguf.qwen3moe(tmp_path / "Tiny-Q8_0.gguf", types=Kind.Q8_0, **SIZES)
    random = np.random.default_rng(0)
    for name in ("calib", "held"):
        words = random.integers(97, 123, (1500, 5)).astype(np.uint8)
        (tmp_path / f"{name}.txt").write_text(" ".join(bytes(word).decode() for word in words))
    return tmp_path


def test_narrow_writes_what_verify_proves(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, out = folder / "Tiny-F16.gguf", folder / "out.gguf"
    foreseen = verbs.narrow(
        model, folder / "calib.txt", width_ratio="0.4", output=Output(out, dry_run=True), settings=SETTINGS
    )
    assert not out.exists()
    with caplog.at_level(logging.INFO, "ggufreap"):
        made = verbs.narrow(model, folder / "calib.txt", width_ratio="0.4", output=out, settings=SETTINGS)
    assert "64 of 96 neurons stay in every expert, rounded up to a multiple of 32" in caplog.text
    assert (made.narrowing.source_width, made.narrowing.width) == (96, 64)
    assert f"--narrowing {made.narrowing_path}" in caplog.text
    assert out.stat().st_size == made.script.nbytes == foreseen.script.nbytes
    new = {"out.gguf", "out.narrowing.downs.gguf", "out.narrowing.json", "out.plan.json"}
    assert {path.name for path in folder.iterdir()} - {"calib.txt", "held.txt", model.name, "Tiny-Q8_0.gguf"} == new
    proof = verbs.verify(model, out, made.plan_path, narrowing=made.narrowing_path, settings=SETTINGS)
    proof.require()
    file = open_gguf(out)
    assert file.get("qwen3moe.expert_feed_forward_length") == made.narrowing.width
    assert file.get("ggufreap.source.expert_feed_forward_length") == 96
    seen = verbs.inspect(out)
    assert (seen.widths, seen.width_before, seen.n_expert_before) == ((64,), 96, 8)
    assert file.get("ggufreap.narrowing.sha256") == made.narrowing.sha256
    assert file.get("ggufreap.narrowing.method") == "optimal brain surgeon"
    assert file.get("ggufreap.narrowing.compensated") is True
    assert file.get("ggufreap.width_ratio") == made.narrowing.ratio
    assert "narrowed" in file.get("general.tags")
    assert file.get("general.name").endswith(made.narrowing.label)


def test_the_same_command_again_uses_what_is_there(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, out = folder / "Tiny-F16.gguf", folder / "out.gguf"
    verbs.narrow(model, folder / "calib.txt", width_ratio="0.4", output=out, settings=SETTINGS)
    before = out.read_bytes()
    with caplog.at_level(logging.INFO, "ggufreap"):
        verbs.narrow(model, folder / "calib.txt", width_ratio="0.4", output=out, settings=SETTINGS)
    assert "using the narrowing in" in caplog.text
    assert out.read_bytes() == before
    with pytest.raises(OutputError, match="not of this very work"):
        verbs.narrow(model, folder / "held.txt", width_ratio="0.4", output=out, settings=SETTINGS)


@pytest.mark.parametrize("dying", ["ggufreap.narrowing.storage.replacing", "ggufreap.verbs.narrowing.Workplace.remove"])
def test_a_run_that_died_between_its_files_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch, dying: str) -> None:
    model, out = folder / "Tiny-F16.gguf", folder / "out.gguf"

    def narrow() -> None:
        verbs.narrow(model, folder / "calib.txt", width_ratio="0.4", output=out, settings=SETTINGS)

    def die(*_: object, **__: object) -> None:
        raise RuntimeError("dead")

    with monkeypatch.context() as patched:
        patched.setattr(dying, die)
        with pytest.raises(RuntimeError, match="dead"):
            narrow()
    assert downs_path(out.with_name("out.narrowing.json")).exists()
    assert (folder / "out.narrowing").is_dir()
    narrow()
    assert not (folder / "out.narrowing").exists()
    plan = load_plan(folder / "out.plan.json")
    assert load_narrowing(folder / "out.narrowing.json", plan).sha256 == open_gguf(out).get("ggufreap.narrowing.sha256")


def test_a_folder_of_somebody_else_is_not_worked_in(folder: Path) -> None:
    for name in ("0.npz", "0.downs.npy", "0.hidden", "hollow/precious"):
        theirs = folder / "out.narrowing" / name
        theirs.parent.mkdir(exist_ok=True, parents=True)
        theirs.write_text("mine")
    model, text = folder / "Tiny-F16.gguf", folder / "calib.txt"
    for force in (False, True):
        with pytest.raises(OutputError, match=r"out\.narrowing is there already, and no run made it"):
            verbs.narrow(
                *(model, text), width_ratio="0.4", output=Output(folder / "out.gguf", force=force), settings=SETTINGS
            )
    assert {path.read_text() for path in (folder / "out.narrowing").rglob("*") if path.is_file()} == {"mine"}


def test_columns_that_are_gone_are_computed_again(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, out = folder / "Tiny-F16.gguf", folder / "out.gguf"
    made = verbs.narrow(model, folder / "calib.txt", width_ratio="0.4", output=out, settings=SETTINGS)
    before, downs = out.read_bytes(), downs_path(made.narrowing_path)
    downs.unlink()
    verbs.narrow(model, folder / "calib.txt", width_ratio="0.4", output=out, settings=SETTINGS)
    assert "narrowing again" in caplog.text
    assert downs.exists()
    assert out.read_bytes() == before
    downs.write_bytes(downs.read_bytes()[:-1])
    with pytest.raises(OutputError, match="not of this very work"):
        verbs.narrow(model, folder / "calib.txt", width_ratio="0.4", output=out, settings=SETTINGS)


def test_prune_with_a_width(folder: Path) -> None:
    made = asked.prune(
        folder / "Tiny-F16.gguf",
        folder / "calib.txt",
        keep=6,
        method="reap",
        width_ratio="0.4",
        quant=["keep"],
        eval_file=[str(folder / "held.txt")],
        report_out=folder / "report",
        settings=SETTINGS,
    )
    assert made.verification
    made.verification.require()
    assert made.narrowing
    name = f"Tiny-REAP-0.25-{made.narrowing.label}-F16.gguf"
    assert made.script.files[0].path == folder / name
    assert load_narrowing(made.narrowing_path, load_plan(made.plan_path)).sha256 == made.narrowing.sha256
    assert made.summary == ("removes 2 of 8, keeps 6; removes 32 of 96 neurons of every expert, down made up for them")
    told = json.loads((folder / "report" / "report.json").read_text())
    assert (told["model"]["n_ff_before"], told["model"]["n_ff_after"]) == (96, 64)
    card = (folder / "report" / "README.md").read_text()
    assert "25.0 % of the experts and 33.3 % of the neurons" in card
    assert "were changed, not only left out" in card


def test_prune_quantises_what_it_narrowed_with_the_matrix_of_the_same_pass(folder: Path) -> None:
    made = asked.prune(folder / "Tiny-Q8_0.gguf", folder / "calib.txt", shrink="0.4", quant=["Q4_0"], settings=SETTINGS)
    assert made.verification
    made.verification.require()
    assert made.narrowing
    assert not made.script.files[0].path.exists()
    (variant,) = made.quantized
    file = open_gguf(variant.paths[0])
    assert file.nbytes == variant.nbytes
    assert file.get("qwen3moe.expert_feed_forward_length") == made.narrowing.width < 96
    down = file.by_name["blk.0.ffn_down_exps.weight"]
    assert (down.shape[-1], down.type) == (made.narrowing.width, Kind.Q4_0)
    assert any("F16 for Q8_0, until it is quantised" in note for note in made.script.notes)
    foreseen = asked.prune(
        folder / "Tiny-Q8_0.gguf", folder / "calib.txt", shrink="0.4", quant=["Q4_0"], dry_run=True, settings=SETTINGS
    )
    assert [each.nbytes for each in foreseen.quantized] == [variant.nbytes]


def test_the_whole_job_again_finds_its_own_work(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    def run() -> dict[str, bytes]:
        made = asked.prune(
            folder / "Tiny-F16.gguf",
            folder / "calib.txt",
            keep=6,
            method="reap",
            width_ratio="0.4",
            quant=["keep", "Q8_0"],
            settings=SETTINGS,
        )
        assert made.verification
        made.verification.require()
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    before = run()
    assert {"Tiny-REAP-0.25-NARROW-0.34-F16.gguf", "Tiny-REAP-0.25-NARROW-0.34-Q8_0.gguf"} <= before.keys()
    with caplog.at_level(logging.INFO, "ggufreap"):
        assert run() == before
    assert "using the narrowing in" in caplog.text


def test_sequentially(folder: Path) -> None:
    model, out = folder / "Tiny-F16.gguf", folder / "out.gguf"
    plain = verbs.narrow(model, folder / "calib.txt", width_ratio="0.4", output=out, settings=SETTINGS)
    other = verbs.narrow(
        model,
        folder / "calib.txt",
        width_ratio="0.4",
        sequential=True,
        output=folder / "other.gguf",
        settings=SETTINGS,
    )
    assert other.narrowing.sha256 != plain.narrowing.sha256
    verbs.verify(model, folder / "other.gguf", other.plan, narrowing=other.narrowing_path, settings=SETTINGS).require()


def test_without_a_width_nothing_is_narrowed(folder: Path) -> None:
    made = asked.prune(
        folder / "Tiny-F16.gguf", folder / "calib.txt", keep=6, method="reap", quant=["keep"], settings=SETTINGS
    )
    assert made.narrowing is None
    assert made.script.files[0].path.name == "Tiny-REAP-0.25-F16.gguf"
    assert not any(key.startswith("ggufreap.narrowing") for key in open_gguf(made.script.files[0].path).metadata)


@pytest.mark.parametrize(
    ("wish", "error", "words"),
    [
        ({"shrink": "0.3", "width_ratio": "0.1"}, InputError, "divides the cut between experts and neurons itself"),
        ({"ratio": "auto", "width_ratio": "0.4"}, InputError, "name a ratio beside --width-ratio"),
        ({"keep": 6, "width_ratio": "0.01"}, InfeasiblePlan, "less than a block of 32"),
        ({"keep": 6, "sequential": True}, InputError, "--sequential is for how experts are narrowed, and they are not"),
        ({"keep": 6, "narrow_memory": 10**9}, InputError, "--narrow-memory is for .* narrowed, and they are not"),
        ({"keep": 6, "width_ratio": "0.4", "narrow_memory": 9}, InputError, "to be narrowed and 9 B are allowed"),
        ({"keep": 6, "width_ratio": "1.5"}, InputError, r"not in \[0, 1\)"),
        ({"keep": 6, "width_ratio": "0.4", "method": "random"}, InputError, "chooses experts without any"),
    ],
)
def test_wishes_that_cannot_be(folder: Path, wish: dict[str, object], error: type[Exception], words: str) -> None:
    data = None if wish.get("method") == "random" else folder / "calib.txt"
    with pytest.raises(error, match=words):
        asked.prune(folder / "Tiny-F16.gguf", data, eval_file=[str(folder / "held.txt")], settings=SETTINGS, **wish)


def test_down_in_few_bits_is_not_encoded_twice_without_leave(tmp_path: Path, folder: Path) -> None:
    sizes = {**SIZES, "n_embd": 256, "n_ff": 512}
    model = tiny_gguf.qwen3moe(tmp_path / "m-Q4_K.gguf", types=Kind.Q4_K, **sizes)
    with pytest.raises(InputError, match="is Q4_K, which would lose twice"):
        verbs.narrow(model, folder / "calib.txt", width_ratio="0.4", output=tmp_path / "o.gguf", settings=SETTINGS)
    with pytest.raises(InputError, match="is Q4_K, which would lose twice"):
        asked.prune(model, folder / "calib.txt", keep=6, width_ratio="0.4", settings=SETTINGS)


def test_verify_takes_the_narrowing_of_the_same_plan(folder: Path) -> None:
    model, out = folder / "Tiny-F16.gguf", folder / "out.gguf"
    made = verbs.narrow(model, folder / "calib.txt", width_ratio="0.4", output=out, settings=SETTINGS)
    without = verbs.verify(model, out, made.plan_path, settings=SETTINGS)
    assert not without.ok
    assert "give the --narrowing too" in without.checks[-1].detail
    other = asked.plan(model, method="random", keep=6)
    with pytest.raises(MismatchError, match="belongs to the plan"):
        verbs.verify(model, out, other, narrowing=made.narrowing_path, settings=SETTINGS)
    found = verbs.verify(model, out, made.plan, settings=SETTINGS)
    assert (found.ok, found.checks[-1].name) == (False, "metadata"), "without the narrowing it is another model"
    assert downs_path(made.narrowing_path).exists()


def test_an_architecture_that_cannot(folder: Path, tmp_path: Path) -> None:
    import tiny_native

    model = tiny_native.build("llama4", tmp_path / "l.gguf")
    with pytest.raises(UnsupportedModel, match="its shared expert is exactly as wide"):
        verbs.narrow(model, folder / "calib.txt", width_ratio="0.4", output=tmp_path / "o.gguf", settings=SETTINGS)


def test_a_matrix_is_sliced_by_plan_and_narrowing(folder: Path) -> None:
    model, out = folder / "Tiny-F16.gguf", folder / "out.gguf"
    verbs.calibrate(
        model, folder / "S.npz", folder / "calib.txt", imatrix_out=folder / "S.imatrix.gguf", settings=SETTINGS
    )
    plan = asked.plan(model, stats=folder / "S.npz", keep=6)
    made = verbs.narrow(model, folder / "calib.txt", width_ratio="0.4", plan=plan, output=out, settings=SETTINGS)
    assert made.plan_path.exists(), "a plan that was no file becomes one"
    part = folder / "part.imatrix.gguf"
    verbs.imatrix([folder / "S.imatrix.gguf"], out=part, model=model, plan=plan, narrowing=made.narrowing_path)
    assert verbs.imatrix([part], model=out).coverage
    made_of = verbs.quantize(out, folder / "Q.gguf", "Q4_0", Quantiser(imatrix=part))
    assert made_of.types["blk.0.ffn_down_exps.weight"] == "Q4_0"
    with pytest.raises(InputError, match="name it with --plan"):
        verbs.imatrix([folder / "S.imatrix.gguf"], model=model, narrowing=made.narrowing_path)


def test_a_sequence_is_another_narrowing(folder: Path) -> None:
    model, data, out = folder / "Tiny-F16.gguf", folder / "calib.txt", folder / "out.gguf"
    made = verbs.narrow(model, data, width_ratio="0.4", sequential=True, output=out, settings=SETTINGS)
    plain = verbs.narrow(model, data, width_ratio="0.4", output=folder / "plain.gguf", settings=SETTINGS)
    assert made.narrowing.sha256 != plain.narrowing.sha256
    verbs.verify(model, out, made.plan_path, narrowing=made.narrowing_path, settings=SETTINGS).require()
    with pytest.raises(InputError, match="--sequential is for how experts are narrowed"):
        asked.prune(model, data, keep=6, sequential=True, settings=SETTINGS)
