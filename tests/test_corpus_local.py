"""Local files are read as they stand, in bounded memory, and what is wrong with them is counted or refused."""

import gzip
import io
import json
import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from ggufreap.corpus import local, streams
from ggufreap.corpus.local import LocalFiles
from ggufreap.corpus.rows import EMPTY
from ggufreap.corpus.samples import Text, Unusable
from ggufreap.errors import InputError

ROWS = [{"text": f'row {number}, "quoted"\n[é]'} for number in range(100)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def values(path: Path) -> list[Any]:
    """What a file holds; reasons are strings."""
    found = [entry.value for entry in LocalFiles.find(str(path)).entries()]
    return [str(value) if isinstance(value, Unusable) else value for value in found]


def zst(data: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def csv_of(rows: list[dict[str, str]]) -> bytes:
    return ("text,n\r\n" + "".join('"' + row["text"].replace('"', '""') + '",007\r\n' for row in rows)).encode()


CONTENTS = {
    "rows.jsonl": LINES.encode(),
    "rows.json": json.dumps(ROWS, indent=1).encode(),
    "lines.json": LINES.encode(),
    "rows.csv": csv_of(ROWS),
}


@pytest.mark.parametrize("pack", [("", bytes), (".gz", gzip.compress), (".zst", zst)], ids=["plain", "gz", "zst"])
@pytest.mark.parametrize("name", CONTENTS)
def test_rows_are_the_same_in_every_format(tmp_path: Path, name: str, pack: tuple[str, Any]) -> None:
    path = tmp_path / (name + pack[0])
    path.write_bytes(pack[1](CONTENTS[name]))
    expected = [{**row, "n": "007"} for row in ROWS] if name.endswith("csv") else ROWS
    assert values(path) == expected
    positions = [entry.position for entry in LocalFiles.find(str(path)).entries()]
    assert positions == sorted(positions)
    assert positions[-1] <= path.stat().st_size


def test_parquet_is_read_by_datasets(tmp_path: Path) -> None:
    path = tmp_path / "odd [1]*.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([{**row, "list": [{"role": "user"}]} for row in ROWS]), path)
    assert values(path) == [{**row, "list": [{"role": "user"}]} for row in ROWS]
    assert [entry.position for entry in LocalFiles.find(str(path)).entries()][-1] == path.stat().st_size
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=r"cannot read .*odd \[1\]\*\.parquet as Parquet: .*; download it again"):
        values(path)


def test_bad_rows_are_counted_where_they_stand(tmp_path: Path) -> None:
    good = b'{"text": "x"}\n'
    bad = [b'{"text": "\xff"}\n', b'{"text": \n', b"[1]\n", b"3\n", b"[" * 200_000 + b"\n"]
    (tmp_path / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + good + b" \n" + b"".join(bad) + b'"y"\n' + good.strip())
    found = list(LocalFiles.find(str(tmp_path / "rows.jsonl")).entries())
    reasons = [local.NOT_UTF8, local.NOT_JSON, local.NOT_OBJECT, local.NOT_OBJECT, local.TOO_MUCH]
    assert values(tmp_path / "rows.jsonl") == [{"text": "x"}, *reasons, {"text": "y"}, {"text": "x"}]
    assert [entry.place for entry in found] == [f"rows.jsonl:{number}" for number in (1, 3, 4, 5, 6, 7, 8, 9)]


def test_an_array_that_is_cut_off_or_wrong_inside(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('  [{"text": "a"},, {"text": nope}, ["b"], "c", {"text": "d', encoding="utf-8")
    bad = local.NOT_JSON
    assert values(tmp_path / "rows.json") == [{"text": "a"}, bad, bad, local.NOT_OBJECT, {"text": "c"}, bad]


JSON = st.recursive(
    st.none() | st.integers() | st.text('"\\[]{},é\n a', max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('"\\{', max_size=3), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=60)
@given(st.lists(JSON, max_size=5), st.integers(1, 9) | st.just(4096), st.booleans(), st.sampled_from([None, 1]))
def test_the_elements_of_an_array(data: list[Any], block: int, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(data, ensure_ascii=ascii_only, indent=indent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "_BLOCK", block)
        found = list(streams.elements(io.BufferedReader(io.BytesIO(f" {text} \n".encode()))))  # type: ignore[arg-type]
    assert [json.loads(element) for element in found if isinstance(element, bytes)] == data


def test_csv_keeps_what_it_can(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b'\xef\xbb\xbftext,b\nNA,1,2\n\n"two\nlines",\nx\n')
    assert values(tmp_path / "rows.csv") == [
        {"text": "NA", "b": "1", "": ["2"]},
        {"text": "two\nlines", "b": ""},
        {"text": "x", "b": None},
    ]


# Texts.


@settings(max_examples=60, deadline=None)
@given(st.text("ab \n\té", max_size=200), st.integers(1, 30), st.integers(1, 9))
def test_pieces_are_the_text_cut_where_no_word_is(text: str, piece: int, blocks: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "PIECE", piece)
        patch.setattr(streams, "LONGEST", piece * blocks)
        file = io.BufferedReader(io.BytesIO(text.encode()))  # type: ignore[arg-type]
        found = list(streams.pieces(file, Path("x.txt")))
    assert "".join(part.text for part in found) == text
    assert [part.continues for part in found] == [True] * (len(found) - 1) + [False]
    assert all(part.text for part in found[1:])
    for part, after in pairwise(found):
        broken = part.text.endswith("\n") and not after.text[0].isspace()
        assert broken or len(part.text) >= piece
        assert len(part.text) <= piece * (blocks + 1)


def test_a_long_text_comes_in_pieces_that_end_lines(tmp_path: Path) -> None:
    text = "".join(f"line {number}\n\n  indented é\n" for number in range(200_000))
    (tmp_path / "long.txt").write_text(text, encoding="utf-8")
    found = values(tmp_path / "long.txt")
    assert "".join(part.text for part in found) == text
    assert [part.continues for part in found] == [True] * (len(found) - 1) + [False]
    assert all(streams.PIECE <= len(part.text) < 2 * streams.PIECE and part.text.endswith("é\n") for part in found[:-1])
    assert all(part.text.startswith("line ") for part in found)


def test_a_text_is_read_as_it_stands(tmp_path: Path) -> None:
    text = "\ufeffzwölf\r\n\x01 \u2028\n\n"
    for name, pack in (("a", bytes), ("a.md", bytes), ("a.txt.gz", gzip.compress), ("a.txt.zst", zst)):
        (tmp_path / name).write_bytes(pack(text.encode()))
        assert values(tmp_path / name) == [Text(text)]
    (tmp_path / "a").write_bytes(b" \n")
    assert values(tmp_path / "a") == [EMPTY]


@pytest.mark.parametrize("at", [0, 5, streams.PIECE - 1, streams.PIECE, 3 * streams.PIECE + 7])
@pytest.mark.parametrize("bad", [b"\xff", b"\xc3"], ids=["wrong", "unfinished"])
def test_what_is_not_utf8_is_refused_with_its_offset(tmp_path: Path, at: int, bad: bytes) -> None:
    (tmp_path / "x.txt").write_bytes(b"abc\n" * (at // 4) + b"x" * (at % 4) + bad)
    with pytest.raises(InputError, match=rf"x\.txt is not UTF-8 text: byte {bad[0]:#x} at offset {at:,}; convert it"):
        values(tmp_path / "x.txt")


@pytest.mark.parametrize("pack", [("gz", gzip.compress), ("zst", zst)], ids=["gz", "zst"])
@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: b"not packed " + data])
def test_damaged_packing_is_refused(tmp_path: Path, pack: tuple[str, Any], damage: Any) -> None:
    path = tmp_path / f"rows.jsonl.{pack[0]}"
    path.write_bytes(damage(pack[1](LINES.encode() * 50)))
    with pytest.raises(InputError, match=r"cannot (unpack|read) .*rows\.jsonl") as caught:
        values(path)
    assert "\n" not in str(caught.value)


# Finding.


def test_folders_and_globs_are_read_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a/c.md", "a/b.jsonl", ".git/x.txt", "a/.hidden.txt", "notes.pdf", "z.txt.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        data = b'{"text": "x"}' if name.endswith("jsonl") else name.encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    found = LocalFiles.find(str(tmp_path))
    assert [entry.place for entry in found.entries()] == ["a/b.jsonl:1", "a/c.md:1", "b.txt:1", "z.txt.gz:1"]
    assert found.nbytes == sum(path.stat().st_size for path in found.paths)
    assert [entry.place for entry in LocalFiles.find(f"{tmp_path}/*/*").entries()] == ["b.jsonl:1", "c.md:1"]
    assert [path.name for path in LocalFiles.find(f"{tmp_path}/**/*.txt*").paths] == ["b.txt", "z.txt.gz"]


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    for name, message in (
        ("none.txt", r"there is no file .*none\.txt; correct the path"),
        ("*.txt", r"there is no file .*\*\.txt"),
        ("", r"the folder .* holds no file that is read \(\.txt \.md"),
    ):
        with pytest.raises(InputError, match=message):
            LocalFiles.find(f"{tmp_path}/{name}")
    with pytest.raises(InputError, match="/dev/null is no file on disk"):
        LocalFiles.find("/dev/null")
    (tmp_path / "a.parquet.gz").touch()
    with pytest.raises(InputError, match=r"compressed twice; unpack it to a\.parquet"):
        values(tmp_path / "a.parquet.gz")


def test_the_identity_is_that_of_names_and_bytes(tmp_path: Path) -> None:
    def identity(**files: str) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for name, text in files.items():
            (folder / f"{name}.txt").write_text(text, encoding="utf-8")
        return LocalFiles.find(str(folder)).identity

    assert identity(a="x", b="y") == identity(b="y", a="x")
    assert len({identity(a="x", b="y"), identity(a="y", b="x"), identity(a="xy", b=""), identity(a="x", c="y")}) == 4


def test_a_card_makes_a_repository(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    assert not local.is_repository(tmp_path)
    for text, expected in (
        ("---\nlicense: mit\nconfigs:\n- config_name: a\n---\n", True),
        ("---\ndataset_info:\n  features: []\n---\n", True),
        ("---\nlicense: mit\n---\nconfigs:\n", False),
        ("# Notes\nconfigs: none\n", False),
    ):
        card.write_text(text, encoding="utf-8")
        assert local.is_repository(tmp_path) is expected


# Memory.


def measured(path: Path) -> tuple[list[str], float]:
    """Reasons, or `read`, of what a file holds, and the most MiB that were in use on the way."""
    tracemalloc.start()
    try:
        entries = LocalFiles.find(str(path)).entries()
        found = [str(entry.value) if isinstance(entry.value, Unusable) else "read" for entry in entries]
        return found, tracemalloc.get_traced_memory()[1] / (1 << 20)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "before", "filler", "after"),
    [
        ("line.jsonl", b'{"text": "a"}\n{"text": "', b"x", b'"}\n{"text": "b"}'),
        ("element.json", b'[{"text": "a"}, {"text": "', b"x", b'"}, {"text": "b"}]'),
        ("escapes.json", b'[{"text": "a"}, {"text": "', b"\\", b'"}, {"text": "b"}]'),
        ("nested.json", b'["a", ', b"[", b""),
        ("line.csv", b"text\na\n", b"x", b"\nb\n"),
        ("lines.csv", b'text\na\n"x"', b',"\n"', b"\nb\n"),
    ],
)
def test_a_row_of_any_size_is_skipped_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, before: bytes, filler: bytes, after: bytes
) -> None:
    monkeypatch.setattr(streams, "LONGEST", 1 << 20 if len(filler) == 1 else 1 << 16)
    path = tmp_path / name
    path.write_bytes(before + filler * ((20 << 20) // len(filler) ** 4) + after)
    found, peak = measured(path)
    assert found[:2] == ["read", streams.TOO_LONG]
    assert not after or found[-1] == "read"
    assert peak < 6


def test_a_row_of_too_many_values_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'{"a": [' + b"[]," * 2_000_000 + b"[]]}\n" + b'{"text": "b", "score": NaN}\n')
    first, second = values(tmp_path / "x.jsonl")
    assert first == local.TOO_MUCH
    assert second["text"] == "b"


def test_texts_without_lines_stream_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "PIECE", 1 << 16)
    monkeypatch.setattr(streams, "LONGEST", 1 << 20)
    (tmp_path / "long.txt").write_bytes(b"x" * (20 << 20))
    assert measured(tmp_path / "long.txt")[1] < 8
