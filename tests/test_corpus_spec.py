"""What names a source of samples is read as it was meant, or refused with the character where it went wrong."""

import re
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ggufreap.corpus.spec import SourceSpec, domain_names, is_local, parse_sources, suffix_of
from ggufreap.errors import InputError

MOST = 9_999_999_999


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory where nothing exists."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("o/n", SourceSpec("o/n")),
        ("squad", SourceSpec("squad")),
        ("theblackcat102/evol-codealpaca-v1:250", SourceSpec("theblackcat102/evol-codealpaca-v1", samples=250)),
        ("o/n[code]:250", SourceSpec("o/n", subset="code", samples=250)),
        ("NeelNanda/pile-10k(train[:256])", SourceSpec("NeelNanda/pile-10k", split="train[:256]")),
        ("o/n@v1.2[s, t](train+test[-10%:]):7", SourceSpec("o/n", "v1.2", "s, t", "train+test[-10%:]", 7)),
        ("o/n@refs/convert/parquet", SourceSpec("o/n", "refs/convert/parquet")),
        ("code=o/n[x]", SourceSpec("o/n", subset="x", domain="code")),
        ("./my file.jsonl:100", SourceSpec("./my file.jsonl", samples=100)),
        ("rows.JSON.gz", SourceSpec("rows.JSON.gz")),
        ("data/*.txt", SourceSpec("data/*.txt")),
        ("data/[ab]*.txt:4", SourceSpec("data/[ab]*.txt", samples=4)),
        ("../corpus[code](test)", SourceSpec("../corpus", subset="code", split="test")),
        ("~/a@b.txt", SourceSpec("~/a@b.txt")),
        (r"./a\,b\=c\ ", SourceSpec("./a,b=c ")),
        ("./a:b", SourceSpec("./a:b")),
    ],
)
def test_the_grammar(text: str, expected: SourceSpec) -> None:
    assert parse_sources(text) == (expected,)
    assert parse_sources(str(expected)) == (expected,)


def test_a_list_is_split_at_commas_outside_of_brackets() -> None:
    found = parse_sources("a/b:250, c/d[e,f]:3,./g.txt ,x=h/i(train)")
    assert [str(spec) for spec in found] == ["a/b:250", "c/d[e,f]:3", "./g.txt", "x=h/i(train)"]


def test_what_exists_is_local_whatever_its_name(elsewhere: Path) -> None:
    for name in ("train", "a=b:3", "x(1)", "wiki.test.raw"):
        (elsewhere / name).touch()
        assert parse_sources(name) == (SourceSpec(name),)
        assert is_local(name)
    assert parse_sources("train:5") == (SourceSpec("train", samples=5),)
    assert parse_sources("d=x(1):5") == (SourceSpec("x(1)", samples=5, domain="d"),)
    assert not is_local("test")


@pytest.mark.parametrize(
    ("text", "at", "what"),
    [
        ("foo/bar:1,a(train:250", 12, "the ( is not closed"),
        ("a/b(train:250,c:10", 4, "the ( is not closed"),
        ("a[code", 2, "the [ is not closed"),
        ("a]", 2, "closes nothing"),
        ("a)", 2, "closes nothing"),
        ("a[]", 2, "the subset is empty"),
        ("a()", 2, "the split is empty"),
        ("a(train[:5)", 2, "this is no split"),
        ("a(b c)", 2, "this is no split"),
        ("a[b/c]", 2, "this is no subset"),
        ("a(train)[x]", 2, "out of order"),
        ("a:3[x]", 2, "out of order"),
        ("a[c]x", 2, "out of order"),
        ("a@", 2, "a revision"),
        ("a@b@c:3", 2, "a revision"),
        ("x.txt@v1", 6, "no revision"),
        ("a,,b", 3, "a name is missing"),
        ("", 1, "a name is missing"),
        ("a, ", 3, "a name is missing"),
        ("d=", 3, "a name is missing"),
        ("=x", 1, "a domain's name"),
        ("a:0", 2, "number of samples"),
        ("a:x", 2, "number of samples"),
        ("a:٣", 2, "number of samples"),
        ("b,./a.jsonl:-5", 12, "number of samples"),
        (f"a:{10 * MOST}", 2, "number of samples"),
        ("a/b/c", 4, "owner/name"),
        ("a b", 2, "no file has this name"),
        (":5", 1, "no file has this name"),
        ("(x)", 1, "no file has this name"),
    ],
)
def test_an_error_points_at_the_character(text: str, at: int, what: str) -> None:
    with pytest.raises(InputError, match=rf"at character {at}: .* <- .*{re.escape(what)}") as caught:
        parse_sources(text)
    assert "\n" not in str(caught.value)


