"""What is written for people: short, with commands and links that hold, and figures of the lab book."""

import re
from pathlib import Path

import pytest
from test_house_rules import RANK

from ggufreap.cli import VERBS, parse

ROOT = Path(__file__).parents[1]
README, MANUAL, HOUSE = (ROOT / name for name in ("README.md", "ggufreap/MANUAL.md", "ggufreap/README.md"))
LAB_BOOK = ROOT / "tests" / "benchmarks" / "README.md"
PAGES = (README, MANUAL, HOUSE, LAB_BOOK, ROOT / "ggufreap" / "architecture" / "README.md")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings."""
    titles = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", text_of(page), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.partition(" #")[0] for line in lines if line.startswith("ggufreap")]


def test_the_readme_is_short_and_begins_with_two_commands() -> None:
    text = text_of(README)
    assert len(text.splitlines()) < 200
    first, second = re.findall(r"```sh\n(.*?)\n```", text, re.DOTALL)[:2]
    assert first == "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/ggufreap demo"
    run = ".venv/bin/python -m pytest -n 2 --dist loadfile"
    assert second == f"python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && {run}"
    assert text.index(second) < text.index("\n## ")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_point_at_what_is_there(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text_of(page))):
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


@pytest.mark.parametrize("page", [README, MANUAL], ids=lambda page: page.name)
def test_every_command_can_be_given(page: Path) -> None:
    found = commands(page)
    assert found
    for command in found:
        assert parse(words_of(command)).verb in VERBS


def words_of(command: str) -> list[str]:
    return re.sub(r"'([^']*)'", lambda match: match[1].replace(" ", "_"), command).split()[1:]


def test_the_manual_tells_of_every_verb() -> None:
    table = {match[1] for match in re.finditer(r"^\| `(\w+)", text_of(MANUAL), re.MULTILINE)}
    assert set(VERBS) <= table


def test_every_room_is_on_the_map() -> None:
    there = text_of(HOUSE).split("```text")[1].split("```")[0]
    assert {room for room in RANK if not re.search(rf"\b{room}\b", there)} <= {"__init__", "__main__"}


def test_the_figures_of_the_readme_are_those_of_the_lab_book() -> None:
    example = text_of(README).split("## What you get")[1].split("```")[0]
    figures = set(re.findall(r"\b\d+\.\d+\b", example)) - {"3.5"}
    assert len(figures) >= 9
    for figure in figures:
        rounded = rf"\b{re.escape(figure)}\d?\b"
        assert re.search(rounded, text_of(LAB_BOOK)), figure
