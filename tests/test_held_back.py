"""Chunks that are kept to judge by: pairs, from the whole text, the same however the text was read."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_engine import FakeEngine

from ggufreap.corpus import Chunk, Corpus
from ggufreap.observation import HeldBack, Provenance, Stored, merge, observe, save
from ggufreap.observation.held_back import MOST

PROVENANCE = Provenance("model", "corpus", 16, 16, "test", "0")


def chunk(number: int, domain: str = "a") -> Chunk:
    return Chunk(np.full(5 + number % 3, number, np.int32), domain, number)


def numbers(held_back: HeldBack, domain: str = "a") -> list[int]:
    assert all(one.half == one.tokens[0] % 2 for one in held_back.chunks[domain])
    return [int(one.tokens[0]) for one in held_back.chunks[domain]]


def kept(order: Sequence[int]) -> HeldBack:
    found = HeldBack()
    assert [each.number for each in found.noting(map(chunk, order))] == list(order)
    return found


@pytest.mark.parametrize("count", [1, 2, 12, 31, 33, 64, 65, 66, 500, 1001])
def test_they_are_pairs_few_and_from_the_whole_text(count: int) -> None:
    found = numbers(kept(range(count)))
    pairs = found[::2]
    assert found == [number for even in pairs for number in (even, even + 1) if number < count]
    assert all(number % 2 == 0 for number in pairs)
    assert len(pairs) == min((count + 1) // 2, MOST) or MOST // 2 < len(pairs) <= MOST
    gaps = np.diff([-1, *pairs, count])
    assert gaps.max() <= max(2, 4 * count / len(pairs))


def test_any_order_and_any_division_keeps_the_same() -> None:
    whole = kept(range(300))
    assert numbers(kept(np.random.default_rng(0).permutation(300).tolist())) == numbers(whole)
    parts = kept(range(0, 300, 3))
    parts.merge(kept(range(1, 300, 3)))
    parts.merge(kept(range(2, 300, 3)))
    assert numbers(parts) == numbers(whole)


def test_a_file_gives_them_back(tmp_path: Path) -> None:
    engine = FakeEngine()
    corpus = Corpus(np.random.default_rng(1).integers(0, 128, (9, 16)).astype(np.int32), "test")
    observe(engine, engine.nodes, corpus, PROVENANCE, tmp_path / "s.npz")
    found = Stored.open(tmp_path / "s.npz").held_back().chunks
    assert {domain: [one.tokens.tolist() for one in chunks] for domain, chunks in found.items()} == {
        "text": corpus.chunks.tolist()
    }
    for index in (1, 2):
        path = tmp_path / f"{index}.npz"
        observe(engine, engine.nodes, corpus, replace(PROVENANCE, shard=f"{index}/2"), path)
    save(tmp_path / "both.npz", *merge([tmp_path / "1.npz", tmp_path / "2.npz"]))
    again = Stored.open(tmp_path / "both.npz").held_back().chunks
    assert [one.tokens.tolist() for one in again["text"]] == corpus.chunks.tolist()


def test_chunks_of_several_lengths_go_through_arrays() -> None:
    whole = kept(range(40))
    again = HeldBack.from_arrays(whole.to_arrays(["b", "a"]), ["b", "a"])
    assert numbers(again) == numbers(whole)
    lengths = [len(one.tokens) for one in whole.chunks["a"]]
    assert [len(one.tokens) for one in again.chunks["a"]] == lengths
    assert "b" not in again.chunks
