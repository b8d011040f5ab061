"""What goes out: foreign text in terminals, errors and pages, numbers in JSON, and no folders in what is published."""

import json
import shlex
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_gguf import qwen3moe
from tiny_report import large_report

from ggufreap import cli, console, inspect
from ggufreap.cli.common import command
from ggufreap.container import open_gguf
from ggufreap.corpus.record import SourceRecord
from ggufreap.errors import FormatError, GgufReapError, NumericFailure, UnsupportedModel
from ggufreap.model import Model
from ggufreap.planning import load_plan, make_plan, save_plan
from ggufreap.quantization.request import imatrix_metadata
from ggufreap.reporting import facts, write_report
from ggufreap.reporting.document import document_of
from ggufreap.rewriting import lower
from ggufreap.showing import EXCERPT, LONGEST_MESSAGE, excerpt, published, shown, to_copy, to_json

# Colours, a title of the window, a line turned around, one that is wiped out, a second line, C1, half a pair, a tag.
FOREIGN = "\x1b[31mred\x1b]0;title\x07\u202eevil\r\x1b[2K\nsecond \x9b1m\udcff\U000e0041"


def test_a_command_to_be_copied_runs_nothing_else() -> None:
    names = ("a b.gguf", "m;touch evil.gguf", "$(evil)", "it's")
    assert shlex.split(to_copy("verify", *names)) == ["ggufreap", "verify", *names]


def test_foreign_text_is_one_line_that_commands_nothing() -> None:
    assert shown(FOREIGN).isprintable()
    assert shown("Ünïcödé 日本 \u200d👩\u200d👧") == "Ünïcödé 日本 \u200d👩\u200d👧"
    assert shown("a\nb\tc", allowed="\n") == "a\nb\\tc"
    assert shown("x" * 100, 10) == "x" * 9 + "…"
    assert len(shown("\x1b" * 100, 10)) == 10


@given(st.recursive(st.text() | st.binary() | st.integers() | st.floats(), st.lists))
def test_an_excerpt_is_short_and_safe(value: Any) -> None:
    assert len(excerpt(value)) <= EXCERPT
    assert shown(excerpt(value)) == excerpt(value)


def test_no_excerpt_writes_out_a_number_of_thousands_of_digits() -> None:
    assert excerpt(10**5000) == "an integer of thousands of digits"


def test_an_error_is_one_line_of_bounded_length() -> None:
    assert str(GgufReapError(f"{FOREIGN}; do this")).isprintable()
    long = str(GgufReapError("start " + "x" * 10**7 + " do this"))
    assert len(long) < LONGEST_MESSAGE + 10
    assert (long[:6], long[-8:]) == ("start ", " do this")


def test_the_command_line_shows_no_commands_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = qwen3moe(tmp_path / "m.gguf", n_block=1, n_embd=32, n_ff=32, metadata={"general.name": FOREIGN[:-2]})
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["inspect", str(path)]) == 0
    assert cli.main(["inspect", str(tmp_path / FOREIGN[:-2])]) == 1
    assert cli.main(["inspect", str(path), "--json"]) == 0
    said = capsys.readouterr()
    assert all(line.isprintable() for text in said for line in text.split("\n"))
    assert "\nsecond" not in said.out
    assert len(said.err.splitlines()) == 1
    assert json.loads(said.out[said.out.index("{") :])["name"] == FOREIGN[:-2]


def test_json_for_machines_has_no_tokens_that_json_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(token: str) -> None:
        raise AssertionError(token)

    value = {"a": [nan, inf, -inf, 1.5], "b": (FOREIGN,), "path": Path("x")}
    text = to_json(value, indent=2)
    assert json.loads(text, parse_constant=refuse) == {
        "a": ["NaN", "Infinity", "-Infinity", 1.5], "b": [FOREIGN], "path": "x"
    }  # fmt: skip
    assert all(line.isprintable() for line in text.split("\n"))
    console.show(facts.Estimate(nan), as_json=True)
    assert json.loads(capsys.readouterr().out, parse_constant=refuse) == {"value": "NaN", "stderr": None}


def test_a_report_of_what_is_no_number_is_refused() -> None:
    report = large_report(2, 16, ("code", "de"))
    worst = replace(report.variants[0], overall=facts.Meters("all", facts.Estimate(inf)))
    with pytest.raises(NumericFailure, match=r"the report's variants\.0\.overall\.kld\.value is not a number"):
        document_of(replace(report, variants=(worst, *report.variants[1:])))


