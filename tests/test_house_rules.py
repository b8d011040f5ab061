"""What keeps the house in order: who may import whom, how long modules and functions may be, and who may print."""

import ast
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import ggufreap

PACKAGE = Path(ggufreap.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
MODULE_LINES, FUNCTION_LINES = 300, 60
# What is longer than it may be -> its length. Entries go, and their numbers only fall.
LONG_MODULES: dict[str, int] = {}
LONG_FUNCTIONS: dict[str, int] = {}
# A module imports from its own row and the rows above, never from below.
ROWS = (
    (
        "errors",
        "showing",
        "progress",
        "process",
        "interrupts",
        "activity",
        "supervision",
        "files",
        "cache",
        "memory",
        "units",
        "version",
        "limits",
        "__init__",
    ),
    ("options",),
    ("decoding",),
    ("container",),
    ("architecture",),
    ("engine",),
    ("corpus", "observation"),
    ("imatrix",),
    ("saliency", "evaluation", "evidence"),
    ("planning", "blending"),
    ("narrowing",),
    ("coverage", "model", "selection"),
    ("naming", "handover", "inspection", "finding", "rewriting", "verification", "quantization"),
    ("sizing",),
    ("reporting",),
    ("recipe",),
    ("fitting",),
    ("judging",),
    ("verbs",),
    ("demonstration",),
    ("console",),
    ("cli",),
    ("__main__",),
)
RANK = {room: rank for rank, row in enumerate(ROWS) for room in row}
Graph = Mapping[str, set[str]]


def place_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    return module.partition(".")[2].partition(".")[0] or "__init__"


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in MODULES:
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def imports() -> dict[str, set[str]]:
    """Module -> the modules that it imports, those inside functions and for types alone included."""
    names = {name_of(path) for path in MODULES}
    found: dict[str, set[str]] = {}
    for path, tree in trees():
        wanted = found.setdefault(name_of(path), set())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                wanted |= {name if name in names else str(node.module) for name in inside}
        wanted &= names
    return found


def circles(graph: Graph) -> list[list[str]]:
    """The strongly connected components of more than one node, and nodes that point at themselves."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        ahead = [start]
        while ahead:
            new = graph[ahead.pop()] - seen
            seen |= new
            ahead += new
        return seen

    reach = {node: reached(node) for node in graph}
    found = {frozenset(other for other in reach[node] if node in reach[other]) for node in graph}
    return sorted(sorted(component) for component in found if component)


IMPORTS = imports()


def test_every_module_has_a_row() -> None:
    assert {room_of(module) for module in IMPORTS} == set(RANK)


@pytest.mark.parametrize("module", IMPORTS)
def test_imports_go_up(module: str) -> None:
    if module == "ggufreap":  # the facade hands the verbs out, on first use
        return
    for other in IMPORTS[module]:
        assert RANK[room_of(other)] <= RANK[room_of(module)], f"{module} imports {other}"


def test_no_module_imports_in_a_circle() -> None:
    assert circles(IMPORTS) == []


def test_no_room_imports_in_a_circle() -> None:
    rooms: dict[str, set[str]] = {room: set() for room in RANK}
    for module, others in IMPORTS.items():
        rooms[room_of(module)] |= {room_of(other) for other in others} - {room_of(module)}
    assert circles(rooms) == []


def test_circles_are_found_at_any_length() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"e", "a"}}
    assert circles(graph) == [["a", "b", "c"], ["e"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def check_lengths(lengths: Mapping[str, int], most: int, known: Mapping[str, int]) -> None:
    too_long = {name: length for name, length in lengths.items() if length > known.get(name, most)}
    assert too_long == {}, f"at most {most} lines; divide them, do not list them"
    done = sorted(name for name in known if lengths.get(name, 0) <= most)
    assert done == [], "short enough or gone: take these out of the list"


def test_a_module_holds_one_idea() -> None:
    check_lengths(
        {place_of(path): len(path.read_text("utf-8").splitlines()) for path in MODULES}, MODULE_LINES, LONG_MODULES
    )


def test_a_function_fits_on_a_page() -> None:
    lengths: dict[str, int] = {}  # of the longest, where a module has several functions of a name
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{place_of(path)} {node.name}"
                lengths[name] = max(lengths.get(name, 0), int(node.end_lineno or 0) - node.lineno + 1)
    check_lengths(lengths, FUNCTION_LINES, LONG_FUNCTIONS)


def test_the_lists_of_what_is_too_long_only_shrink() -> None:
    check_lengths({"a": 61, "b": 60}, 60, {"a": 61})
    for known in ({}, {"a": 60}, {"a": 61, "b": 60}, {"a": 61, "gone": 70}):
        with pytest.raises(AssertionError):
            check_lengths({"a": 61, "b": 60}, 60, known)


def test_every_module_says_what_it_is() -> None:
    assert [place_of(path) for path, tree in trees() if not ast.get_docstring(tree)] == []


def test_only_the_console_prints() -> None:
    for path, tree in trees():
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        assert not any(isinstance(call.func, ast.Name) and call.func.id == "print" for call in calls), path


def test_the_verbs_are_functions_whatever_was_imported_before() -> None:
    verbs, demonstration = (importlib.import_module(f"ggufreap.{room}") for room in ("verbs", "demonstration"))
    for name in set(ggufreap.__all__) - {"__version__"}:
        if not name[0].isupper():  # an option
            assert getattr(ggufreap, name) is getattr(demonstration if name == "demo" else verbs, name)
