"""Samples become the same chunks whatever way they come in, and a long calibration can be cut, stopped and split."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
from fake_engine import FakeEngine
from hypothesis import given
from hypothesis import strategies as st

from ggufreap import corpus, verbs
from ggufreap.cli import parse
from ggufreap.cli.asked import request
from ggufreap.container import open_gguf
from ggufreap.corpus import SourceRecord, turns
from ggufreap.corpus.chat import Rendered
from ggufreap.corpus.default import DEFAULT_SOURCES
from ggufreap.corpus.packing import Piece
from ggufreap.corpus.request import open_request
from ggufreap.corpus.samples import Conversation, Sample, Text, Unusable
from ggufreap.corpus.stream import MOST_REASONS, NamedSource, Stream
from ggufreap.errors import InputError, MismatchError
from ggufreap.observation import DomainStatistics, Importance, Provenance, Shard, load, merge, observe
from ggufreap.options.data import Reading, Request

PROVENANCE = Provenance("model", "corpus", 4, 4, "test", "0")


class Listed:
    """A source whose samples are there already."""

    def __init__(self, *samples: Sample) -> None:
        self.samples, self.position, self.skipped, self.n_missing = samples, 0, {}, 0

    @property
    def nbytes(self) -> int:
        return len(self.samples)

    def files(self) -> "list[Listed]":
        return [self]

    def __iter__(self):
        for sample in self.samples:
            self.position += 1
            yield sample


def stream_of(
    domains: dict[str, list[Sample]], n_ctx: int = 4, reading: Reading | None = None, bos: int | None = None
) -> Stream:
    sources = [NamedSource(name, Listed(*samples), SourceRecord(name, name)) for name, samples in domains.items()]
    return Stream(FakeEngine(bos=bos), sources, n_ctx, reading or Reading(), rendered)


def rendered(conversation: Conversation) -> Rendered:
    """`user:` and `bot:` before what was said; only the bot's words are the assistant's."""
    text, spans = "", []
    for message in conversation.messages:
        name = "bot:" if message["role"] == "assistant" else "user:"
        start = len(text) + len(name)
        text += name + message["content"]
        if message["role"] == "assistant":
            spans.append((start, len(text)))
    return Rendered(text, tuple(spans))


def talk(*said: str) -> Conversation:
    roles = ("user", "assistant")
    return Conversation(tuple({"role": roles[i % 2], "content": text} for i, text in enumerate(said)))


def tokens_of(stream: Stream) -> list[list[int]]:
    return [chunk.tokens.tolist() for chunk in stream]


@given(st.text("ab \n", min_size=1, max_size=60), st.integers(1, 9), st.sampled_from([None, 5]), st.data())
def test_a_text_in_pieces_gives_the_chunks_of_the_whole(
    text: str, n_ctx: int, bos: int | None, data: st.DataObject
) -> None:
    text = f"at least {text}"
    cuts = [i + 1 for i in range(len(text) - 1) if text[i] == "\n" and not text[i + 1].isspace()]
    cuts = sorted(data.draw(st.sets(st.sampled_from(cuts)))) if cuts else []
    parts = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    pieces = [Text(part, continues=True) for part in parts[:-1]] + [Text(parts[-1])]
    whole = corpus.from_text(FakeEngine(bos=bos), text, n_ctx, "test").chunks.tolist()
    assert tokens_of(stream_of({"a": list(pieces)}, n_ctx, bos=bos)) == whole


def test_domains_take_turns_by_tokens() -> None:
    stream = stream_of({"long": [Text("x" * 40)], "short": [Text("y" * 9)]})
    chunks = list(stream)
    assert [chunk.domain for chunk in chunks[:5]] == ["long", "short", "long", "short", "long"]
    assert [chunk.number for chunk in chunks if chunk.domain == "long"] == list(range(10))
    assert len(chunks) == 12
    assert stream.domains == ("long", "short")


def test_at_most_so_many_chunks_and_only_those_are_told() -> None:
    stream = stream_of({"a": [Text("abcdefgh"), Text("ijklmnop")], "b": [Text("q" * 40)]}, reading=Reading(n_chunks=3))
    assert stream.estimate == 12
    assert len(list(stream)) == 3
    first, second = stream.records()
    assert (first.samples, first.tokens) == (1, 8)
    assert (second.samples, second.tokens) == (1, 4)
    expected = np.frombuffer(b"abcdefgh", np.uint8).astype("<i4").tobytes()
    assert first.sha256 == hashlib.sha256(expected).hexdigest()


def test_without_packing_every_sample_opens_a_chunk_and_is_cut() -> None:
    samples = [Text("abcdefgh"), Text("ij"), Text("klmn")]
    assert tokens_of(stream_of({"a": list(samples)}, reading=Reading(packing=False))) == [
        list(b"abcd"),
        list(b"ij"),
        list(b"klmn"),
    ]


def test_duplicates_are_read_once() -> None:
    stream = stream_of({"a": [Text("abcd"), talk("hi", "ho"), Text("abcd"), talk("hi", "ho"), Text("efgh")]})
    assert bytes(np.concatenate([chunk.tokens for chunk in stream]).tolist()) == b"abcduser:hibot:hoefgh"[:20]
    assert stream.notes() == ("a: skipped 2: duplicate",)


def test_only_the_assistant_counts_where_asked() -> None:
    stream = stream_of({"a": [talk("hi", "hello"), Text("plain")]}, n_ctx=16, reading=Reading(count="assistant"))
    (chunk,) = stream
    assert bytes(chunk.tokens.tolist()) == b"user:hibot:hello"
    assert bytes(chunk.tokens[chunk.counted].tolist()) == b"hello"
    assert stream.notes() == ("a: skipped 1: plain text, in which no assistant speaks",)


def test_a_domain_that_fills_no_chunk_is_refused_with_the_reason() -> None:
    with pytest.raises(InputError, match=r"a has 3 tokens, one chunk of -c 4 needs 4; .*; a: skipped 1: duplicate"):
        stream_of({"a": [Text("abc"), Text("abc")]})


# --- calibrating on streams ------------------------------------------------------------------------------------------


class Killed(FakeEngine):
    """Ends the run at its `at`-th chunk, with nothing saved but the checkpoints."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def route(self, tokens, importance=None, observables=()):  # type: ignore[no-untyped-def]
        if self.n_routed == self.at:
            raise RuntimeError("killed")
        return super().route(tokens, importance, observables)


