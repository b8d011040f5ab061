"""Text that is not what the user thinks: told by its first bytes, refused where it is no text, and counted."""

import gzip
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
from fake_engine import FakeEngine

from ggufreap import cli
from ggufreap.container import open_gguf
from ggufreap.corpus.record import SourceRecord
from ggufreap.corpus.request import Opened, open_request
from ggufreap.errors import InputError
from ggufreap.observation import Stored
from ggufreap.options.data import Reading, Request

WORDS = "".join(f"line {number} of a text with words\n" for number in range(200))


def read(path: Path) -> str:
    opened = open_request(Request(file=(str(path),)))
    return "".join(sample.text for named in opened.sources for sample in named.source)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\n", "is a Git LFS pointer"),
        (b"%PDF-1.7\n" + b"stream " * 90, "is a PDF"),
        (gzip.compress(WORDS.encode()), "is compressed by gzip"),
        (b"GGUF" + bytes(90), "is a GGUF file"),
        (b"PK\x03\x04" + b"x" * 90, "is a zip archive"),
        (b"\0" * 90, "is nothing but zeros"),
        (b"some words\0and more", "is no text: a NUL byte at offset 10"),
        (WORDS.encode("utf-16-le"), "is no text: a NUL byte at offset 1"),
    ],
)
@pytest.mark.parametrize("name", ["x.txt", "x.md", "no suffix"])
def test_what_is_no_text_is_refused_before_a_model_is_loaded(tmp_path: Path, data: bytes, said: str, name: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=f"{name} {said}"):
        open_request(Request(file=(str(tmp_path / name),)))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ('{"text": "a row"}\n' * 9, "x.txt is JSON, and read as if it were text; name it .json or .jsonl"),
        ("<!DOCTYPE html><p>404 not found</p>", "x.txt is a web page, which a server sent in place of the file"),
    ],
)
def test_what_is_read_as_text_and_looks_like_something_else_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, data: str, said: str
) -> None:
    (tmp_path / "x.txt").write_text(data)
    assert read(tmp_path / "x.txt") == data
    assert said in caplog.text


def test_text_that_looks_like_text_is_read_in_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts = {"a.txt": WORDS, "b.md": "<header>\n# Title\n", "c.txt": "[1] a list", "d.txt": "\ufeffBOM"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        read(tmp_path / name)
    assert caplog.text == ""


def test_fewer_samples_than_asked_for_are_told(tmp_path: Path) -> None:
    rows = tmp_path / "r.jsonl"
    rows.write_text("".join(f'{{"text": "row {row} says something of its own"}}\n' for row in range(20)))
    file, engine = open_gguf(tiny_gguf.qwen3moe(tmp_path / "m.gguf", n_block=1)), FakeEngine()

    def notes(count: int, n_chunks: int | None = None) -> tuple[str, ...]:
        opened = open_request(Request(dataset=(f"{rows}:{count}",), reading=Reading(n_chunks=n_chunks)))
        with opened.chunks(engine, file, 64) as chunks:
            list(chunks)
            return chunks.notes()

    assert notes(50) == (f"{rows}: 30 fewer samples that can be used than were asked for",)
    assert notes(20) == notes(5) == notes(50, n_chunks=2) == ()


@pytest.mark.parametrize("name", ["x" * 300, "a/" + "y" * 256 + "/b.txt"])
def test_a_name_that_no_file_has_is_one_short_line(name: str) -> None:
    for request in (Request(file=(name,)), Request(dataset=(f"./{name}",))):
        with pytest.raises(InputError, match="no name has more than 255 bytes") as caught:
            open_request(request)
        assert len(str(caught.value)) < 200


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
@pytest.mark.native
def test_a_name_that_is_no_text_can_be_told_on(tmp_path: Path) -> None:
    model = tiny_gguf.qwen3moe(tmp_path / "m.gguf")
    text = tmp_path / os.fsdecode(b"a\xff.txt")
    text.write_text(WORDS)
    out = tmp_path / "S.npz"
    for _ in range(2):  # the second time from the file
        assert cli.main(["calibrate", str(model), "-f", str(text), "-o", str(out), "-c", "64", "-t", "1"]) == 0
    (record,) = Stored.open(out).provenance.sources
    assert (Path(record.name).name, record.domain) == (r"a\xff.txt", r"a\xff")
    plan = ["plan", str(model), "--stats", str(out), "--keep", "12", "-o", str(tmp_path / "P.json")]
    assert cli.main(plan) == 0
    assert cli.main(["apply", str(model), "--plan", str(tmp_path / "P.json"), "-o", str(tmp_path / "p.gguf")]) == 0


def test_names_of_text_stay_as_they_are() -> None:
    assert SourceRecord("naïve/日本.txt", "日本").name == "naïve/日本.txt"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-c", "100000"), "t has 5,890 bytes, too few for a chunk of -c 100000"),
        (("-c", "64", "--shard", "0/2"), "shard '0/2' is not understood"),
    ],
)
def test_what_cannot_be_cut_is_known_before_a_model_is_loaded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    said: str,
) -> None:
    model, text = tiny_gguf.qwen3moe(tmp_path / "m.gguf"), tmp_path / "t.txt"
    text.write_text(WORDS)
    monkeypatch.setattr(sys.modules["ggufreap.verbs.calibrate"], "LlamaSession", None)
    assert cli.main(["calibrate", str(model), "-f", str(text), "-o", str(tmp_path / "S.npz"), *arguments]) == 1
    assert said in capsys.readouterr().err


def test_packed_text_may_be_longer_than_it_looks(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "t.txt.gz", "wt") as file:
        file.write("the same word " * 9000)
    opened = open_request(Request(file=(str(tmp_path / "t.txt.gz"),)))
    assert isinstance(opened, Opened)
    opened.check_length(4096)
    np.save(tmp_path / "i.npy", np.arange(8))
    open_request(Request(tokens=tmp_path / "i.npy")).check_length(4096)
