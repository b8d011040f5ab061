"""The text that every Python carries: two sides without a common document, cut to size, or a clear refusal."""

import hashlib
import sysconfig
from pathlib import Path

import pytest

from ggufreap.corpus import standard_library as text
from ggufreap.errors import InputError


@pytest.fixture(scope="module")
def sides() -> tuple[dict[str, text.Documents], dict[str, text.Documents]]:
    return text._documents(held_out=False), text._documents(held_out=True)


Sides = tuple[dict[str, text.Documents], dict[str, text.Documents]]


@pytest.mark.parametrize("domain", text.SHARES)
def test_the_sides_share_no_document(sides: Sides, domain: str) -> None:
    training, held_out = (dict(side[domain]) for side in sides)
    assert training
    assert held_out
    if domain != "arithmetic":  # pages of exercises have numbers for names
        assert not training.keys() & held_out.keys()
    common = set(training.values()) & set(held_out.values())
    assert max(map(len, common), default=0) < 50, "an __init__.py of one comment"


def test_the_sides_share_no_exercise(sides: Sides) -> None:
    training, held_out = ({line for _, page in side["arithmetic"] for line in page.split("\n")} for side in sides)
    assert not training & held_out
    for line in [*sorted(training)[::500], *sorted(held_out)[::50]]:
        exercise, answer = line.split(" = ")
        assert eval(exercise) == int(answer)


def test_no_paragraph_of_a_held_out_topic_is_trained_on(sides: Sides) -> None:
    def paragraphs(side: dict[str, text.Documents]) -> set[str]:
        topics = [document for name, document in side["prose"] if not name.endswith(" docstrings")]
        return {" ".join(part.split()) for document in topics for part in document.split("\n\n")} - {""}

    training, held_out = map(paragraphs, sides)
    assert not training & held_out


def test_a_package_is_on_one_side_with_all_its_names(sides: Sides) -> None:
    training, held_out = ({name.split("/")[0].lstrip("_") for name, _ in side["code"]} for side in sides)
    assert not training & held_out
    for one, other in (("datetime", "_pydatetime"), ("re", "sre_parse"), ("re", "sre_compile"), ("io", "_pyio")):
        assert text._is_held_out(one) == text._is_held_out(other.lstrip("_").removeprefix("py")), (one, other)


def test_about_a_tenth_is_held_out(sides: Sides) -> None:
    training, held_out = (sum(len(document) for _, document in side["code"]) for side in sides)
    assert 0.05 < held_out / (training + held_out) < 0.2


@pytest.mark.parametrize("max_bytes", [0, 1, 5_000, 60_001])
def test_the_limit_is_in_bytes_and_is_used(max_bytes: int) -> None:
    for made in (text.calibration_text(max_bytes), text.held_out_text(max_bytes)):
        # At most one letter is cut off at the end.
        assert max_bytes - 3 <= len(made.encode()) <= max_bytes


def test_the_text_holds_all_domains_and_no_common_line() -> None:
    calibration, held_out = text.calibration_text(150_000), text.held_out_text(60_000)
    for made in (calibration, held_out):
        lines = made.splitlines()
        assert sum(line.lstrip().startswith(("def ", "return", "import ", "self.")) for line in lines) > 50
        assert sum(" = " in line and line[0].isdigit() for line in lines if line) > 100
    passages, others = (set(made.split("\n\n")) for made in (calibration, held_out))
    assert not {part for part in passages & others if len(part) > 100}


def test_the_same_installation_gives_the_same_text() -> None:
    first, second = (hashlib.sha256(text.calibration_text(20_000).encode()).digest() for _ in range(2))
    assert first == second
    assert text.calibration_text(20_000).startswith(text.calibration_text(5_000))


def test_training_text_is_the_training_side(sides: Sides) -> None:
    assert list(text.training_text()) == [(domain, page) for domain, pages in sides[0].items() for _, page in pages]


# Installations that lack it.


def stdlib_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(folder) if name == "stdlib" else "")


@pytest.mark.parametrize("case", ["missing", "empty", "compiled"])
def test_a_library_without_source_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    folder = tmp_path / "lib"
    if case != "missing":
        folder.mkdir()
    if case == "compiled":
        for number in range(200):
            (folder / f"m{number}.pyc").write_bytes(b"\0")
    stdlib_at(folder, monkeypatch)
    for make in (text.calibration_text, text.held_out_text):
        with pytest.raises(
            InputError, match=r"0 source files .* at least 100; use a Python installed with its \.py files"
        ):
            make(1000)


def test_a_library_without_documentation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pydoc_data.topics", None)
    with pytest.raises(InputError, match="the demo text needs Python's built-in documentation"):
        text.calibration_text(1000)


def test_what_is_no_library_code_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(120):
        (tmp_path / f"module{number}.py").write_text("x = 1\n")
    (tmp_path / "huge.py").write_text("#" * (text.MAX_FILE_BYTES + 1))
    (tmp_path / "_sysconfigdata_linux.py").write_text("secret = '/home/someone'\n")
    (tmp_path / "binary.so").write_bytes(b"\0")
    for folder in ("site-packages", "test", "package", "package/tests", "no_package"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("y = 1\n")
    (tmp_path / "no_package" / "__init__.py").rename(tmp_path / "no_package" / "data.py")
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9\n")
    stdlib_at(tmp_path, monkeypatch)
    names = {name for _, name, _ in text._sources()}
    assert names == {*(f"module{number}.py" for number in range(120)), "package/__init__.py", "latin.py"}
