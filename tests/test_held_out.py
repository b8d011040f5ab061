"""Held-out data is read as calibration data is, can be split off it, and is told to be none of it."""

import gzip
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
from asked import evaluate, preview, prune, report
from asked import plan as make_plan
from fake_engine import FakeEngine

from ggufreap import calibrate
from ggufreap.container import GgufFile, open_gguf
from ggufreap.corpus import SourceRecord, from_text, held_out, overlap
from ggufreap.corpus.held_out import parse_share, split, tokenised
from ggufreap.corpus.overlap import is_source, seen
from ggufreap.corpus.request import Opened, open_request
from ggufreap.corpus.samples import Text
from ggufreap.corpus.stream import NamedSource, Stream
from ggufreap.errors import InputError
from ggufreap.observation import load
from ggufreap.options.data import Request
from ggufreap.options.engine import EngineSettings
from ggufreap.planning import load_plan

SETTINGS = EngineSettings(n_ctx=64, n_ubatch=64, n_threads=1, n_gpu_layers=0)
MESSAGES = [{"role": "user", "content": "how many?"}, {"role": "assistant", "content": "forty-two, of course"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> GgufFile:
    return open_gguf(tiny_gguf.qwen3moe(tmp_path_factory.mktemp("model") / "m.gguf", n_block=1))


def rows(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def documents(opened: Opened) -> list[str]:
    return [sample.text for named in opened.sources for sample in named.source]


def test_a_plain_text_is_taken_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "held.txt"
    path.write_text("some text\n" * 40)
    assert held_out.named([str(path), f"other={path}"]) == {"held": "some text\n" * 40, "other": "some text\n" * 40}
    (tmp_path / "noname").write_text("x")
    assert held_out.named([str(tmp_path / "noname")]) == {"noname": "x"}


def test_rows_packed_files_and_folders_are_read_as_calibration_reads_them(tmp_path: Path, model: GgufFile) -> None:
    said = [f"row {number} says something of its own" for number in range(30)]
    named = held_out.named([f"rows={rows(tmp_path / 'r.jsonl', said)}"])
    engine = FakeEngine()
    found, notes = tokenised(engine, model, named, 64, None)
    whole = np.concatenate([engine.tokenize(text) for text in said])
    assert np.array_equal(found["rows"].chunks.ravel(), whole[: len(whole) // 64 * 64])
    assert notes == ()
    (tmp_path / "folder").mkdir()
    with gzip.open(tmp_path / "folder/a.txt.gz", "wt") as file:
        file.write("packed text " * 40)
    found, _ = tokenised(engine, model, held_out.named([str(tmp_path / "folder")]), 64, 2)
    assert np.array_equal(found["folder"].chunks.ravel(), engine.tokenize("packed text " * 40)[:128])


def test_conversations_are_rendered_with_the_models_template(tmp_path: Path, model: GgufFile) -> None:
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps({"messages": MESSAGES, "n": n}) + "\n" for n in range(3)))
    engine = FakeEngine()
    found, notes = tokenised(engine, model, held_out.named([str(tmp_path / "chat.jsonl")]), 32, None)
    text = "".join(f"<|im_start|>{each['role']}\n{each['content']}<|im_end|>\n" for each in MESSAGES)
    assert np.array_equal(found["chat"].chunks.ravel(), engine.tokenize(text)[: found["chat"].n_tokens])
    assert "skipped 2: duplicate" in notes[0]


def test_what_is_missing_is_refused(tmp_path: Path) -> None:
    for name, message in (("none.txt", "cannot read"), ("none.jsonl", "there is no file"), ("none", "cannot read")):
        with pytest.raises(InputError, match=message):
            held_out.named([str(tmp_path / name)])
    with pytest.raises(InputError, match="no held-out text was given"):
        held_out.named([])


# A part of the calibration data.


def test_a_split_is_by_document_whole_and_the_same_again(tmp_path: Path) -> None:
    said = [f"document {number}" for number in range(400)]
    opened = open_request(Request(file=(rows(tmp_path / "r.jsonl", said),)))
    kept, (held,) = split(opened, 0.1, seed=1)
    assert set(documents(kept)).isdisjoint(documents(held))
    assert sorted(documents(kept) + documents(held)) == sorted(said)
    assert 20 < len(documents(held)) < 60
    again = [documents(part) for part in (split(opened, 0.1, seed=1)[0], *split(opened, 0.1, seed=1)[1])]
    assert again == [documents(kept), documents(held)]
    assert documents(split(opened, 0.1, seed=2)[1][0]) != documents(held)
    assert len({opened.identity, kept.identity, held.identity, split(opened, 0.1, 2)[0].identity}) == 4
    assert kept.names.endswith("r.jsonl, without 0.1 held out by seed 1"), "the provenance knows"
    assert kept.chunk_length(0) == 2048


def test_duplicates_stay_on_one_side(tmp_path: Path) -> None:
    said = [f"document {number % 50}" + " " * (number // 50) for number in range(200)]
    kept, (held,) = split(open_request(Request(file=(rows(tmp_path / "r.jsonl", said),))), 0.2, seed=0)
    assert {text.strip() for text in documents(kept)}.isdisjoint(text.strip() for text in documents(held))


def test_one_document_cannot_be_split(tmp_path: Path) -> None:
    (tmp_path / "all.txt").write_text("all of it in one file\n" * 100)
    with pytest.raises(InputError, match="of the documents of all none would be held out; a text file is one document"):
        split(open_request(Request(file=(str(tmp_path / "all.txt"),))), 0.05, seed=0)
    np.save(tmp_path / "ids.npy", np.arange(8))
    with pytest.raises(InputError, match="token ids have none"):
        split(open_request(Request(tokens=tmp_path / "ids.npy")), 0.05, seed=0)


@pytest.mark.parametrize(("text", "share"), [("5%", 0.05), ("0.05", 0.05), ("50%", 0.5)])
def test_a_share(text: str, share: float) -> None:
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["5", "0", "60%", "some", "nan", "-1%"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(InputError, match="such as 5%"):
        parse_share(text)


# What was calibrated on after all.


def test_content_is_compared_and_not_names(tmp_path: Path) -> None:
    lines = [f"line number {number} with words enough" for number in range(100)]
    calibrated = open_request(Request(file=(rows(tmp_path / "chat.jsonl", lines[:60]),)))
    held = {"same": "\n".join(lines), "other": "nothing of this line stands there", "short": "}\n{\n"}
    assert seen(held, calibrated) == {"same": 0.6, "other": 0.0, "short": 0.0}
    assert seen({"rows": calibrated}, calibrated) == {"rows": 1.0}


def test_statistics_tell_what_they_were_made_of(tmp_path: Path, model: GgufFile) -> None:
    engine, text = FakeEngine(bos=1), "the quick brown fox " * 40
    stream = Stream(engine, open_request(Request(text={"a": text})).sources, 64, Request().reading, lambda _: None)
    n_chunks = sum(1 for _ in stream)
    assert n_chunks == len(from_text(engine, text, 64, "a").chunks)
    assert is_source(engine, model, text, 64, stream.records())
    assert not is_source(engine, model, text + "more" * 20, 64, stream.records())
    assert not is_source(engine, model, "short", 64, stream.records())
    said = [f"row {number} says something of its own" for number in range(30)]
    calibrated, copy = (open_request(Request(file=(rows(tmp_path / name, said),))) for name in ("r.jsonl", "c.jsonl"))
    with calibrated.chunks(engine, model, 64) as chunks:
        list(chunks)
        assert is_source(engine, model, copy, 64, chunks.records())
        other = open_request(Request(file=(rows(tmp_path / "o.jsonl", said[1:]),)))
        assert not is_source(engine, model, other, 64, chunks.records())


# A data set on the hub: what it says is read once, and its name and split say when rows were drawn from one shuffle.


class Hub:
    """What `Source` is of a data set."""

    def __init__(self, *said: str) -> None:
        self.said, self.position, self.skipped, self.nbytes, self.has_rows, self.read = said, 0, {}, None, True, 0
        self.n_missing = 0

    def files(self) -> "list[Hub]":
        return [self]

    def __iter__(self) -> Iterator[Text]:
        for said in self.said:
            self.read += 1
            yield Text(said)


def on_the_hub(name: str, *said: str, split: str = "train") -> tuple[Opened, Hub]:
    source, record = Hub(*said), SourceRecord(name, "d", is_hub=True, revision="c0ffee", split=split)
    return Opened(Request(), (NamedSource("d", source, record),), None, f"{name}({split})"), source


def test_data_on_the_hub_are_compared_by_what_they_say_once(tmp_path: Path) -> None:
    lines = [f"line number {number} with words enough" for number in range(100)]
    calibrated = open_request(Request(file=(rows(tmp_path / "chat.jsonl", lines[:60]),)))
    held, source = on_the_hub("own/set", *lines)
    for _ in range(3):
        assert seen({"d": held}, calibrated) == {"d": 0.6}
    assert source.read == 100, "a data set at a revision is read once"
    other, _ = on_the_hub("own/other", *lines[60:])
    assert seen({"d": other}, calibrated) == {"d": 0.0}
    assert seen({"text": "\n".join(lines[50:])}, held) == {"text": 1.0}


def test_of_a_large_data_set_the_first_samples_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "COMPARED", 7)
    held, source = on_the_hub("own/large", *(f"line number {number} of a large data set" for number in range(50)))
    assert seen({"d": held}, held) == {"d": 1.0}
    assert source.read == 14


def test_rows_of_one_split_on_the_hub_were_drawn_in_one_order(model: GgufFile) -> None:
    engine = FakeEngine()
    calibrated = SourceRecord("own/set", "code", is_hub=True, split="train")
    held, _ = on_the_hub("own/set", "short")
    assert is_source(engine, model, held, 64, [calibrated])
    assert not is_source(engine, model, on_the_hub("own/set", "short", split="test")[0], 64, [calibrated])
    assert not is_source(engine, model, on_the_hub("own/other", "short")[0], 64, [calibrated])
    many, _ = on_the_hub("own/set", *(f"document {number}" for number in range(99)))
    assert not is_source(engine, model, split(many, 0.2, 0)[1][0], 64, [calibrated]), "it was split off"


@pytest.mark.native
def test_the_verbs_say_so(tmp_path: Path, model: GgufFile, caplog: pytest.LogCaptureFixture) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {number} of the calibration text\n" for number in range(60)))
    copy = tmp_path / "copy.txt"
    copy.write_bytes(text.read_bytes())
    calibrate(model.path, tmp_path / "S.npz", text, settings=SETTINGS)
    assert "was trained on" not in caplog.text
    preview(model.path, files=[str(copy)], stats=tmp_path / "S.npz", ratios=["0.25"], chunks=2, settings=SETTINGS)
    assert "copy was calibrated on too" in caplog.text
    prune(model.path, text, ratio="0.25", eval_file=[str(copy)], dry_run=True, out=tmp_path / "o", settings=SETTINGS)
    assert "100 % of the lines of copy stand in the calibration data too" in caplog.text


@pytest.mark.native
def test_a_context_beyond_the_trained_one_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def short(model: tiny_gguf.Model) -> None:
        model.metadata["qwen3moe.context_length"] = 48

    path = tiny_gguf.qwen3moe(tmp_path / "short.gguf", n_block=1, changes=[short])
    (tmp_path / "text.txt").write_text("some text for both\n" * 40)
    calibrate(path, tmp_path / "S.npz", tmp_path / "text.txt", settings=SETTINGS)
    assert "-c 64 is longer than the 48 tokens that short.gguf was trained on" in caplog.text
    caplog.clear()
    evaluate(path, files=[str(tmp_path / "text.txt")], settings=SETTINGS)
    assert "-c 64 is longer than the 48 tokens" in caplog.text


def test_what_is_made_already_can_hold_nothing_out(model: GgufFile) -> None:
    plan = make_plan(model.path, method="random", ratio="0.25")
    with pytest.raises(InputError, match="--eval-split holds out a part of what is calibrated on"):
        report(model.path, [model.path], plan, eval_split="5%")


@pytest.mark.native
def test_prune_holds_out_what_it_judges_by(tmp_path: Path, model: GgufFile, caplog: pytest.LogCaptureFixture) -> None:
    said = [f"document {number} tells of the number {number * number} and of little else" for number in range(80)]
    with caplog.at_level(logging.WARNING, "ggufreap"):
        found = prune(
            model.path,
            Request(file=(rows(tmp_path / "r.jsonl", said),)),
            ratio="0.25",
            out=tmp_path / "o",
            quant=("keep",),
            eval_split="20%",
            verification=False,
            settings=SETTINGS,
        )
    assert found.account is not None
    assert found.account.files[0].comparison is not None
    assert set(found.account.files[0].comparison.domains) == {"r"}
    assert "stand in the calibration data" not in caplog.text
    _, provenance = load(found.statistics_path)
    assert provenance.source.endswith("without 0.2 held out by seed 0")
    plan = load_plan(found.plan_path)
    assert [source.held_out for source in plan.datasets] == ["0.2 by seed 0"]
    assert open_gguf(found.script.files[0].path).get("ggufreap.dataset.0.held_out") == "0.2 by seed 0"
    assert '"held_out"' not in replace(plan, datasets=(replace(plan.datasets[0], held_out=""),)).to_json()