def samples_of(seed: int) -> dict[str, list[Sample]]:
    random = np.random.default_rng(seed)
    letters = ["".join(map(chr, random.integers(97, 123, length))) for length in random.integers(1, 30, 60)]
    return {"a": [Text(text) for text in letters[:40]], "b": [talk(text, text) for text in letters[40:]]}


def same(one: DomainStatistics, other: DomainStatistics) -> bool:
    return one.domains == other.domains and all(
        (first.n_tokens, first.n_chunks) == (second.n_tokens, second.n_chunks)
        and all(np.array_equal(first.values[name], second.values[name]) for name in first.values)
        for domain in one.domains
        for first, second in zip(one.halves[domain], other.halves[domain], strict=True)
    )


@pytest.mark.parametrize("at", [1, 5, 17])
@pytest.mark.parametrize("count", ["all", "assistant"])
def test_a_killed_run_goes_on_in_the_middle_of_the_stream(tmp_path: Path, at: int, count: str) -> None:
    reading, domains = Reading(count=count), samples_of(1)
    if count == "assistant":
        domains = {"b": domains["b"]}
    engine = FakeEngine()
    provenance = Provenance("model", "corpus", 4, 4, "test", "0", count=count)
    whole = observe(engine, engine.nodes, stream_of(domains, reading=reading), provenance, tmp_path / "whole.npz")
    out = tmp_path / "resumed.npz"
    with pytest.raises(RuntimeError):
        observe(Killed(at), engine.nodes, stream_of(domains, reading=reading), provenance, out, checkpoint_seconds=0)
    again = FakeEngine()
    resumed = observe(again, engine.nodes, stream_of(domains, reading=reading), provenance, out)
    assert same(whole, resumed)
    assert again.n_routed == engine.n_routed - at
    assert load(out)[1].sources == load(tmp_path / "whole.npz")[1].sources


