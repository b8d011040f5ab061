"""What keeps the house in order: who may import whom, how long a module may be, and who may print."""

import ast
import importlib
from itertools import pairwise
from pathlib import Path

import pytest

import ggufreap

PACKAGE = Path(ggufreap.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
# A module imports from its own row and the rows above, never from below.
ROWS = (
    ("errors", "showing", "progress", "files", "interrupts", "__init__"),
    ("decoding",),
    ("container",),
    ("architecture",),
    ("engine",),
    ("corpus", "statistics"),
    ("imatrix",),
    ("calibration", "saliency", "evaluation"),
    ("planning", "blending"),
    ("blending",),
    ("coverage",),
    ("naming", "inspection", "rewriting", "verification", "demonstration", "quantization"),
    ("reporting",),
    ("recipe",),
    ("verbs",),
    ("console",),
    ("cli",),
    ("__main__",),
)
RANK = {room: rank for rank, row in enumerate(ROWS) for room in row}
TABLE = "architecture/catalog.py"


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """The rooms that a module imports at run time, inside functions too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    only_types = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    rooms = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ImportFrom)
            and (node.module or "").startswith("ggufreap")
            and id(node) not in only_types
        ):
            parts = str(node.module).split(".")
            names = [alias.name for alias in node.names]
            rooms |= {parts[1]} if len(parts) > 1 else {name if name in RANK else "__init__" for name in names}
    return rooms


def test_every_module_has_a_row() -> None:
    assert {room_of(path) for path in MODULES} == set(RANK)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_up(path: Path) -> None:
    if path == PACKAGE / "__init__.py":  # the facade hands the verbs out, on first use
        return
    for room in imports_of(path):
        assert RANK[room] <= RANK[room_of(path)], f"{path.name} imports {room}"


def test_no_room_imports_in_a_circle() -> None:
    for row in ROWS:
        needs = {room: set().union(*(imports_of(path) for path in MODULES if room_of(path) == room)) for room in row}
        for first, second in pairwise([*row, *row]):
            assert not (second in needs[first] and first in needs[second]) or first == second


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_holds_one_idea(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 320 or str(path.relative_to(PACKAGE)) == TABLE
    assert ast.get_docstring(ast.parse("\n".join(lines)))


def test_only_the_console_prints() -> None:
    for path in MODULES:
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        assert not any(isinstance(call.func, ast.Name) and call.func.id == "print" for call in calls), path


def test_the_verbs_are_functions_whatever_was_imported_before() -> None:
    verbs = importlib.import_module("ggufreap.verbs")
    for name in set(ggufreap.__all__) - {"__version__"}:
        assert getattr(ggufreap, name) is getattr(verbs, name)
