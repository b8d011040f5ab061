"""The data files of the architecture room against the tables of the code, the README, and llama.cpp's sources.

`LLAMA_CPP_SOURCE` names the llama.cpp inside the source distribution of the version that the files are about; without
it the tests of files and lines are skipped.
"""

import os
import re
from pathlib import Path

import architecture_table
import pytest
import tiny_rows
from architecture_table import COMMAND, README, facts

from ggufreap.architecture.catalog import ARCHITECTURES, EXPERT_WIDTH, SharedWidth
from ggufreap.architecture.metadata import KNOWN_EXPERT_KEYS, REFUSED_IF_SET
from ggufreap.architecture.roles import ROLES

KNOWN, KEYS, TENSORS = facts("architectures"), facts("keys"), facts("tensors")
FILE_AND_LINES = re.compile(r"[\w-]+\.cpp:\d+(-\d+)?")
# Attribute of an entry -> the values it may have.
VALUES: dict[str, set[object]] = {
    "gating": {"softmax", "sigmoid", "softmax over selected", "sqrt softplus", "key"},
    "selection_bias": {"optional", "required"},
    "scaled": {True},
    "ff_from_used": {True},
    "width_key": {"feed_forward_length"},
    "shared_width": {kind.value for kind in SharedWidth if kind is not SharedWidth.OWN},
    "mtp": {"dense", "experts"},
    "mtp_absent": {"loads", "fails", "trunk"},
}
TEXTS = {"source", "tensors", "gating_default", "mtp_source", "shared_source", "note"}

SOURCE = os.environ.get("LLAMA_CPP_SOURCE")
against_sources = pytest.mark.skipif(SOURCE is None, reason="LLAMA_CPP_SOURCE does not name llama.cpp's sources")


def test_code_and_data_know_the_same_names() -> None:
    assert KNOWN.keys() == ARCHITECTURES.keys()
    assert TENSORS.keys() == {role.name for role in ROLES}
    about_experts = {key for key in KEYS if "expert" in key or key in REFUSED_IF_SET}
    assert about_experts == KNOWN_EXPERT_KEYS | REFUSED_IF_SET.keys()
    assert {key for key, row in KEYS.items() if row["pruning"] == "refused"} == REFUSED_IF_SET.keys()
    assert {key for key, row in KEYS.items() if row["pruning"] == "set"} == {"expert_count"}
    assert {row["pruning"] for row in KEYS.values()} == {"kept", "set", "refused"}


@pytest.mark.parametrize("name", KNOWN)
def test_entries_are_well_formed(name: str) -> None:
    entry = KNOWN[name]
    for attribute, value in entry.items():
        assert attribute in TEXTS or value in VALUES[attribute], attribute
        assert value
    assert re.fullmatch(r"[\w-]+\.cpp:\d+", entry["source"])
    assert FILE_AND_LINES.fullmatch(entry["tensors"])
    assert "gating_default" not in entry or entry["gating"] == "key"
    assert {"mtp", "mtp_source", "mtp_absent"} & entry.keys() in (set(), {"mtp", "mtp_source", "mtp_absent"})
    assert ("shared_width" in entry) == ("shared_source" in entry)
    assert "mtp_source" not in entry or FILE_AND_LINES.fullmatch(entry["mtp_source"])


def test_data_and_code_agree_where_both_speak() -> None:
    by_tensors = {name for name, entry in KNOWN.items() if entry.get("mtp_absent") == "trunk"}
    assert by_tensors == {name for name, row in ARCHITECTURES.items() if row.mtp_by_tensors}
    assert {name for name, entry in KNOWN.items() if entry.get("mtp") == "experts"} == tiny_rows.MTP.keys()
    for name, row in ARCHITECTURES.items():
        assert KNOWN[name].get("width_key", EXPERT_WIDTH) == row.width_key, name
        assert KNOWN[name].get("shared_width", "own") == row.shared_width.value, name


def test_every_note_says_where() -> None:
    for table in (KEYS, TENSORS):
        for name, entry in table.items():
            assert re.search(r"\.(cpp|h):\d+", entry["note"]), name


def test_the_readme_has_the_table_of_the_data() -> None:
    text = README.read_text(encoding="utf-8")
    assert text == architecture_table.renewed(text), f"README.md and what is known differ; run: {COMMAND}"


# Against llama.cpp's sources.

CITED = re.compile(r"([\w./-]+\.(?:cpp|h|py))?:(\d+(?:-\d+)?(?:, \d+(?:-\d+)?)*)")
CALL = re.compile(r"(?<!//)\bbuild_moe_ffn\(")
GATINGS = {
    "SOFTMAX": "softmax",
    "SIGMOID": "sigmoid",
    "SOFTMAX_WEIGHT": "softmax over selected",
    "SQRT_SOFTPLUS": "sqrt softplus",
}