def test_a_checkpoint_of_other_text_is_refused(tmp_path: Path) -> None:
    out, nodes = tmp_path / "s.npz", FakeEngine().nodes
    with pytest.raises(RuntimeError):
        observe(Killed(5), nodes, stream_of(samples_of(1)), PROVENANCE, out, checkpoint_seconds=0)
    with pytest.raises(MismatchError, match=r"was made of other chunks: .* by version 0 or its libraries"):
        observe(FakeEngine(), nodes, stream_of(samples_of(2)), PROVENANCE, out)


@pytest.mark.parametrize("n_shards", [2, 3])
def test_shards_add_up_to_the_whole(tmp_path: Path, n_shards: int) -> None:
    nodes, paths = FakeEngine().nodes, []
    whole = observe(FakeEngine(), nodes, stream_of(samples_of(3)), PROVENANCE, tmp_path / "whole.npz")
    for index in range(1, n_shards + 1):
        provenance = Provenance("model", "corpus", 4, 4, "test", "0", shard=f"{index}/{n_shards}")
        paths.append(tmp_path / f"{index}.npz")
        observe(FakeEngine(), nodes, stream_of(samples_of(3)), provenance, paths[-1])
    merged, provenance, _ = merge(paths)[:3]
    assert provenance.sources == load(tmp_path / "whole.npz")[1].sources
    for domain in whole.domains:
        for first, second in zip(whole.halves[domain], merged.halves[domain], strict=True):
            assert first.n_chunks == second.n_chunks
            for name, values in first.values.items():
                np.testing.assert_allclose(second.values[name], values, rtol=1e-12)


def test_the_verb_merges_matrices_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nodes = FakeEngine().nodes
    for index in (1, 2):
        provenance = Provenance("model", "corpus", 4, 4, "test", "0", shard=f"{index}/2")
        out = tmp_path / f"{index}.npz"
        observe(FakeEngine(), nodes, stream_of(samples_of(3)), provenance, out, importance=Importance())
    merged = verbs.merge([tmp_path / "1.npz", tmp_path / "2.npz"], tmp_path / "both.npz")
    matrix = verbs.imatrix([tmp_path / "both.imatrix.gguf"]).summary
    assert matrix.chunk_count == merged.n_chunks
    assert "1 of 2 shards" not in caplog.text
    verbs.merge([tmp_path / "1.npz"], tmp_path / "one.npz")
    assert "one.npz holds 1 of 2 shards of its text alone" in caplog.text


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "a/b", "1/0", "-1/2"])
def test_a_shard_that_makes_no_sense(text: str) -> None:
    with pytest.raises(InputError, match=r"write i/n"):
        Shard.parse(text)


# --- what was asked for ----------------------------------------------------------------------------------------------


def test_the_same_data_is_the_same_whatever_it_is_called_from(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text\n")
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(20)))
    asked = Request(file=(str(tmp_path / "a.txt"),), domain=(f"rows={tmp_path}/b.jsonl:5",), seed=1)
    first, again = open_request(asked), open_request(asked)
    assert first.identity == again.identity
    assert [record.domain for record in first.records] == ["a", "rows"]
    assert first.chunk_length(0) == 2048
    assert first.chunk_length(64) == 64
    assert open_request(Request(file=asked.file)).chunk_length(0) == 512
    others = [
        Request(file=asked.file, domain=asked.domain, seed=2),
        Request(file=asked.file, domain=(f"rows={tmp_path}/b.jsonl:6",), seed=1),
        Request(file=asked.file, domain=(f"lines={tmp_path}/b.jsonl:5",), seed=1),
        Request(file=asked.file, domain=asked.domain, seed=1, reading=Reading(packing=False)),
        Request(file=asked.file, domain=asked.domain, seed=1, reading=Reading(n_chunks=3)),
    ]
    assert len({first.identity, *(open_request(other).identity for other in others)}) == 6
    (tmp_path / "a.txt").write_text("some texT\n")
    assert open_request(asked).identity != first.identity


