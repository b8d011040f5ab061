"""The command line as its users meet it: the verbs from end to end, bad input, and what is left behind."""

import json
import logging
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_gguf
import tiny_layouts
import tiny_native
from gguf import GGMLQuantizationType as Kind

from ggufreap import demonstration, naming, verbs
from ggufreap.cli import VERBS, main
from ggufreap.container import open_gguf
from ggufreap.observation import load
from ggufreap.options.engine import EngineSettings
from ggufreap.saliency import METHOD_NAMES, METHODS

pytestmark = pytest.mark.native

SMALL = {"n_embd": 64, "n_ff": 32, "types": Kind.Q8_0}
SETTINGS = EngineSettings(n_ctx=64, n_ubatch=64, n_threads=1)
FLAGS = ("-c", 64, "-ub", 64, "-t", 1)  # the same on the command line; one thread, since the machine may be shared
GGUFREAP = str(Path(sys.executable).with_name("ggufreap"))


@dataclass(frozen=True)
class Ran:
    """What one call of the command line gave."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Ran]


@pytest.fixture(autouse=True, scope="module")
def process_as_it_was() -> Iterator[None]:
    logger, on_kill = logging.getLogger("ggufreap"), signal.getsignal(signal.SIGTERM)
    before = logger.handlers[:], logger.level
    yield
    logger.handlers[:], logger.level = before
    signal.signal(signal.SIGTERM, on_kill)


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """The command line, in this process; even what llama.cpp prints is caught."""

    def run(*arguments: object) -> Ran:
        capfd.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Ran(code, *capfd.readouterr())

    return run


@dataclass(frozen=True)
class Made:
    """A model, a text, and what the verbs made of them."""

    model: Path
    text: Path
    stats: Path
    plan: Path
    pruned: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("made")
    names = ("Tiny-16x0.4M-Q8_0.gguf", "text.txt", "S.npz", "P.json", "pruned.gguf")
    made = Made(*(folder / name for name in names))
    tiny_gguf.qwen3moe(made.model, **SMALL)
    made.text.write_text("the quick brown fox jumps over the lazy dog, and so it goes on and on.\n" * 40)
    verbs.calibrate(made.model, made.stats, data=str(made.text), settings=SETTINGS)
    assert main(["plan", str(made.model), "--stats", str(made.stats), "--ratio", "0.25", "-o", str(made.plan)]) == 0
    verbs.apply(made.model, made.plan, made.pruned)
    before = contents(folder)
    yield made
    assert contents(folder) == before, "inputs are never changed, and nothing is left beside them"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# The verbs, one after the other.


def test_the_verbs_in_a_row_and_prune_write_the_same_file(made: Made, tmp_path: Path, run: Run) -> None:
    stats, plan, out = tmp_path / "S.npz", tmp_path / "P.json", tmp_path / "out.gguf"
    rows = (
        ("calibrate", made.model, "-f", made.text, "-o", stats, *FLAGS),
        ("plan", made.model, "--stats", stats, "--ratio", "0.25", "-o", plan),
        ("apply", made.model, "--plan", plan, "-o", out),
        ("verify", made.model, out, "--plan", plan),
    )
    for arguments in rows:
        ran = run(*arguments)
        assert ran.code == 0, ran.err
        assert ran.out
        assert not re.search(r"\x1b|\r|%\|", ran.out + ran.err), "no colours and no bars where nobody looks"
    ran = run("prune", made.model, "--ratio", "0.25", "-f", made.text, "-o", tmp_path / "whole.gguf", *FLAGS)
    assert ran.code == 0
    assert (tmp_path / "whole.gguf").read_bytes() == out.read_bytes() == made.pruned.read_bytes()
    assert (tmp_path / "whole.plan.json").read_bytes() == plan.read_bytes()
    assert ran.out.count("holds") == 5
    assert "removes 4 of 16, keeps 12" in ran.out
    assert str(tmp_path / "whole.gguf") in ran.out


def test_text_comes_by_standard_input_too(
    made: Made, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with made.text.open() as text:
        monkeypatch.setattr(sys, "stdin", text)
        assert run("calibrate", made.model, "-f", "-", "-o", tmp_path / "S.npz", *FLAGS).code == 0
    assert same_statistics(tmp_path / "S.npz", made.stats)


def same_statistics(one: Path, other: Path) -> bool:
    """Whatever the data were called."""
    (a, a_source), (b, b_source) = load(one), load(other)
    assert set(a_source.differences(b_source)) <= {"corpus"}
    assert [source.sha256 for source in a_source.sources] == [source.sha256 for source in b_source.sources]
    b = replace(b, halves=dict(zip(a.domains, b.halves.values(), strict=True)))
    assert (a.n_tokens, a.n_chunks, a.blocks, a.domains) == (b.n_tokens, b.n_chunks, b.blocks, b.domains)
    pairs = [(a.halves[domain][half], b.halves[domain][half]) for domain in a.halves for half in (0, 1)]
    return all(np.array_equal(x.values[name], y.values[name]) for x, y in pairs for name in x.values)


@pytest.mark.parametrize("dtype", ["<i8", ">i4", "<u2"])
def test_token_ids_in_one_row_or_cut_into_chunks_are_the_same(made: Made, tmp_path: Path, run: Run, dtype: str) -> None:
    ids = np.random.default_rng(0).integers(0, 320, 5 * 64 + 63)
    np.save(tmp_path / "row.npy", ids.astype(dtype))
    np.save(tmp_path / "chunks.npy", ids[: 5 * 64].reshape(5, 64).astype(dtype))
    for name in ("row", "chunks"):
        ran = run("calibrate", made.model, "--tokens", tmp_path / f"{name}.npy", "-o", tmp_path / f"{name}.npz", *FLAGS)
        assert ran.code == 0, ran.err
        assert "tokens   320 in 5 chunks" in ran.out
    assert same_statistics(tmp_path / "row.npz", tmp_path / "chunks.npz")


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_every_method_plans(made: Made, tmp_path: Path, run: Run, method: str) -> None:
    stats = ("--stats", made.stats) if method in METHODS else ()
    by_ratio, by_count = tmp_path / "ratio.json", tmp_path / "count.json"
    ran = run("plan", made.model, *stats, "--method", method, "--ratio", "0.25", "-o", by_ratio, "--json")
    assert ran.code == 0, ran.err
    assert {key: ran.json[key] for key in ran.json if key != "coverage"} == json.loads(by_ratio.read_text())
    assert (ran.json["coverage"] is not None) == (method in METHODS)
    assert ran.json["method"] == method
    assert {len(layer["keep"]) for layer in ran.json["layers"].values()} == {12}
    assert run("plan", made.model, *stats, "--method", method, "--keep", 12, "-o", by_count).code == 0
    assert by_count.read_text() == by_ratio.read_text()


def test_keeping_all_experts_keeps_every_byte_of_them(made: Made, tmp_path: Path, run: Run) -> None:
    ran = run("prune", made.model, "--ratio", "0", "--method", "random", "-o", tmp_path / "all.gguf", "-t", 1)
    assert ran.code == 0, ran.err
    assert "removes 0 of 16, keeps 16" in ran.out
    before, after = open_gguf(made.model), open_gguf(tmp_path / "all.gguf")
    for record in before.tensors:
        assert np.array_equal(after.map(after.by_name[record.name]), before.map(record))


def test_a_method_that_needs_statistics_says_so(made: Made, tmp_path: Path, run: Run) -> None:
    refused(run("plan", made.model, "--ratio", "0.25", "-o", tmp_path / "P.json"), "needs statistics; make them with")


def test_seeds_decide_at_random(made: Made, tmp_path: Path, run: Run) -> None:
    plans = []
    for number, seed in enumerate((1, 2, 1)):
        out = tmp_path / f"P-{number}.json"
        run("plan", made.model, "--method", "random", "--seed", seed, "--keep", 8, "-o", out)
        plans.append(out.read_text())
    assert plans[0] == plans[2] != plans[1]


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """27 MB in three shards."""
    return tiny_gguf.qwen3moe(tmp_path_factory.mktemp("big") / "Big-F32.gguf", per_shard=9)


@pytest.mark.parametrize(("flags", "n_files"), [((), 1), (("--split-max-size", "3M"), 6), (("--keep-split",), 3)])
def test_a_dry_run_tells_every_byte_and_writes_none(
    big: Path, tmp_path: Path, run: Run, flags: Sequence[str], n_files: int
) -> None:
    plan, out = tmp_path / "P.json", tmp_path / "out.gguf"
    run("plan", big, "--method", "random", "--ratio", "0.5", "-o", plan)
    ran = run("apply", big, "--plan", plan, "-o", out, *flags, "--dry-run", "--json")
    assert ran.code == 0, ran.err
    assert set(tmp_path.iterdir()) == {plan}
    told = ran.json
    assert len(told["files"]) == n_files
    shown = run("apply", big, "--plan", plan, "-o", out, *flags, "--dry-run")
    done = run("apply", big, "--plan", plan, "-o", out, *flags)
    assert done.code == 0
    assert {Path(file["path"]) for file in told["files"]} | {plan} == set(tmp_path.iterdir())
    for file in told["files"]:
        assert Path(file["path"]).stat().st_size == file["nbytes"]
        assert f"{file['nbytes']:,}" in shown.out
        assert f"{file['path']}  {file['nbytes']:,} bytes" in done.out
    written = open_gguf(told["files"][-1]["path"])
    found = [(record.name, record.offset, record.nbytes, list(record.shape)) for record in written.tensors]
    tensors = [tensor for file in told["files"] for tensor in file["tensors"]]
    assert found == [(tensor["name"], tensor["offset"], tensor["nbytes"], tensor["shape"]) for tensor in tensors]
    assert all(tensor["name"] in shown.out and tensor["name"] not in done.out for tensor in tensors)
    assert run("verify", big, told["files"][-1]["path"], "--plan", plan).code == 0


def test_prune_has_a_dry_run_as_well(made: Made, tmp_path: Path, run: Run) -> None:
    asked = ("prune", made.model, "--ratio", "0.25", "-o", tmp_path / "no" / "out.gguf", "--dry-run", "--json")
    ran = run(*asked, "-f", made.text)
    assert ran.code == 0, ran.err
    assert ran.json["nbytes"] == made.pruned.stat().st_size
    assert made.pruned.stat().st_size - 4096 < run(*asked).json["nbytes"] <= made.pruned.stat().st_size
    assert list(tmp_path.iterdir()) == []


def test_any_shard_names_the_model(big: Path, run: Run) -> None:
    shards = sorted(big.parent.glob("*.gguf"))
    assert len(shards) == 3
    answers = [run("inspect", shard, "--json").json for shard in shards]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0]["n_shards"] == 3
    assert "in 3 shards" in run("inspect", shards[1]).out


def test_prune_writes_beside_the_model_or_into_a_folder_and_calibrates_once(
    made: Made, tmp_path: Path, run: Run
) -> None:
    model = tmp_path / made.model.name
    model.write_bytes(made.model.read_bytes())
    (tmp_path / "folder").mkdir()
    name = "Tiny-16x0.4M-RANK-AVERAGE-0.25-Q8_0"
    beside = ("prune", model, "--ratio", "0.25", "-f", made.text, "--quant", "keep", *FLAGS, "--no-verify")
    ran = run(*beside)
    assert ran.code == 0, ran.err
    assert "not verified" in ran.out
    expected = {model.name, f"{name}.gguf", f"{name}.plan.json", f"{name}.Modelfile", "Tiny-16x0.4M-Q8_0.stats.npz"}
    assert set(contents(tmp_path)) == expected
    first = contents(tmp_path)
    again = run(*beside)
    assert again.code == 0
    assert "using the statistics in" in again.err
    assert contents(tmp_path) == first
    ran = run(*beside, "-o", tmp_path / "folder")
    assert ran.code == 0
    assert (tmp_path / "folder" / f"{name}.gguf").read_bytes() == first[f"{name}.gguf"]
    assert run(*beside, "-o", tmp_path / "new folder").code == 0
    assert (tmp_path / "new folder" / f"{name}.gguf").is_file()


@pytest.mark.parametrize(
    ("model", "pruned"),
    [
        ("Qwen3-30B-A3B-Q4_K_M.gguf", "Qwen3-30B-A3B-REAP-0.25-Q4_K_M.gguf"),
        ("Qwen3-30B-A3B-UD-Q2_K_XL.gguf", "Qwen3-30B-A3B-REAP-0.25-UD-Q2_K_XL.gguf"),
        ("model.BF16.gguf", "model-REAP-0.25-BF16.gguf"),
        ("gpt-oss-20b-mxfp4.gguf", "gpt-oss-20b-REAP-0.25-mxfp4.gguf"),
        ("big-IQ4_XS-00002-of-00003.gguf", "big-REAP-0.25-IQ4_XS.gguf"),
        ("Q8_0.gguf", "Q8_0-REAP-0.25.gguf"),
        ("model.gguf", "model-REAP-0.25.gguf"),
        ("blob", "blob-REAP-0.25.gguf"),
    ],
)
def test_the_label_goes_before_the_encoding(model: str, pruned: str) -> None:
    assert naming.pruned_name(Path(model), "REAP-0.25") == pruned


# For machines.


def test_inspect_in_json(made: Made, run: Run) -> None:
    found = run("inspect", made.model, "--json").json
    assert (found["architecture"], found["n_expert"], found["n_used"], found["n_moe_block"]) == ("qwen3moe", 16, 4, 2)
    assert found["nbytes"] == made.model.stat().st_size
    assert (found["widths"], found["width_before"], found["n_expert_before"]) == ([32], 0, 0)
    assert run("inspect", made.pruned, "--json").json["n_expert_before"] == 16
    assert "experts  12, 4 used per token, 0 shared; 75.0% of the 16 before" in run("inspect", made.pruned).out
    quarter = next(row for row in found["outlook"] if row["ratio"] == "0.30")
    assert quarter["n_keep"] == 12
    assert quarter["nbytes"] == pytest.approx(made.pruned.stat().st_size, rel=0.01)


def test_calibrate_in_json(made: Made, tmp_path: Path, run: Run) -> None:
    found = run("calibrate", made.model, "-f", made.text, "-o", tmp_path / "S.npz", *FLAGS, "--json").json
    assert list(found["blocks"]) == ["0", "1"]
    for block in found["blocks"].values():
        assert sum(block["count"]) == found["n_tokens"] * 4
        assert {name: len(values) for name, values in block.items()} == dict.fromkeys(block, 16)


def test_apply_verify_and_prune_in_json(made: Made, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out.gguf"
    applied = run("apply", made.model, "--plan", made.plan, "-o", out, "--json").json
    assert [file["path"] for file in applied["files"]] == [str(out)]
    assert applied["nbytes"] == out.stat().st_size
    proof = run("verify", made.model, out, "--plan", made.plan, "--json").json
    assert proof["ok"] is True
    assert [check["name"] for check in proof["checks"]] == ["header", "metadata", "bytes", "blocks", "logits"]
    flags = (*FLAGS, "--keep-intermediate", "--json")
    ran = run("prune", made.model, "--ratio", "0.25", "-f", made.text, "-o", tmp_path, *flags)
    assert ran.json["verification"] == proof
    assert [Path(each["paths"][0]).stat().st_size for each in ran.json["quantized"]] == [
        each["nbytes"] for each in ran.json["quantized"]
    ]
    assert ran.json["summary"] == "removes 4 of 16, keeps 12"
    for name in ("plan", "statistics"):
        assert Path(ran.json[name]).parent == tmp_path
        assert Path(ran.json[name]).is_file()
    assert Path(ran.json["files"][0]["path"]).stat().st_size == ran.json["files"][0]["nbytes"]


def test_demo_in_json(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demonstration, "CALIBRATION_BYTES", 20_000)
    monkeypatch.setattr(demonstration, "HELD_OUT_BYTES", 4_000)
    ran = run("demo", "-o", tmp_path / "a" / "b", "-t", 1, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["pruned"]["verification"]["ok"] is True
    assert 1 < ran.json["before"]["value"] < ran.json["after"]["value"] < 320
    assert ran.json["quantized"]["value"] == pytest.approx(ran.json["after"]["value"], rel=0.05)
    assert ran.json["sample"]


# What it says.


def test_llama_cpp_speaks_only_when_asked(made: Made, tmp_path: Path, run: Run) -> None:
    arguments = ("calibrate", made.model, "-f", made.text, *FLAGS, "-o")
    quiet, loud = run(*arguments, tmp_path / "quiet.npz"), run(*arguments, tmp_path / "loud.npz", "-v")
    assert "llama_model_loader" in loud.err
    assert re.fullmatch("[^\n]* texts at once, [^\n]*\ncalibrating with [^\n]*\n", quiet.err)
    assert quiet.out == loud.out


def test_the_text_for_trying_out_warns_loudly(
    made: Made, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verbs.data, "TRYING_OUT_BYTES", 4_000)
    asked = ("prune", made.model, "--ratio", "0.25", "-o", tmp_path, *FLAGS, "--no-verify")
    ran = run(*asked, "--offline-default")
    assert ran.code == 0, ran.err
    assert re.search("^WARNING: .*ONLY FOR TRYING OUT", ran.err, re.MULTILINE)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    refused(run(*asked), "no text was given, and the built-in mix .*-f FILE; .*--offline-default")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_that_fits_a_terminal(verb: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ran = run(verb, "--help")
    assert ran.code == 0
    assert max(map(len, ran.out.splitlines())) <= 80


USAGE = {
    "unknown verb": (("pruen",), "'pruen' is no verb, nor a model that is here; did you mean prune?"),
    "no verb at all": (("x",), "ggufreap --help lists the verbs"),
    "a model without a name": (("prune", "-hf"), "-hf names no model; write -hf user/repo"),
    "no target": (("prune", "m.gguf"), "one of the arguments --ratio --keep --shrink --fit is required"),
    "two targets": (("prune", "m.gguf", "--ratio", "0.2", "--keep", "3"), "not allowed with"),
    "two texts": (("calibrate", "m.gguf", "-o", "S", "-f", "a", "--tokens", "b"), "not allowed with"),
    "no context": (("calibrate", "m.gguf", "-o", "S", "-c", "0"), "'0' is not a number from 1"),
    "context as a word": (("calibrate", "m.gguf", "-o", "S", "-c", "big"), "'big' is not a number from 1"),
    "context beyond a C int": (("calibrate", "m.gguf", "-o", "S", "-c", "5000000000"), "to 2147483647"),
    "negative seed": (("plan", "m.gguf", "-o", "P", "--keep", "3", "--seed", "-1"), "'-1' is not a number from 0"),
    "unknown mtp": (
        ("plan", "m.gguf", "-o", "P", "--keep", "3", "--mtp", "x"),
        "'x' is not known; choose one of mirror, drop",
    ),
}


@pytest.mark.parametrize("case", USAGE)
def test_wrong_usage_is_2(case: str, run: Run) -> None:
    arguments, message = USAGE[case]
    ran = run(*arguments)
    assert ran.code == 2
    assert ran.out == ""
    assert message in ran.err.splitlines()[-1]


# Bad input: one line that says what was found and what to do, exit 1, nothing written.


def refused(ran: Ran, message: str) -> None:
    assert ran.code == 1, ran
    assert ran.out == ""
    *notes, line = ran.err.splitlines()
    assert line.startswith("ggufreap: ")
    assert not any(note.startswith(("ggufreap: ", "Traceback", " ")) for note in notes), ran.err
    assert re.search(message, line), line


def with_metadata(**changes: Any) -> tiny_layouts.Model:
    def change(model: tiny_gguf.Model) -> None:
        model.metadata |= {f"qwen3moe.{key}": value for key, value in changes.items()}

    return change


def unknown_tensor(model: tiny_gguf.Model) -> None:
    model.add("blk.1.ffn_moon_exps.weight", model.n_expert, 4, 4)


def cut_short(model: Path) -> None:
    os.truncate(model, model.stat().st_size - 1000)


def endless(model: Path) -> None:
    data = bytearray(model.read_bytes())
    data[8:16] = (2**60).to_bytes(8, "little")
    model.write_bytes(data)


def no_gguf(model: Path) -> None:
    model.write_text("Once upon a time there was a model card.\n")


BAD_MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "not a GGUF": (no_gguf, "starts with b'Once'.*a GGUF file starts with b'GGUF'"),
    "truncated": (cut_short, "it is truncated, download or copy it again"),
    "2^60 tensors": (endless, f"claims {2**60} tensors"),
    "missing": (Path.unlink, "cannot read .*No such file"),
}
BAD_LAYOUTS: dict[str, tuple[dict[str, Any], str]] = {
    "dense": ({"n_expert": 0}, "a dense qwen3 model: no routed experts to prune"),
    "unknown expert tensor": (
        {"changes": [unknown_tensor]},
        "blk.1.ffn_moon_exps.weight with shape .* is in no table and may belong to the 16 experts",
    ),
    "unknown expert key": ({"changes": [with_metadata(expert_moons=3)]}, "qwen3moe.expert_moons is in no table"),
    "experts apart": ({"changes": [tiny_layouts.separate_experts]}, "Convert the original model again"),
    "2^32 blocks": ({"changes": [with_metadata(block_count=2**32 - 1)]}, "block_count is 4294967295, .* allows 512"),
}
BAD_ARCHITECTURES: dict[str, tuple[str, dict[str, Any], str]] = {
    "hash routing": ("deepseek4-hash", {}, "hash_layer_count = 1"),
    "grovemoe": ("grovemoe", {}, "grovemoe: its chunk experts"),
    "llama4 with 128": (
        "llama4",
        {"n_expert": 128, "n_used": 1},
        "llama4 with 128 experts: llama.cpp leaves out the norm",
    ),
}


def refused_by_every_verb(run: Run, model: Path, plan: Path, message: str) -> None:
    folder = model.parent
    before = contents(folder)
    for arguments in (
        ("inspect", model),
        ("inspect", model, "--json"),
        ("calibrate", model, "-f", plan, "-o", folder / "S.npz"),
        ("plan", model, "--method", "random", "--ratio", "0.25", "-o", folder / "P.json"),
        ("apply", model, "--plan", plan, "-o", folder / "out.gguf"),
        ("verify", model, model, "--plan", plan),
        ("prune", model, "--ratio", "0.25", "-f", plan, "-o", folder),
    ):
        refused(run(*arguments), message)
    assert contents(folder) == before


@pytest.mark.parametrize("case", BAD_MODELS)
def test_a_damaged_model_is_refused_by_every_verb(made: Made, tmp_path: Path, run: Run, case: str) -> None:
    damage, message = BAD_MODELS[case]
    model = tmp_path / "model.gguf"
    model.write_bytes(made.model.read_bytes())
    damage(model)
    refused_by_every_verb(run, model, made.plan, message)


@pytest.mark.parametrize("case", BAD_LAYOUTS)
def test_a_model_without_a_table_row_is_refused_by_every_verb(made: Made, tmp_path: Path, run: Run, case: str) -> None:
    options, message = BAD_LAYOUTS[case]
    refused_by_every_verb(run, tiny_gguf.qwen3moe(tmp_path / "model.gguf", **SMALL, **options), made.plan, message)


@pytest.mark.parametrize("case", BAD_ARCHITECTURES)
def test_an_architecture_that_cannot_be_pruned_is_refused_by_every_verb(
    made: Made, tmp_path: Path, run: Run, case: str
) -> None:
    name, options, message = BAD_ARCHITECTURES[case]
    model = tiny_native.build_in_subprocess(name, tmp_path / "model.gguf", **options)
    refused_by_every_verb(run, model, made.plan, message)


def test_what_belongs_to_another_model_is_refused(made: Made, tmp_path: Path, run: Run) -> None:
    other = tiny_gguf.qwen3moe(tmp_path / "other.gguf", seed=1, **SMALL)
    out = tmp_path / "out"
    refused(
        run("apply", other, "--plan", made.plan, "-o", out), "the plan is for Tiny Qwen3 MoE .*make a plan for this"
    )
    refused(run("verify", other, made.pruned, "--plan", made.plan), "the plan is for .*make a plan for this file")
    ran = run("plan", other, "--stats", made.stats, "--ratio", "0.25", "-o", out)
    refused(ran, "was calibrated on model .*; calibrate this file")
    assert list(tmp_path.iterdir()) == [other]


TARGETS = {
    "fewer than used": (("--ratio", "0.82"), "keeping 3 of 16 experts, .* picks 4 per token; keep at least 4"),
    "fewer than two": (("--ratio", "0.99"), "1 of 16 experts cannot be kept; keep 2 to 16"),
    "more than there are": (("--keep", 17), "17 of 16 experts cannot be kept; keep 2 to 16"),
    "negative count": (("--keep=-3",), "-3 of 16 experts cannot be kept"),
    "less than one": (("--ratio", "0.05"), r"less than one: nothing would be removed; use 0\.0625 or more"),
    "per cent": (("--ratio", "25%"), "'25%' is not a number; it is the fraction of experts to remove, such as 0.2"),
    "above one": (("--ratio", "25"), r"ratio 25 is not in \[0, 1\)"),
    "below zero": (("--ratio=-0.25",), r"ratio -0.25 is not in \[0, 1\)"),
    "nan": (("--ratio", "nan"), r"not in \[0, 1\)"),
    "unknown method": (("--keep", 8, "--method", "magic"), "method 'magic' is not known; choose one of reap,"),
}


@pytest.mark.parametrize("case", TARGETS)
def test_a_target_out_of_reach_is_refused_before_any_work(made: Made, tmp_path: Path, run: Run, case: str) -> None:
    target, message = TARGETS[case]
    refused(run("plan", made.model, "--stats", made.stats, *target, "-o", tmp_path / "P.json"), message)
    refused(run("prune", made.model, "-f", made.text, *target, "-o", tmp_path / "out.gguf"), message)
    refused(run("prune", made.model, "-f", made.text, *target, "-o", tmp_path / "out.gguf", "--dry-run"), message)
    assert list(tmp_path.iterdir()) == []


TEXTS = {
    "missing": (None, "there is no file .*; correct the path"),
    "empty": (b"", "has 0 bytes, too few for a chunk of -c 64"),
    "blank": (b" \n\t \n" * 99, "has no text: calibration needs some"),
    "short": (b"a few words", "has 11 bytes, too few for a chunk of -c 64; give more or a smaller -c"),
    "UTF-16": ("long enough ".encode("utf-16") * 99, "not UTF-8 text: byte 0xff at offset 0; .*iconv"),
    "Latin-1": (b"caf\xe9 " * 99, "not UTF-8 text: byte 0xe9 at offset 3; .*iconv"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_text_that_cannot_be_used_is_refused(made: Made, tmp_path: Path, run: Run, case: str) -> None:
    data, message = TEXTS[case]
    text, out = tmp_path / "text.txt", tmp_path / "S.npz"
    if data is not None:
        text.write_bytes(data)
    refused(run("calibrate", made.model, "-f", text, "-o", out, *FLAGS), message)
    refused(run("prune", made.model, "-f", text, "-o", tmp_path, "--ratio", "0.25", *FLAGS), message)
    assert set(tmp_path.iterdir()) <= {text}


def test_a_folder_is_no_text(made: Made, tmp_path: Path, run: Run) -> None:
    for flag, message in (("-f", r"holds no file that is read \(\.txt"), ("--tokens", "Is a directory")):
        refused(run("calibrate", made.model, flag, tmp_path, "-o", tmp_path / "S.npz"), message)


def npy(array: object) -> Callable[[Path], object]:
    return lambda path: np.save(path, array)


def several_arrays(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=1, b=2)


def claims_too_much(path: Path) -> None:
    np.save(path, np.zeros(100, np.int32))
    path.write_bytes(path.read_bytes().replace(b"(100,), ", b"(9" + 15 * b"0" + b",), "))


TOKENS: dict[str, tuple[Callable[[Path], object], str]] = {
    "zero": (npy(np.zeros(0, np.int32)), "zero tokens"),
    "zero chunks": (npy(np.zeros((0, 64), np.int32)), "zero tokens"),
    "fewer than a chunk": (npy(np.zeros(63, np.int32)), "63 tokens, one chunk of -c 64 needs 64"),
    "chunks too long": (npy(np.zeros((2, 65), np.int32)), "chunks of 65 tokens, -c is 64; raise -c"),
    "negative": (npy(np.full(64, -1)), "token -1, the model's vocabulary is 0 to 319; tokenise with"),
    "too high": (npy(np.full(64, 320)), "token 320, the model's vocabulary is 0 to 319"),
    "beyond 64 bits": (npy(np.full(64, 2**64 - 1, np.uint64)), f"token {2**64 - 1}, the model's"),
    "floats": (npy(np.zeros(64)), r"float64 of shape \(64,\); integers of shape"),
    "booleans": (npy(np.zeros(64, bool)), "bool of shape"),
    "one number": (npy(np.int64(3)), r"of shape \(\); integers"),
    "three axes": (npy(np.zeros((2, 2, 64), np.int32)), r"of shape \(2, 2, 64\); integers"),
    "objects": (
        npy(np.array([{}], object)),
        "not an .npy file of numbers: it holds object.*; write one with numpy.save",
    ),
    "empty file": (lambda path: path.write_bytes(b""), "not an .npy file of numbers"),
    "text": (lambda path: path.write_text("1 2 3"), "not an .npy file of numbers"),
    "broken zip": (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(50)), "not an .npy file of numbers"),
    "several arrays": (several_arrays, "not an .npy file of numbers"),
    "cut short": (lambda path: path.write_bytes(b"\x93NUMPY\x01"), "not an .npy file of numbers"),
    "more than memory": (claims_too_much, "not an .npy file of numbers"),
    "missing": (lambda path: None, "cannot read .*No such file"),
}


@pytest.mark.parametrize("case", TOKENS)
def test_token_ids_that_cannot_be_used_are_refused(made: Made, tmp_path: Path, run: Run, case: str) -> None:
    write, message = TOKENS[case]
    write(tmp_path / "ids.npy")
    refused(run("calibrate", made.model, "--tokens", tmp_path / "ids.npy", "-o", tmp_path / "S.npz", *FLAGS), message)
    assert not (tmp_path / "S.npz").exists()


def test_text_needs_a_tokenizer(made: Made, tmp_path: Path, run: Run) -> None:
    model = tiny_gguf.qwen3moe(tmp_path / "m.gguf", tokenizer=False, **SMALL)
    refused(
        run("calibrate", model, "-f", made.text, "-o", tmp_path / "S.npz"), "no tokenizer; give token ids with --tokens"
    )
    np.save(tmp_path / "ids.npy", np.arange(128) % 320)
    assert run("prune", model, "--tokens", tmp_path / "ids.npy", "--keep", 8, "-o", tmp_path, *FLAGS).code == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_activations_that_are_no_numbers_name_block_and_expert(
    made: Made, tmp_path: Path, run: Run, value: float
) -> None:
    def spoil(model: tiny_gguf.Model) -> None:
        weights, kind = model.tensors["blk.1.ffn_up_exps.weight"]
        weights[5, 3, 7] = value
        # Only expert 5 may be spoilt, and the router has to choose it now and then.
        model.tensors["blk.1.ffn_up_exps.weight"] = weights, kind

    model = tiny_gguf.qwen3moe(tmp_path / "m.gguf", **(SMALL | {"types": Kind.F32}), changes=[spoil])
    ran = run("calibrate", model, "-f", made.text, "-o", tmp_path / "S.npz", *FLAGS)
    refused(ran, "block 1, expert 5: an activation is NaN or infinite; the model file is damaged")
    ran = run("plan", model, "--method", "weight_norm", "--keep", 8, "-o", tmp_path / "P.json")
    refused(ran, "blk.1.ffn_up_exps.weight, expert 5: a weight is NaN or infinite; the file is damaged")
    assert list(tmp_path.iterdir()) == [model]


@pytest.mark.parametrize("flag", ["--stats", "--plan"])
def test_another_file_is_neither_statistics_nor_a_plan(made: Made, tmp_path: Path, run: Run, flag: str) -> None:
    for wrong in (made.model, made.text, made.plan if flag == "--stats" else made.stats):
        verb = ("plan", made.model, "--keep", 8) if flag == "--stats" else ("apply", made.model)
        refused(
            run(*verb, flag, wrong, "-o", tmp_path / "out"),
            "(is not|is a GGUF file, not|is JSON, not|is a zip archive, .*, not) a (plan|statistics file) of ggufreap",
        )
    refused(run(*verb, flag, tmp_path / "none", "-o", tmp_path / "out"), "cannot read .*none: No such file")
    assert list(tmp_path.iterdir()) == []


NO_PLAN = "is not a plan of ggufreap: .*; make one with plan"
PLAN_EDITS: dict[str, tuple[str, Any, str]] = {
    "a count in words": ("n_keep", "twelve", NO_PLAN),
    "no count": ("n_keep", None, NO_PLAN),
    "another count": ("n_keep", 11, "contradicts itself: block 0 keeps 12 experts, n_keep is 11; make one with plan"),
    "unknown mtp": ("mtp", "sideways", NO_PLAN),
    "no layers": ("layers", {}, NO_PLAN),
    "another layer": ("layers", {"7": {"keep": list(range(12))}}, "disagree on MoE block 0"),
    "experts as text": ("layers", {"0": {"keep": "abc"}, "1": {"keep": "abc"}}, NO_PLAN),
    "a model in one word": ("model", "qwen", NO_PLAN),
    "a model by number": ("model", {"fingerprint": 3, "architecture": 4, "name": 5}, NO_PLAN),
    "a schema of tomorrow": ("schema", "ggufreap.plan/9", "this version reads 'ggufreap.plan/1'; make one with plan"),
}


@pytest.mark.parametrize("case", PLAN_EDITS)
def test_a_plan_edited_into_nonsense_is_refused(made: Made, tmp_path: Path, run: Run, case: str) -> None:
    key, value, message = PLAN_EDITS[case]
    plan = tmp_path / "P.json"
    plan.write_text(json.dumps(json.loads(made.plan.read_text()) | {key: value}))
    refused(run("apply", made.model, "--plan", plan, "-o", tmp_path / "out.gguf"), message)
    assert list(tmp_path.iterdir()) == [plan]


def test_a_plan_edited_by_a_person_is_followed(made: Made, tmp_path: Path, run: Run) -> None:
    plan, out = tmp_path / "P.json", tmp_path / "out.gguf"
    chosen = json.loads(made.plan.read_text())
    chosen["layers"]["1"]["keep"] = [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
    plan.write_text(json.dumps(chosen))
    assert run("apply", made.model, "--plan", plan, "-o", out).code == 0
    assert run("verify", made.model, out, "--plan", plan).code == 0
    ran = run("verify", made.model, out, "--plan", made.plan)
    assert ran.code == 3
    assert "FAILS  bytes: blk.1." in ran.out


# Where it goes.


@pytest.mark.parametrize("link", ["itself", "symlink", "hard link"])
def test_no_verb_overwrites_an_input(made: Made, tmp_path: Path, run: Run, link: str) -> None:
    given = {}
    for name in ("model", "text", "stats", "plan"):
        original = getattr(made, name)
        given[name] = original if link == "itself" else tmp_path / f"{name}.gguf"
        if link == "symlink":
            given[name].symlink_to(original)
        elif link == "hard link":
            given[name].hardlink_to(original)
    before = contents(made.model.parent) | contents(tmp_path)
    attempts = {
        "calibrate": (("-f", made.text), ("model", "text")),
        "plan": (("--stats", made.stats, "--keep", 12), ("model", "stats")),
        "apply": (("--plan", made.plan), ("model", "plan")),
        "prune": (("--keep", 12, "-f", made.text), ("model",) if link == "itself" else ("model", "text")),
    }
    for verb, (flags, inputs) in attempts.items():
        for name in inputs:
            ran = run(verb, made.model, *flags, "-o", given[name])
            refused(ran, "is the input itself; inputs are never changed, choose another -o")
    assert contents(made.model.parent) | contents(tmp_path) == before


def test_the_shards_of_the_input_are_safe_too(big: Path, tmp_path: Path, run: Run) -> None:
    plan, out = tmp_path / "P.json", big.with_name("Big-F32.gguf")
    run("plan", big, "--method", "random", "--keep", 8, "-o", plan)
    before = contents(big.parent)
    refused(run("apply", big, "--plan", plan, "-o", out, "--keep-split"), "is the input itself")
    assert contents(big.parent) == before


@pytest.mark.parametrize("where", ["missing/out.gguf", "."])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    made: Made, tmp_path: Path, run: Run, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (
        ("calibrate", made.model, "-f", made.text),
        ("plan", made.model, "--stats", made.stats, "--keep", 12),
        ("apply", made.model, "--plan", made.plan),
    ):
        ran = run(*arguments, "-o", where)
        refused(ran, "is a directory; name a file with -o|does not exist; make it or choose another -o")
        assert len(ran.err.splitlines()) == 1
    (tmp_path / "file").touch()
    for out in ("no/such/folder", "file"):
        refused(
            run("prune", made.model, "--keep", 12, "-f", made.text, "-o", out), "cannot make the folder|does not exist"
        )
    refused(run("demo", "-o", "file"), "cannot make the folder file: File exists")
    assert set(contents(tmp_path)) == {"file"}


def test_a_disk_that_is_too_small_is_noticed_first(
    made: Made, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SmallDisk())
    ran = run("prune", made.model, "--keep", 12, "-f", made.text, "-o", tmp_path)
    refused(ran, "the output needs [0-9,]+ bytes and .* has 1,000 free; free some or choose another -o")
    assert "calibrating" not in ran.err
    assert list(tmp_path.iterdir()) == []


# Else what Python compiles under such a limit is cut short, and later children would read that.
KEEPS_NO_CODE = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}


@dataclass(frozen=True)
class SmallDisk:
    free: int = 1000


@pytest.mark.parametrize(
    ("verb", "blocks"),
    [("calibrate", 4), ("plan", 0), ("apply", 200)],
)
def test_a_disk_that_fills_up_leaves_nothing_behind(made: Made, tmp_path: Path, verb: str, blocks: int) -> None:
    flags = {
        "calibrate": ("-f", made.text, *FLAGS),
        "plan": ("--stats", made.stats, "--keep", 12),
        "apply": ("--plan", made.plan),
    }
    command = [GGUFREAP, verb, made.model, *flags[verb], "-o", tmp_path / "out"]
    # No file may grow beyond so many blocks of 512 bytes.
    limited = ["sh", "-c", f'ulimit -f {blocks} && exec "$@"', "sh", *map(str, command)]
    result = subprocess.run(limited, env=KEEPS_NO_CODE, capture_output=True, text=True, check=False, timeout=60)
    refused(Ran(result.returncode, result.stdout, result.stderr), "cannot write .*out.*: File too large")
    assert list(tmp_path.iterdir()) == []


def test_names_need_not_be_text_and_are_no_markup(made: Made, tmp_path: Path, run: Run) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9 [bold]x[/red] :smile:")
    folder.mkdir(parents=True)
    for flags in ((), ("--json",)):
        ran = run("apply", made.model, "--plan", made.plan, "-o", folder / "out.gguf", *flags)
        assert ran.code == 0, ran.err
        assert r"caf\udce9 [bold]x[/red] :smile:/out.gguf" in ran.out
    model = tiny_gguf.qwen3moe(tmp_path / "m.gguf", **SMALL, metadata={"general.name": "A [/b] :smile: [red]name"})
    assert run("inspect", model).out.startswith("A [/b] :smile: [red]name  qwen3moe")


# Interrupted.

LINES = 400


@pytest.fixture(scope="module")
def long_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = tmp_path_factory.mktemp("long") / "long.txt"
    text.write_text("".join(f"{line * 7919} brown foxes jump over {line} lazy dogs.\n" for line in range(LINES)))
    return text


def calibration(model: Path, text: Path, out: Path) -> list[str]:
    return [GGUFREAP, "calibrate", str(model), "-f", str(text), "-o", str(out), *map(str, FLAGS)]


@pytest.fixture(scope="module")
def undisturbed(big: Path, long_text: Path) -> Path:
    out = long_text.with_name("undisturbed.npz")
    subprocess.run(calibration(big, long_text, out), check=True, capture_output=True)
    return out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_calibration_goes_on_where_it_was(
    big: Path, long_text: Path, undisturbed: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out, checkpoint = tmp_path / "S.npz", tmp_path / "S.npz.checkpoint"
    said = stop_on_terminal(calibration(big, long_text, out), number, when=rb"calibrate: +[1-9][0-9]?%")
    assert said.endswith("ggufreap: interrupted; nothing is lost, the same command goes on from here")
    assert list(tmp_path.iterdir()) == [checkpoint]
    total = load(undisturbed)[0].n_chunks
    assert 0 < load(checkpoint)[0].n_chunks < total
    subprocess.run(calibration(big, long_text, out), check=True, capture_output=True)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "S.imatrix.gguf", out]
    assert same_statistics(out, undisturbed)


def stop_on_terminal(command: list[str], number: signal.Signals, when: bytes) -> str:
    """Run with a terminal for standard error, send a signal once `when` stands there; returns the last line."""
    screen, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal)
    os.close(terminal)
    seen = b""
    try:
        while not re.search(when, seen):
            seen += os.read(screen, 4096)
        process.send_signal(number)
        while part := read_or_end(screen):
            seen += part
        out, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        os.close(screen)
    assert process.returncode == 130, seen
    assert out == b""
    assert b"Traceback" not in seen
    return re.split(r"[\r\n]+", seen.decode().rstrip())[-1]


def read_or_end(screen: int) -> bytes:
    try:
        return os.read(screen, 4096)
    except OSError:  # what Linux says once the last writer is gone
        return b""


CHECKPOINT_AFTER_EVERY_CHUNK = """
import sys
from functools import partial
from ggufreap import cli, observation
import ggufreap.verbs
sys.modules["ggufreap.verbs.calibrate"].observe = partial(observation.observe, checkpoint_seconds=0)
sys.exit(cli.main())
"""


def test_a_killed_calibration_goes_on_from_its_checkpoint(
    big: Path, long_text: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out, checkpoint = tmp_path / "S.npz", tmp_path / "S.npz.checkpoint"
    command = calibration(big, long_text, out)
    process = subprocess.Popen([sys.executable, "-c", CHECKPOINT_AFTER_EVERY_CHUNK, *command[1:]])
    wait_for(checkpoint.parent, checkpoint.name, process)
    process.kill()
    process.wait()
    assert not out.exists()
    assert 0 < load(checkpoint)[0].n_chunks < load(undisturbed)[0].n_chunks
    subprocess.run(command, check=True, capture_output=True)
    assert same_statistics(out, undisturbed)
    assert not checkpoint.exists()


def wait_for(folder: Path, pattern: str, process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 30
    while not list(folder.glob(pattern)):
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.002)


SLOWLY = """
import os, sys, time
copy = os.copy_file_range
def slowly(*arguments):
    time.sleep(0.1)
    return copy(*arguments)