def source(name: str) -> list[str]:
    """The lines of the file that a citation means."""
    candidates = [Path(str(SOURCE), folder, name) for folder in ("src/models", "src", "")]
    found = next((path for path in candidates if path.is_file()), None)
    assert found, f"{name} is not in {SOURCE}"
    return found.read_text("utf-8").splitlines()


def citations(text: str) -> set[tuple[str, int, int]]:
    """Every place that `text` names: file, first and last line."""
    found, name = set(), ""
    for file, spans in CITED.findall(text):
        name = file or name
        for span in spans.split(", "):
            first, _, last = span.partition("-")
            found.add((name, int(first), int(last or first)))
    return found


def cited(place: str) -> str:
    """The text of one place."""
    ((name, first, last),) = citations(place)
    return "\n".join(source(name)[first - 1 : last])


def call(place: str) -> str:
    """The call that begins at the cited line, whole."""
    ((name, first, _),) = citations(place)
    rest = "\n".join(source(name)[first - 1 :])
    start = CALL.search(rest)
    assert start, place
    assert "\n" not in rest[: start.start()], f"no call of build_moe_ffn begins at {place}"
    depth = 1
    for end, letter in enumerate(rest[start.end() :], start.end()):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if depth == 0:
            return rest[start.start() : end]
    raise AssertionError(f"the call at {place} has no end")


def everything_said() -> str:
    entries = [entry for table in (KNOWN, KEYS, TENSORS) for entry in table.values()]
    texts = [str(value) for entry in entries for value in entry.values()]
    texts += [
        row.refuse + row.mtp_drop_refuse + row.refuse_width + row.dense_as_wide + "".join(row.refuse_counts.values())
        for row in ARCHITECTURES.values()
    ]
    texts += [*REFUSED_IF_SET.values(), *(role.reason for role in ROLES), README.read_text("utf-8")]
    return "\n".join(texts)


@against_sources
def test_every_place_exists() -> None:
    places = citations(everything_said())
    assert len(places) > 300
    for name, first, last in sorted(places):
        assert 0 < first <= last <= len(source(name)), (name, first, last)
        assert source(name)[first - 1].strip(), f"{name}:{first} is empty"


@against_sources
def test_llama_cpp_knows_every_name() -> None:
    names = "\n".join(source("llama-arch.cpp"))
    assert [name for name in KNOWN if f'"{name}"' not in names] == []
    assert [key for key in KEYS if f'"%s.{key}"' not in names] == []


@against_sources
def test_every_call_of_build_moe_ffn_is_named() -> None:
    calls = {
        (path.name, number)
        for path in Path(str(SOURCE), "src/models").glob("*.cpp")
        for number, line in enumerate(source(path.name), 1)
        if CALL.search(line)
    }
    assert len(calls) > 50
    assert calls - {(name, first) for name, first, _ in citations(everything_said())} == set()


@against_sources
@pytest.mark.parametrize("name", [name for name in KNOWN if name != "refact"])  # has no such call
def test_an_entry_says_what_the_sources_do(name: str) -> None:
    entry = KNOWN[name]
    asked, created = call(entry["source"]), cited(entry["tensors"])
    constant = re.search(r"LLAMA_EXPERT_GATING_FUNC_TYPE_(\w+)", asked)
    # Two read the key and refuse whatever is not SQRT_SOFTPLUS.
    assert entry["gating"] in ({GATINGS[constant[1]]} if constant else {"key", "sqrt softplus"})
    assert entry.get("scaled", False) == ("_exps_s" in asked)
    bias = re.search(r"LLM_TENSOR_FFN_EXP_PROBS_B,.*", created)
    assert entry.get("selection_bias") == (
        None if bias is None else "optional" if "NOT_REQUIRED" in bias[0] else "required"
    )
    assert "LLM_TENSOR_FFN_GATE_INP" in created
    assert "LLM_TENSOR_FFN_DOWN_EXPS" in created
    ((file, _, _),) = citations(entry["tensors"])
    assert entry.get("ff_from_used", False) == bool(re.search(r"n_ff / \(?n_expert_used", "\n".join(source(file))))


@against_sources
@pytest.mark.parametrize("name", [name for name in KNOWN if not ARCHITECTURES[name].refuse])
def test_an_entry_says_by_what_experts_and_shared_experts_are_sized(name: str) -> None:
    entry = KNOWN[name]
    down = re.search(r"LLM_TENSOR_FFN_DOWN_EXPS.*", cited(entry["tensors"]))
    assert down
    assert ("n_ff_exp" in down[0]) == ("width_key" not in entry)
    if shared := entry.get("shared_source"):
        width = "n_ff(" if "width_key" in entry else "n_ff_exp"
        assert width in cited(shared)


@against_sources
@pytest.mark.parametrize("name", [name for name, entry in KNOWN.items() if entry.get("mtp") == "experts"])
def test_mtp_experts_are_run_or_loaded_where_the_entry_says(name: str) -> None:
    place = KNOWN[name]["mtp_source"]
    ((_, first, last),) = citations(place)
    assert call(place) if first == last else "LLM_TENSOR_FFN_DOWN_EXPS" in cited(place)