def test_what_contradicts_itself_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.arange(8))
    with pytest.raises(InputError, match=r"both text and token ids"):
        open_request(Request(file=("a.txt",), tokens=tmp_path / "ids.npy"))
    with pytest.raises(InputError, match=r"token ids tell no speaker"):
        open_request(Request(tokens=tmp_path / "ids.npy", reading=Reading(count="assistant")))
    with pytest.raises(InputError, match=r"names no domain; write NAME=SPEC"):
        open_request(Request(domain=("data.jsonl",)))
    with pytest.raises(InputError, match=r"no data was given"):
        open_request(Request())


def test_the_built_in_mix_says_how_to_do_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"no text was given, .*; to try out without network: --offline-default"):
        verbs.data.open_data(None)


# Nothing that was given is dropped without a word.


def test_a_limit_of_chunks_is_spread_over_files_and_told(tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    for name, times in (("a", 4), ("b", 50), ("c", 500), ("d", 0)):
        (folder / f"{name}.txt").write_text(f"{name} has much to say. " * times)
    engine, file = FakeEngine(), open_gguf(tiny_gguf.qwen3moe(tmp_path / "m.gguf"))

    def read(n_chunks: int | None, *more: str, seed: int = 0) -> tuple[list[str], str]:
        opened = open_request(Request((str(folder),), domain=more, reading=Reading(n_chunks=n_chunks), seed=seed))
        with opened.chunks(engine, file, 64) as chunks:
            said = ["".join(map(chr, chunk.tokens)) for chunk in chunks]
            assert len(said) == n_chunks or n_chunks is None
            return said, "\n".join(chunks.notes())

    everything, notes = read(None)
    assert "--chunks" not in notes
    said, notes = read(20)
    of_a, of_b, of_c = ("".join(said).count(f"{name} has") for name in "abc")
    assert of_a == 4, "all of the short one"
    assert abs(of_b - of_c) <= 3, "and the others alike"
    assert f"{folder}: --chunks 20 takes its files in turn, and of 4 came to 3" in notes
    assert "of 4 came to 2" in read(2)[1]
    assert len({tuple(read(2, seed=seed)[0]) for seed in range(9)}) > 1, "which ones is drawn by the seed"
    assert len("".join(everything)) > len("".join(said))
    assert sorted("".join(read(len(everything))[0])) == sorted("".join(everything)), "nothing is lost by turns"
    (tmp_path / "x.txt").write_text("x" * 5000)
    (tmp_path / "y.txt").write_text("y" * 5000)
    same = (f"two={tmp_path}/x.txt", f"two={tmp_path}/y.txt")
    assert "nothing of it" not in read(4, *same)[1]
    more = (*same, *(f"two={tmp_path}/{name}.txt" for name in "xy"))
    assert f"{tmp_path}/y.txt: nothing of it is among the 2 chunks that --chunks allows" in read(2, *more)[1]
    with pytest.raises(InputError, match="--chunks 1 for 2 domains: some would not be read at all; give 2 or more"):
        read(1, *same)


def test_files_in_turn_are_held_open_by_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "MOST_OPEN", 2)
    events: list[str] = []

    def file(name: str, n_tokens: int) -> Iterator[Piece]:
        events.append(f"{name} begins")
        yield Piece(np.full(n_tokens, ord(name), np.int32), np.ones(n_tokens, np.bool_), 0, opens=True)
        events.append(f"{name} ends")

    pieces = list(turns.in_turn([file("a", 9), file("b", 3), file("c", 5)], 4))
    assert [(chr(piece.tokens[0]), len(piece.tokens)) for piece in pieces] == [
        ("a", 4),
        ("b", 3),
        ("c", 4),
        ("a", 4),
        ("c", 1),
        ("a", 1),
    ]
    assert [piece.opens for piece in pieces] == [True, True, True, False, False, False]
    assert events == ["a begins", "b begins", "b ends", "c begins", "c ends", "a ends"]