os.copy_file_range = slowly
from ggufreap.cli import main
sys.exit(main())
"""


@pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="needs the kernel's copy")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("flags", [(), ("--keep-split",)])
def test_a_stopped_apply_leaves_nothing(
    big: Path, tmp_path: Path, run: Run, number: signal.Signals, flags: Sequence[str]
) -> None:
    plan, out = tmp_path / "P.json", tmp_path / "out.gguf"
    run("plan", big, "--method", "random", "--keep", 8, "-o", plan)
    command = [sys.executable, "-c", SLOWLY, "apply", str(big), "--plan", str(plan), "-o", str(out), *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    first = "out-00001-of-00003.gguf" if flags else "out.gguf"
    wait_for(tmp_path, f".ggufreap-*/{first}", process)
    process.send_signal(number)
    said, complained = process.communicate(timeout=30)
    assert process.returncode == 130
    assert (said, len(complained.splitlines())) == ("", 1)
    assert list(tmp_path.iterdir()) == [plan]


def test_a_reader_that_leaves_early_is_no_failure(made: Made) -> None:
    command = [GGUFREAP, "calibrate", str(made.model), "--help"]
    for arguments in (command, [GGUFREAP, "inspect", str(made.model), "--json"]):
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout
            assert process.stderr
            process.stdout.close()
            assert process.stderr.read() == b""


# As a library.


def test_the_library_is_silent(made: Made, tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from ggufreap.options.engine import EngineSettings\n"
        "from ggufreap import Output, Target, prune\n"
        f"prune({str(made.model)!r}, {str(made.text)!r}, target=Target('0.25'), output=Output({str(tmp_path)!r}),"
        " settings=EngineSettings(n_ctx=64, n_threads=1))\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, timeout=60)
    assert (result.stdout, result.stderr) == (b"", b"")
    assert (tmp_path / "Tiny-16x0.4M-RANK-AVERAGE-0.25-Q4_K_M.gguf").is_file()


TYPED = """\
from pathlib import Path

