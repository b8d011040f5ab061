"""Damaged statistics: every array and every value of the header is checked before anything is computed with it.

GGUFREAP_HOSTILE=N damages N files of each schema.
"""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_engine import FakeEngine
from test_hostile_files import WORST, N, renumbered, restructured

from ggufreap.corpus import Corpus
from ggufreap.engine.importance import ImportanceSums, Sums
from ggufreap.errors import GgufReapError, InputError
from ggufreap.observation import Importance, Provenance, Stored, observe

Arrays = dict[str, np.ndarray]
SUMS = ImportanceSums(
    {
        "a": Sums(np.ones((4, 8), np.float32), np.arange(4)),
        "b": Sums(np.ones((2, 8), np.float32), np.ones(1, np.int64)),
    },
    {"a": "a", "b": "b", "c": "a"},
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    """The arrays of a file with all that one can hold."""
    path, engine = tmp_path_factory.mktemp("statistics") / "S.npz", FakeEngine()
    corpus = Corpus(np.random.default_rng(1).integers(0, 128, (6, 16)).astype(np.int32), "test")
    observe(engine, engine.nodes, corpus, Provenance("model", "corpus", 16, 16, "test", "0"), path)
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays |= {f"importance {name}": array for name, array in SUMS.to_arrays().items()}
    return _with_header(arrays, lambda header: header.update(importance={"output": False, "version": 1}))


def _with_header(arrays: Arrays, edit: Callable[[dict[str, Any]], object]) -> Arrays:
    header = json.loads(str(arrays["header"]))
    edit(header)
    return arrays | {"header": np.array(json.dumps(header))}


def _older(header: dict[str, Any]) -> None:
    header["schema"] = "ggufreap.statistics/2"
    for name in ("statistics", "importance", "digest", "through"):
        del header[name]


def read(path: Path) -> None:
    """All that a file gives."""
    stored = Stored.open(path)
    found = stored.domain_statistics()
    found.check()
    stored.held_back()
    assert stored.n_chunks == found.n_chunks
    if stored.importance is not None:
        stored.importance_sums()


def damaged(arrays: Arrays, rng: random.Random) -> Arrays:
    """One array is gone, or of another type or shape, or holds what it cannot; or the header is damaged."""
    if rng.random() < 0.5:
        how = rng.choice((restructured, renumbered))
        return arrays | {"header": np.array(how(str(arrays["header"]).encode(), rng).decode())}
    name = rng.choice([name for name in arrays if name != "header"])
    array = arrays[name]
    ways: tuple[Callable[[], Any], ...] = (
        lambda: array[None],
        lambda: array.ravel()[:1],
        lambda: array.astype("U8"),
        lambda: np.full(array.shape, -1),
        lambda: np.full(array.shape, np.nan),
        lambda: np.full(array.shape, 1e308),
        lambda: array.ravel()[:0],
        lambda: np.full(array.shape, 2**62),
    )
    return {key: value for key, value in arrays.items() if key != name} | (
        {} if rng.random() < 0.2 else {name: rng.choice(ways)()}
    )


@pytest.mark.parametrize("older", [False, True])
def test_damaged_statistics_are_one_line(whole: Arrays, tmp_path: Path, older: bool) -> None:
    rng, path, said = random.Random(f"statistics {older}"), tmp_path / "S.npz", []
    arrays = _with_header(whole, _older) if older else whole
    np.savez(path, **arrays)
    read(path)
    for _ in range(N):
        np.savez(path, **damaged(arrays, rng))
        try:
            read(path)
        except GgufReapError as error:
            said.append(str(error))
    assert all(line.isprintable() and len(line) < WORST + len(str(path)) for line in said)
    assert len(said) > N / 2


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda header: header.update(n_expert=10**9), r"Expected `int` <= 1024 - at `\$\.n_expert`"),
        (lambda header: header.update(n_used=[9, 9]), "2 blocks use 9 experts at most, there are 2 blocks of 8"),
        (lambda header: header.update(blocks=[1, 1]), "the block 1 stands twice"),
        (lambda header: header["domains"].append(header["domains"][0]), "the domain 'text' stands twice"),
        (lambda header: header["domains"][0].update(tokens=[1.5, 0]), "Expected `int`, got `float`"),
        (lambda header: header["provenance"].update(shard="1+2"), r"shard '1\+2' is not that of its corpus"),
        (lambda header: header["provenance"].update(shard="3/2"), "shard '3/2' is none of its corpus"),
        (lambda header: header.update(colour="blue"), "unknown field `colour`"),
        (lambda header: header.pop("blocks"), "missing required field `blocks`"),
    ],
)
def test_what_is_wrong_with_a_header_is_said(
    whole: Arrays, tmp_path: Path, edit: Callable[[dict[str, Any]], object], said: str
) -> None:
    np.savez(tmp_path / "S.npz", **_with_header(whole, edit))
    with pytest.raises(InputError, match=rf"S\.npz is not a statistics file of ggufreap: .*{said}"):
        read(tmp_path / "S.npz")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("sum_gf", np.nan, "sum_gf holds what is no number"),
        ("count", -1.0, "count holds -1.0, below 0"),
        ("importance values a", np.inf, "a holds what is no number"),
        ("importance counts a", -1, "counts a holds -1, below 0"),
        ("held back 0 tokens", -1, "0 tokens holds -1, below 0"),
    ],
)
def test_a_single_wrong_number_is_found(whole: Arrays, tmp_path: Path, name: str, value: float, said: str) -> None:
    array = whole[name].copy()
    array.flat[0] = value
    np.savez(tmp_path / "S.npz", **whole | {name: array})
    with pytest.raises(InputError, match=said):
        read(tmp_path / "S.npz")


def test_what_was_read_can_be_added_to(whole: Arrays, tmp_path: Path) -> None:
    """A run goes on in the arrays of its checkpoint."""
    np.savez(tmp_path / "S.npz", **whole)
    sums = Stored.open(tmp_path / "S.npz").importance_sums()
    sums.add(replace(SUMS))
    assert sums.named()["c"].values.tolist() == np.full((4, 8), 2.0).tolist()
    assert Importance() == Stored.open(tmp_path / "S.npz").importance