def test_files_of_a_folder_that_are_no_text_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "code"
    (folder / "deep").mkdir(parents=True)
    (folder / "README.md").write_text("text " * 100)
    for number in range(14):
        (folder / f"deep/{number}.py").write_text("print(1)\n")
    open_request(Request(file=(str(folder),)))
    assert "code: 1 of its files are read, 14 are not" in caplog.text
    assert f"(14 .py); to read them too: -f '{folder}/**/*.py'" in caplog.text
    caplog.clear()
    open_request(Request(file=(f"{folder}/**/*.py", f"{folder}/README.md")))
    assert caplog.text == ""


def test_a_way_of_reading_holds_for_text_that_was_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Request] = []
    monkeypatch.setattr(verbs.data, "open_request", lambda request: asked.append(request))
    verbs.data.open_data(Request(seed=3, reading=Reading(n_chunks=8)))
    verbs.data.open_data(None)
    assert [(request.seed, request.reading.n_chunks) for request in asked] == [(3, 8), (0, None)]
    assert all(request.domain == DEFAULT_SOURCES for request in asked)
    offline = verbs.data.offline_default(Request(reading=Reading(n_chunks=8)))
    assert offline.reading.n_chunks == 8
    with pytest.raises(InputError, match="both data and --offline-default were given"):
        verbs.data.offline_default(Request(file=("a.txt",)))


@pytest.mark.parametrize(
    ("flags", "expected", "asks"),
    [
        ((), Request(), False),
        (("--chunks", "4"), Request(reading=Reading(n_chunks=4)), True),
        (("--no-packing",), Request(reading=Reading(packing=False)), True),
        (("--count", "all"), Request(), True),
        (("--seed", "3"), Request(seed=3), False),
        (("-f", "a.txt"), Request(file=("a.txt",)), True),
    ],
)
def test_flags_that_say_how_to_read_are_passed_on(flags: tuple[str, ...], expected: Request, asks: bool) -> None:
    read = request(parse(["prune", "m.gguf", "--ratio", "0.2", *flags]))
    assert (read, read.asks) == (expected, asks)


def test_a_template_that_writes_nothing_is_told() -> None:
    source = Listed(talk("how many?", "forty-two"), Text("some text of the usual kind " * 20))
    named = [NamedSource("a", source, SourceRecord("a", "a"))]
    stream = Stream(FakeEngine(), named, 8, Reading(), lambda _: Rendered("", ()))
    assert len(list(stream)) == 70
    assert stream.notes() == ("a: skipped 1: the chat template writes nothing",)


def test_reasons_are_told_apart_up_to_a_number() -> None:
    """A template can refuse every conversation with words of its own."""

    def refused(conversation: Conversation) -> Rendered:
        raise Unusable(f"refused number {conversation.messages[0]['content']}")

    talks = [Conversation(({"role": "user", "content": str(number)},)) for number in range(500)]
    source = Listed(*talks, Text("some text of the usual kind " * 20))
    stream = Stream(FakeEngine(), [NamedSource("a", source, SourceRecord("a", "a"))], 8, Reading(), refused)
    list(stream)
    assert len(stream.notes()) == MOST_REASONS + 1
    assert f"a: skipped {500 - MOST_REASONS}: other reasons" in stream.notes()