@given(st.text("ab/.,:[]()=@\\* \n5", max_size=20) | st.text(max_size=12))
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    try:
        specs = parse_sources(text)
    except InputError as error:
        message = str(error)
    else:
        message = ""
        assert parse_sources(",".join(map(str, specs))) == specs
    assert "\n" not in message


@st.composite
def specs(draw: st.DrawFn) -> SourceSpec:
    word = st.text("ab0_.-", max_size=5).map("x{}".format)
    anything = st.text(min_size=1, max_size=12) | st.text(",:[]()=@\\* ~5", min_size=1, max_size=12)
    bound = st.none() | st.builds("{}{}".format, st.integers(-999, 999), st.sampled_from(["", "%"]))
    part = st.builds(lambda name, a, b: f"{name}[{a or ''}:{b or ''}]", word, bound, bound) | word
    hub = draw(st.booleans())
    name = draw(st.builds("{}/{}".format, word, word) if hub else anything.map("./{}".format))
    assume(hub != is_local(name))
    return SourceSpec(
        name,
        draw(st.none() | word) if hub else None,
        draw(st.none() | st.text("aé ,=@.-", min_size=1, max_size=6)),
        draw(st.none() | st.lists(part, min_size=1, max_size=3).map("+".join)),
        draw(st.none() | st.integers(1, MOST)),
        draw(st.none() | word),
    )


@settings(max_examples=50, deadline=None)
@given(st.lists(specs(), min_size=1, max_size=4))
def test_a_spec_names_itself(found: list[SourceSpec]) -> None:
    assert parse_sources(",".join(map(str, found))) == tuple(found)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "a b"},
        {"name": ""},
        {"name": "a/b/c"},
        {"name": "a", "revision": ""},
        {"name": "a", "subset": "x]"},
        {"name": "a", "split": "train[0:1"},
        {"name": "a", "samples": 0},
        {"name": "a", "samples": MOST + 1},
        {"name": "a", "domain": "b/c"},
        {"name": "./a", "revision": "main"},
    ],
)
def test_a_spec_that_no_text_can_name_is_refused(fields: dict[str, str]) -> None:
    with pytest.raises(InputError):
        SourceSpec(**fields)  # type: ignore[arg-type]


def test_the_parts_of_a_split() -> None:
    (spec,) = parse_sources("a(train[:10%]+dev+test[-3:])")
    assert [(part.split, part.start, part.stop) for part in spec.slices()] == [
        ("train", None, "10%"),
        ("dev", None, None),
        ("test", "-3", None),
    ]
    assert SourceSpec("a").slices() == ()


def test_domains_have_names_of_their_own() -> None:
    listed = "o/n[code],o/m,m.jsonl.gz,m-2=p/q,data/*.txt,corpus/,code=x/y,code=x/z,./*"
    assert domain_names(parse_sources(listed)) == (
        "code-2", "m", "m-3", "m-2", "data", "corpus", "code", "code", "text",
    )  # fmt: skip


def test_suffixes() -> None:
    assert suffix_of("a.b.jsonl.zst") == (".jsonl", ".zst")
    assert suffix_of("A.TXT") == (".txt", "")
    assert suffix_of("a.gz") == suffix_of("atxt") == ("", "")