from ggufreap import Output, Target, apply, calibrate, demo, inspect, plan, prune, verify

statistics = calibrate("model.gguf", "S.npz", data="text.txt")
chosen = plan("model.gguf", Target(ratio="0.2", method="reap"), stats=Path("S.npz"))
script = apply("model.gguf", chosen, Output(Path("pruned.gguf"), dry_run=True))
verify("model.gguf", "pruned.gguf", chosen).require()
size: int = script.nbytes + inspect("model.gguf").nbytes + prune("model.gguf", target=Target(keep=8)).script.nbytes
loss: float = demo().after.value / demo().before.value + statistics.total.values["count"].sum()
"""


def test_a_script_of_a_user_passes_mypy_strict(tmp_path: Path) -> None:
    (tmp_path / "typed.py").write_text(TYPED)
    (tmp_path / "wrong.py").write_text(TYPED.replace('"S.npz", data', "3, data"))
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache")]
    for name, code in (("typed.py", 0), ("wrong.py", 1)):
        result = subprocess.run([*command, name], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == code, result.stdout


def test_help_comes_at_once_and_loads_nothing_heavy() -> None:
    def took() -> float:
        started = time.perf_counter()
        subprocess.run([GGUFREAP, "--help"], check=True, capture_output=True)
        return time.perf_counter() - started

    assert min(took() for _ in range(5)) < 0.3


@pytest.mark.parametrize("code", ["import ggufreap", "from ggufreap.cli import _parser; _parser().format_help()"])
def test_importing_loads_nothing_heavy(code: str) -> None:
    heavy = ("numpy", "gguf", "llama_cpp", "rich", "tqdm", "datasets")
    check = f"{code}\nimport sys\nprint([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "[]"


def test_every_verb_is_importable_and_is_what_the_command_line_calls() -> None:
    import ggufreap

    # ggufreap.imatrix and coverage are rooms of those names.
    named = set(VERBS) - {"imatrix", "coverage", "completion"}
    assert named <= set(ggufreap.__all__)
    for name in named:
        assert getattr(ggufreap, name) is getattr(demonstration if name == "demo" else verbs, name)
    with pytest.raises(AttributeError, match="squeeze"):
        ggufreap.squeeze  # noqa: B018
