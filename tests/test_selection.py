"""Methods as functions to keep-sets, by definition and against brute force; the guard; judging and the rule."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from fake_engine import FakeEngine
from hypothesis import given
from hypothesis import strategies as st
from synthetic import quick, random_statistics

from ggufreap.engine.protocol import Keep
from ggufreap.errors import InputError
from ggufreap.observation import DomainStatistics, Held
from ggufreap.saliency import METHODS
from ggufreap.selection.choosing import choose
from ggufreap.selection.gram import least_together
from ggufreap.selection.guard import keeping, super_experts
from ggufreap.selection.judging import Difference, Ledger, judge, usable
from ggufreap.selection.methods import JOINT, method_of
from ggufreap.selection.portfolio import CONTENDERS, DEFAULT, REAP, Contender, crossed, decide

seeds = st.integers(0, 2**32 - 1)


def gram(seed: int, n_expert: int = 8, rank: int = 5) -> np.ndarray:
    outputs = np.random.default_rng(seed).normal(size=(n_expert, rank))
    return outputs @ outputs.T


def cost(matrix: np.ndarray, kept: tuple[int, ...]) -> float:
    gone = np.setdiff1d(np.arange(len(matrix)), kept)
    return float(matrix[np.ix_(gone, gone)].sum())


@quick
@given(seeds, st.integers(1, 7), st.sampled_from([1, 2, 4]))
def test_no_exchange_improves_what_gram_chooses(seed: int, n_keep: int, n_group: int) -> None:
    n_keep = max(n_group, n_keep // n_group * n_group)
    matrix = gram(seed)
    (kept,) = least_together(matrix[None], n_keep, n_group)
    groups = [expert * n_group // 8 for expert in kept]
    assert [groups.count(group) for group in range(n_group)] == [n_keep // n_group] * n_group
    for gone in set(range(8)) - set(kept):
        for out in kept:
            if gone * n_group // 8 == out * n_group // 8:
                other = tuple(sorted({*kept, gone} - {out}))
                assert cost(matrix, other) >= cost(matrix, kept) - 1e-9 * matrix.trace()


def test_gram_sees_what_two_experts_do_together() -> None:
    """What two of them do to each other cancels, so they go together."""
    matrix = np.diag([2.0, 3.0, 2.9, 2.9])
    assert least_together(matrix[None], 2) == ((1, 2),)
    matrix[0, 1] = matrix[1, 0] = -2.4
    assert least_together(matrix[None], 2) == ((2, 3),)
    matrix[0, 1] = matrix[1, 0] = 0.0
    matrix[2, 3] = matrix[3, 2] = -2.8  # found by an exchange: 0 was the first to go
    assert least_together(matrix[None], 2) == ((0, 1),)
    assert least_together(np.zeros((1, 4, 4)), 2) == ((0, 1),)  # the lower ids stay


def test_gram_of_a_diagonal_is_relative_squares() -> None:
    statistics = random_statistics(3, n_expert=16)
    for n_keep in (4, 8, 15):
        assert choose(statistics, "gram", "uniform", n_keep).rows == (
            choose(statistics, "relative_squares", "uniform", n_keep).rows
        )
    with pytest.raises(InputError, match="maxmin is of scores"):
        choose(statistics, "gram", "maxmin", 8)


@quick
@given(seeds, st.sampled_from([*METHODS, *JOINT]), st.sampled_from([1, 2, 4]))
def test_every_method_keeps_as_many_of_every_group(seed: int, method: str, n_group: int) -> None:
    statistics = random_statistics(seed)
    for rows in (choose(statistics, method, how, 4, n_group).rows for how in ("uniform", "tokens")):
        for kept in rows:
            assert kept == tuple(sorted(set(kept)))
            groups = [expert * n_group // 8 for expert in kept]
            assert [groups.count(group) for group in range(n_group)] == [4 // n_group] * n_group


def test_rank_average_by_hand() -> None:
    """Of experts 0 to 3: what two opinions hold against one, and the total between equals."""
    statistics = random_statistics(11, n_domains=1, n_blocks=1, n_expert=8)
    opinions = [method_of(name).score(statistics, "uniform")[0] for name in ("reap", "relative_squares")]
    opinions.append(statistics.total.values["sum_gf"][0])
    ranks = np.array([[(scores < score).sum() for score in scores] for scores in opinions], float)
    order = sorted(range(8), key=lambda expert: (ranks[:, expert].sum(), ranks[1, expert]))
    if all((scores[:, None] == scores).sum() == 8 for scores in opinions):
        assert choose(statistics, "rank_average", "uniform", 3).rows[0] == tuple(sorted(order[-3:]))


def with_peaks(statistics: DomainStatistics, peaks: np.ndarray) -> DomainStatistics:
    for halves in statistics.halves.values():
        for half in halves:
            half.values["max_f"][:] = peaks  # type: ignore[index]  # of arrays
    return statistics


def test_what_makes_massive_activations_stays_and_is_named() -> None:
    peaks = np.ones((4, 8))
    peaks[1, 7] = 60.0
    peaks[3, 0] = 50.0  # the last quarter of the blocks is left out
    statistics = with_peaks(random_statistics(5, n_blocks=4), peaks)
    assert np.argwhere(super_experts(statistics.total)).tolist() == [[1, 7]]
    scores = method_of("reap").score(statistics, "uniform")
    for n_keep in (2, 4, 6):
        free = method_of("reap").choose(statistics, "uniform", n_keep, 2)
        found = choose(statistics, "reap", "uniform", n_keep, 2)
        assert 7 in found.rows[1]
        if 7 in free[1]:
            assert (found.rows, found.note) == (free, "")
        else:
            assert found.saved == [(1, 7)]
            assert "expert 7 of block 1" in found.note
            (lost,) = set(free[1]) - set(found.rows[1])
            assert lost >= 4
            assert scores[1, lost] == min(scores[1, expert] for expert in free[1] if expert >= 4)
    assert not super_experts(with_peaks(statistics, np.ones((4, 8))).total).any()


def test_more_of_them_than_can_stay_break_nothing() -> None:
    rows, saved = keeping(((0, 4),), np.ones((1, 8), bool), np.arange(8.0)[None], 2)
    assert (rows, saved) == (((0, 4),), [])


CHUNKS = {
    name: [
        Held(np.random.default_rng([seed, index]).integers(0, 128, 16).astype(np.int32), index % 2)
        for index in range(4)
    ]
    for seed, name in enumerate(("a", "b"))
}


class Masked(FakeEngine):
    """Loses what is masked: the fewer kept, the farther the logits; counts its passes."""

    passes = 0

    def logits(self, tokens, keep=None, scored_from=0):  # type: ignore[no-untyped-def]
        self.passes += 1
        found = super().logits(tokens, None, scored_from)
        noise = np.random.default_rng(int(tokens[0])).normal(size=found.shape).astype(np.float32)
        lost = 0 if keep is None else sum(8 - len(kept) for kept in keep.values())
        return found + 0.1 * lost * noise


def both(keep: Keep) -> list[Keep]:
    return [keep, keep]


KEEPS = {
    "all": both({0: range(8)}),
    "some": both({0: range(6)}),
    "same": both({0: tuple(range(6))}),
    "few": both({0: range(2)}),
}


def test_equal_sets_are_judged_once_and_nothing_twice(tmp_path: Path) -> None:
    engine, path = Masked(), tmp_path / "judged.json"
    found = judge(engine, CHUNKS, KEEPS, Ledger(path, "model"))
    assert engine.passes == 8 * (1 + 3)
    assert {domain: values.shape for domain, values in found["all"].items()} == {"a": (4,), "b": (4,)}
    assert all((values == 0).all() for values in found["all"].values())
    assert all(np.array_equal(found["some"][domain], found["same"][domain]) for domain in CHUNKS)
    assert all((found["few"][domain] > found["some"][domain]).all() for domain in CHUNKS)
    again = judge(engine, CHUNKS, KEEPS, Ledger(path, "model"))
    assert engine.passes == 8 * 4
    assert all(np.array_equal(again[name][domain], found[name][domain]) for name in KEEPS for domain in CHUNKS)
    judge(engine, CHUNKS, {"other": both({0: range(5)})}, Ledger(path, "model"))
    assert engine.passes == 8 * 4 + 8 * 2  # the original again, and the new set
    assert Ledger(path, "another model").known == {}
    path.write_text("{")
    with pytest.raises(InputError, match="delete the file"):
        Ledger(path, "model")


def test_a_half_is_judged_by_its_own_set() -> None:
    few, many = {0: range(2)}, {0: range(6)}
    found = judge(Masked(), CHUNKS, {"few": both(few), "many": both(many), "crossed": [few, many]}, Ledger(None, ""))
    for domain in CHUNKS:
        assert np.array_equal(found["crossed"][domain][::2], found["few"][domain][::2])
        assert np.array_equal(found["crossed"][domain][1::2], found["many"][domain][1::2])


def test_a_budget_ends_after_whole_rounds_and_two_at_least() -> None:
    for budget, rounds in ((0.0, 2), (44.0, 2), (46.0, 3), (math.inf, 4)):
        time = itertools.count(0, 10)
        found = judge(Masked(), CHUNKS, KEEPS, Ledger(None, ""), budget=budget, clock=lambda: next(time))  # noqa: B023
        assert {len(values) for losses in found.values() for values in losses.values()} == {rounds}, budget


def test_too_little_text_is_refused() -> None:
    with pytest.raises(InputError, match="b has 1 chunks to judge methods by, it takes 2"):
        judge(Masked(), {"a": CHUNKS["a"], "b": CHUNKS["b"][:1]}, KEEPS, Ledger(None, ""))
    found = judge(Masked(), {"a": CHUNKS["a"], "b": CHUNKS["b"][:2]}, KEEPS, Ledger(None, ""))
    assert {domain: len(values) for domain, values in found["few"].items()} == {"a": 4, "b": 2}
    assert usable({"a": [Held(np.zeros(3), 0), Held(np.zeros(4), 1)]})["a"][0].half == 1


def test_what_is_judged_on_a_half_was_chosen_from_the_other() -> None:
    statistics = random_statistics(2)
    found = crossed(statistics, 4, 1)
    assert set(found) == set(CONTENDERS)
    for half in (0, 1):
        seen = statistics.half(1 - half)
        assert found[REAP][half] == choose(seen, "reap", "uniform", 4).rows
    assert found[DEFAULT][0] != found[DEFAULT][1]
    other = random_statistics(7)
    mixed = {name: (halves[0], other.halves[name][1]) for name, halves in statistics.halves.items()}
    again = crossed(DomainStatistics(statistics.blocks, statistics.n_used, 8, mixed), 4, 1)
    assert [rows[1] for rows in again.values()] == [rows[1] for rows in found.values()]
    assert [rows[0] for rows in again.values()] != [rows[0] for rows in found.values()]


def losses(a: float, b: float, noise: float = 0.0) -> dict[str, np.ndarray]:
    wave = noise * np.array([1.0, -1.0, 1.0, -1.0])
    return {"a": a + wave, "b": b + wave}


OTHER = Contender("sum_squares", "uniform")


@pytest.mark.parametrize(
    ("found", "chosen", "reason"),
    [
        ({DEFAULT: losses(1, 1), REAP: losses(1, 1)}, DEFAULT, "no other method"),
        ({DEFAULT: losses(1, 1), REAP: losses(0.9, 0.9)}, REAP, "better than rank_average"),
        ({DEFAULT: losses(1, 1), REAP: losses(0.9, 0.9, 0.3)}, DEFAULT, "no other method"),  # not surely
        ({DEFAULT: losses(1, 1), REAP: losses(0.9, 0.9), OTHER: losses(0.8, 0.8)}, OTHER, "0.2000 ± 0.0000"),
        (
            {DEFAULT: losses(1, 2), REAP: losses(2, 2), OTHER: losses(1.5, 1.5)},
            DEFAULT,
            "no other",
        ),  # in the worst alone
        (
            {DEFAULT: losses(1, 2), REAP: losses(2, 2), OTHER: losses(1.1, 0.5)},
            DEFAULT,
            "no other",
        ),  # in one domain alone
        ({DEFAULT: losses(1, 2), REAP: losses(2, 2), OTHER: losses(0.9, 0.5)}, OTHER, "0.8000 ± 0.0000"),
    ],
)
def test_the_default_gives_way_only_to_what_is_surely_better(found: dict, chosen: Contender, reason: str) -> None:
    verdict = decide(found)
    assert verdict.chosen == chosen
    assert reason in verdict.reason
    assert verdict.n_chunks == 8
    assert [row.mean for row in verdict.rows] == sorted(row.mean for row in verdict.rows)
    assert "of reap on held-back text" in verdict.line


def test_a_worst_domain_that_surely_loses_more_is_a_veto() -> None:
    wave = np.array([1.0, -1.0, 1.0, -1.0])

    def by_domain(rest: float, worst: float, noise: float = 0.0) -> dict[str, np.ndarray]:
        return dict.fromkeys("abc", rest + 0 * wave) | {"d": worst + noise * wave}

    found = {DEFAULT: by_domain(1, 2), REAP: by_domain(2, 2)}
    assert decide(found | {OTHER: by_domain(0.5, 1.9)}).chosen == OTHER
    assert decide(found | {OTHER: by_domain(0.5, 2.1)}).chosen == DEFAULT
    assert decide(found | {OTHER: by_domain(0.5, 2.1, 0.3)}).chosen == OTHER


def test_a_difference_takes_chunks_in_pairs() -> None:
    one, other = losses(1.5, 1), losses(1, 1, 0.5)
    found = Difference.of(one, other)
    assert found.mean == pytest.approx(0.25)
    variance = np.var([0.5, -0.5, 0.5, -0.5], ddof=1) / 4
    assert found.stderr == pytest.approx(math.sqrt(2 * variance) / 2)
    assert found.between == pytest.approx(np.std([0.5, 0.0], ddof=1) / math.sqrt(2))
    assert Difference.of(one, one) == Difference(0.0, 0.0, 0.0)
    assert Difference.of({"a": one["a"]}, {"a": other["a"]}).between == 0