@pytest.mark.parametrize(
    ("link", "kept"),
    [
        ("https://example.org/LICENSE", True),
        ("LICENSE.md", True),
        ("javascript:alert(1)", False),
        ("data:text/html,x", False),
        ("https://example.org/<script>", False),
    ],
)
def test_pages_and_cards_hold_no_commands_of_others(tmp_path: Path, link: str, kept: bool) -> None:
    report = large_report(1, 16, ("code", FOREIGN[:-2]))
    model = replace(report.model, name=FOREIGN[:-2], license=FOREIGN[:-2], license_name="other", license_link=link)
    report = replace(report, model=model, publisher=FOREIGN[:-2], reproduction=facts.Reproduction(FOREIGN[:-2]))
    write_report(report, tmp_path)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for text in (card, page):
        assert all(line.replace("\xa0", " ").isprintable() for line in text.split("\n"))
    assert (f"license_link: {link}" in card) == kept


# --- what is published -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/home/me/secret project/text.txt", "text.txt"),
        ("~/text.txt", "text.txt"),
        ("~me/a/text.txt", "text.txt"),
        ("C:\\Users\\me\\text.txt", "text.txt"),
        ("\\\\server\\share\\text.txt", "text.txt"),
        ("code=/home/me/text.txt", "code=text.txt"),
        ("org/data", "org/data"),
        ("org/data, /home/me/a.txt, b.txt", "org/data, a.txt, b.txt"),
        ('files = ["/home/me/a.txt", "b.txt"]', 'files = ["a.txt", "b.txt"]'),
        ("https://huggingface.co/org/data", "https://huggingface.co/org/data"),
    ],
)
def test_paths_are_published_without_their_folders(text: str, told: str) -> None:
    assert published(text) == told


def test_the_command_of_a_report_tells_no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "text.txt").write_text("a")
    monkeypatch.chdir(tmp_path)
    given = ["ggufreap", "prune", f"{tmp_path}/m.gguf", "-f", "inside/text.txt", "--dataset", "org/data[a](b):3"]
    monkeypatch.setattr("sys.argv", [*given, f"--eval-file=de={tmp_path}/x y.txt"])
    assert command() == ("ggufreap prune m.gguf -f text.txt --dataset 'org/data[a](b):3' '--eval-file=de=x y.txt'")


def test_the_metadata_of_a_pruned_file_tells_no_folders(tmp_path: Path) -> None:
    path = qwen3moe(tmp_path / "m.gguf", n_block=1, n_embd=32, n_ff=32)
    inspection = inspect(path)
    model = Model.open(path)
    layout, identity = model.layout, model.identity
    records = (SourceRecord("/home/me/text.txt", "de"), SourceRecord("org/data", "code", is_hub=True))
    scores = np.arange(inspection.n_expert, dtype=float)[None]
    plan = make_plan(layout, identity, scores, method="reap", n_keep=8, datasets=records)
    script = lower(model, plan, tmp_path / "out.gguf")
    assert b"/home/me" not in script.files[0].header
    assert b"text.txt" in script.files[0].header
    assert imatrix_metadata("i.gguf", 1, 1, "/home/me/text.txt")["quantize.imatrix.dataset"] == "text.txt"
    save_plan(tmp_path / "p.json", plan)
    assert load_plan(tmp_path / "p.json") == plan


# --- files that are no models ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"<!DOCTYPE html>\n<html>" + bytes(64), "it is a web page, which a server sent in place of the file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64, "it is a Git LFS pointer"),
        (bytes(4096), "it is nothing but zeros, as an unfinished download is"),
        ((99).to_bytes(8, "little") + b'{"a":' + bytes(64), "it is a safetensors file"),
        (b"tjgg" + bytes(64), "it is a GGJT file"),
        (b"what is this, a text of some length?", "it starts with b'what'"),
    ],
)
def test_what_is_given_in_place_of_a_model_is_named(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(FormatError) as caught:
        open_gguf(tmp_path / "m.gguf")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"general.type": "mmproj"}, "the projector of a vision or audio model"),
        ({"general.type": "adapter"}, r"an adapter \(LoRA\)"),
        ({"general.type": "imatrix"}, "an importance matrix"),
        ({"adapter.type": "lora"}, r"an adapter \(LoRA\)"),
    ],
)
def test_a_gguf_that_is_no_model_is_named(tmp_path: Path, metadata: dict[str, Any], said: str) -> None:
    path = qwen3moe(tmp_path / "m.gguf", n_expert=0, n_block=1, n_embd=32, n_ff=32, metadata=metadata)
    with pytest.raises(UnsupportedModel, match=f"it is {said}.*; give the model itself"):
        inspect(path)


def test_the_cause_of_an_error_is_there_for_who_asks(tmp_path: Path) -> None:
    with pytest.raises(GgufReapError) as caught:
        load_plan(tmp_path / "missing.json")
    assert isinstance(caught.value.__cause__, FileNotFoundError)
