"""A narrowing as a file: it comes back as it was, and nothing of a damaged one is believed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
from hypothesis import given
from hypothesis import strategies as some
from synthetic import quick
from tiny_narrow import random_narrowing, random_plan, with_columns

from ggufreap.architecture.layout import bind
from ggufreap.container import open_gguf
from ggufreap.errors import InputError, MismatchError, UnsupportedModel
from ggufreap.narrowing import Narrowing, downs_path, load_narrowing, save_narrowing
from ggufreap.narrowing.storage import as_ranges, from_ranges
from ggufreap.planning import PruningPlan


@pytest.fixture
def plan(tmp_path: Path) -> PruningPlan:
    file = open_gguf(tiny_gguf.qwen3moe(tmp_path / "m.gguf", n_embd=64, n_ff=32))
    return random_plan(file, bind(file), 12)


@pytest.fixture
def narrowing(tmp_path: Path, plan: PruningPlan) -> Narrowing:
    file = open_gguf(tmp_path / "m.gguf")
    return with_columns(file, plan, random_narrowing(file, bind(file), plan, 24))


@pytest.fixture
def stored(tmp_path: Path, plan: PruningPlan, narrowing: Narrowing) -> Path:
    path = tmp_path / "N.json"
    save_narrowing(path, narrowing, plan)
    return path


@quick
@given(some.sets(some.integers(0, 99), min_size=1).map(sorted))
def test_ranges_come_back(ids: list[int]) -> None:
    assert from_ranges(as_ranges(ids), 100) == ids


def test_it_comes_back(stored: Path, plan: PruningPlan, narrowing: Narrowing) -> None:
    found = load_narrowing(stored, plan)
    assert (found.source_width, found.width, found.method) == (32, 24, "random")
    assert found.sha256 == narrowing.sha256
    for block, ids in narrowing.neurons.items():
        assert np.array_equal(found.neurons[block], ids)
    assert found.downs.keys() == narrowing.downs.keys() == {1}
    assert np.array_equal(found.downs[1], narrowing.downs[1])
    assert isinstance(found.downs[1].base, np.memmap) or isinstance(found.downs[1], np.memmap), "it is mapped"


def test_without_columns_there_is_one_file(tmp_path: Path, plan: PruningPlan, narrowing: Narrowing) -> None:
    path = tmp_path / "alone.json"
    save_narrowing(path, replace(narrowing, downs={}), plan)
    assert not downs_path(path).exists()
    assert load_narrowing(path, plan).downs == {}


def test_it_names_neurons_as_ranges(stored: Path, narrowing: Narrowing) -> None:
    rows = json.loads(stored.read_text())["layers"]["0"]
    assert rows == [as_ranges(row.tolist()) for row in narrowing.neurons[0]]
    assert "-" in rows[0]


def test_the_columns_are_no_model(stored: Path) -> None:
    with pytest.raises(UnsupportedModel, match="the columns of a narrowing"):
        bind(open_gguf(downs_path(stored)))


def test_of_another_plan(stored: Path, plan: PruningPlan) -> None:
    with pytest.raises(MismatchError, match="belongs to the plan"):
        load_narrowing(stored, replace(plan, ratio="0.26"))


DAMAGE = {
    "another neuron": (lambda data: data["layers"]["0"].__setitem__(0, "0-22,31"), "its solution has the SHA-256"),
    "too few neurons": (lambda data: data["layers"]["0"].__setitem__(0, "0-22"), "keeps 23 neurons of an expert"),
    "beyond the end": (
        lambda data: data["layers"]["0"].__setitem__(0, "0-22,32"),
        "32 are not ascending numbers below 32",
    ),
    "twice": (lambda data: data["layers"]["0"].__setitem__(0, "0-22,22"), "22 are not ascending numbers below 32"),
    "backwards": (lambda data: data["layers"]["0"].__setitem__(0, "22-0"), "22-0 are not ascending"),
    "no ranges": (lambda data: data["layers"]["0"].__setitem__(0, "all"), "is not a narrowing of ggufreap"),
    "wider than it was": (lambda data: data.update(width=33), "keeps 33 of 32"),
    "no columns": (lambda data: data.update(downs=False), "its solution has the SHA-256"),
    "a remark without end": (lambda data: data.update(remarks=["x" * 5000]), "is not a narrowing of ggufreap"),
    "another key": (lambda data: data.update(more=1), "is not a narrowing of ggufreap"),
    "another version": (lambda data: data.update(schema="ggufreap.narrowing/2"), "this version reads"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_files_are_refused(stored: Path, plan: PruningPlan, what: str) -> None:
    spoil, reason = DAMAGE[what]
    data = json.loads(stored.read_text())
    spoil(data)
    stored.write_text(json.dumps(data))
    with pytest.raises(InputError, match=reason) as caught:
        load_narrowing(stored, plan)
    assert "\n" not in str(caught.value)


def test_one_flipped_bit_of_the_columns_is_noticed(stored: Path, plan: PruningPlan) -> None:
    path = downs_path(stored)
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="its solution has the SHA-256"):
        load_narrowing(stored, plan)


def test_columns_that_are_none(stored: Path, plan: PruningPlan) -> None:
    tiny_gguf.write(downs_path(stored), "none", {}, {"token_embd.weight": (np.zeros((4, 4)), tiny_gguf.Kind.F32)})
    with pytest.raises(InputError, match="which is no column of down"):
        load_narrowing(stored, plan)
    downs_path(stored).unlink()
    with pytest.raises(InputError, match="cannot read"):
        load_narrowing(stored, plan)
