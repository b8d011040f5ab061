"""Methods as functions to keep-sets, by definition and against brute force; the guard; judging and the rule."""

import logging
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
from ggufreap.selection.portfolio import (
    CONTENDERS,
    DEFAULT,
    REAP,
    Contender,
    better,
    compete,
    crossed,
    decide,
    in_the_race,
)

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


@pytest.mark.parametrize(("budget", "rounds"), [(0, 2), (23, 2), (24, 3), (math.inf, 4)])
def test_a_budget_ends_after_whole_rounds_and_two_at_least(budget: float, rounds: int) -> None:
    engine = Masked()  # a round over both domains takes 8 passes, which are its seconds
    found = judge(engine, CHUNKS, KEEPS, Ledger(None, ""), budget=budget, clock=lambda: engine.passes)
    assert {len(values) for losses in found.values() for values in losses.values()} == {rounds}


def test_how_long_it_takes_is_said_after_the_first_chunk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    engine, ledger = Masked(), Ledger(tmp_path / "judged.json", "model")
    judge(engine, CHUNKS, KEEPS, ledger, clock=lambda: 100.0 * engine.passes)
    assert caplog.messages == ["judging 4 methods takes at most 32 passes over a chunk, about 54 minutes"]
    caplog.clear()
    judge(engine, CHUNKS, KEEPS, ledger)
    assert caplog.messages == []
    judge(engine, CHUNKS, {"other": both({0: range(5)})}, ledger, budget=120, clock=lambda: 100.0 * engine.passes)
    assert caplog.messages == [
        "judging 1 methods takes at most 16 passes over a chunk, about 27 minutes; --budget gives it 2"
    ]


def test_who_dropped_out_of_the_race_is_not_judged_any_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ggufreap.selection.judging.RUNGS", (2,))
    engine, seen = Masked(), []

    def race(losses):  # type: ignore[no-untyped-def]
        seen.append({name: len(by_domain["a"]) for name, by_domain in losses.items()})
        return ["all", "some"]

    found = judge(engine, CHUNKS, KEEPS, Ledger(None, ""), race=race)
    assert seen == [dict.fromkeys(KEEPS, 2)]
    assert engine.passes == 4 * (1 + 3) + 4 * (1 + 2)
    assert {name: len(losses["b"]) for name, losses in found.items()} == {"all": 4, "some": 4, "same": 2, "few": 2}
    whole = judge(Masked(), CHUNKS, KEEPS, Ledger(None, ""))
    assert np.array_equal(found["few"]["a"], whole["few"]["a"][:2])
    assert np.array_equal(found["some"]["a"], whole["some"]["a"])


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


OTHER, GRAM = Contender("sum_squares", "uniform"), Contender("gram", "uniform")


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
    verdict = decide(found, found)
    assert verdict.chosen == chosen
    assert reason in verdict.reason
    assert verdict.n_chunks == 8
    assert [row.mean for row in verdict.rows] == sorted(row.mean for row in verdict.rows)
    assert "of reap on held-back text" in verdict.line


WAVE = np.array([1.0, -1.0, 1.0, -1.0])


def by_domain(rest: float, worst: float, noise: float = 0.0) -> dict[str, np.ndarray]:
    return dict.fromkeys("abc", rest + 0 * WAVE) | {"d": worst + noise * WAVE}


def test_a_worst_domain_that_likely_loses_more_than_that_of_reap_is_a_veto() -> None:
    found = {DEFAULT: by_domain(1, 2), REAP: by_domain(2, 2.2)}
    for other, chosen in (
        (by_domain(0.5, 2.1), OTHER),  # more than the default's is allowed
        (by_domain(0.5, 2.3), DEFAULT),
        (by_domain(0.5, 2.3, 0.3), OTHER),
        (by_domain(0.5, 2.5, 0.3), DEFAULT),
    ):
        assert decide(found | {OTHER: other}, found | {OTHER: other}).chosen == chosen


def test_the_default_gives_way_to_reap_where_its_worst_domain_surely_loses_more() -> None:
    for default, chosen in ((by_domain(1, 2.3), REAP), (by_domain(1, 2.3, 0.3), DEFAULT), (by_domain(1, 2.1), DEFAULT)):
        verdict = decide({DEFAULT: default, REAP: by_domain(2, 2.2)}, {})
        assert verdict.chosen == chosen
        assert (verdict.reason == "rank_average surely loses more in d") == (chosen == REAP)


@pytest.mark.parametrize(
    ("own", "chosen", "reason"),
    [
        ({OTHER: losses(0.7, 0.7), GRAM: losses(0.8, 0.8)}, OTHER, "0.2000 ± 0.0000 better"),
        ({OTHER: losses(0.7, 0.7, 0.5), GRAM: losses(0.8, 0.8)}, GRAM, "0.1000 ± 0.0000 better"),  # not surely again
        ({OTHER: losses(0.1, 1.3), GRAM: losses(0.8, 0.8)}, GRAM, "0.1000 ± 0.0000 better"),  # of one domain alone
        (
            {OTHER: losses(1, 1), GRAM: losses(0, 0, 1.5)},
            DEFAULT,
            "surely better than rank_average; sum_squares is, but not with what it keeps in the end; "
            "gram is, but not with what it keeps in the end",
        ),
        (
            {OTHER: by_domain(0.1, 2), GRAM: by_domain(0.1, 2)},
            DEFAULT,
            "surely better than rank_average; sum_squares is, but likely loses more than reap in d; "
            "gram is, but likely loses more than reap in d",
        ),
    ],
)
def test_who_is_better_has_to_be_with_the_set_that_would_be_kept(own: dict, chosen: Contender, reason: str) -> None:
    found = {DEFAULT: losses(1, 1), REAP: losses(2, 2), OTHER: losses(0.8, 0.8), GRAM: losses(0.9, 0.9)}
    assert better(found) == [OTHER, GRAM]
    mine = {DEFAULT: losses(0.9, 0.9), REAP: losses(1.9, 1.9)}
    if "d" in own[OTHER]:
        mine = dict.fromkeys(mine, by_domain(1.9, 1.9))
    verdict = decide(found, mine | own)
    assert verdict.chosen == chosen
    assert reason in verdict.reason


def test_few_chunks_are_not_enough_to_be_sure_by() -> None:
    found = {DEFAULT: losses(1, 1), REAP: losses(2, 2), GRAM: losses(0.5, 0.5)}
    few = {each: {domain: values[:3] for domain, values in lost.items()} for each, lost in found.items()}
    assert (better(found), better(few)) == ([GRAM], ())
    assert decide(few, {}).reason == "3 chunks of a domain are too few to leave rank_average by"
    assert decide(few | {DEFAULT: few[REAP]}, {}).chosen == DEFAULT


def test_leaving_reap_takes_as_much_as_leaving_the_default() -> None:
    found = {DEFAULT: losses(1, 1), REAP: losses(0.8, 0.8), OTHER: losses(0.78, 0.78, 0.1)}
    assert better(found) == [REAP]
    assert decide(found, found).chosen == REAP


def test_who_is_likely_behind_the_default_drops_out_of_the_race_but_never_reap() -> None:
    found = {DEFAULT: losses(3, 3), REAP: losses(4, 4), OTHER: losses(3.1, 3.1, 0.3), GRAM: losses(1, 1)}
    by_name = {each.name: loss for each, loss in found.items()}
    assert in_the_race(by_name) == set(by_name)
    assert in_the_race(by_name | {OTHER.name: losses(3.1, 3.1, 0.1)}) == set(by_name) - {OTHER.name}
    short = {domain: values[:2] for domain, values in losses(0.5, 0.5).items()}
    verdict = decide(found | {OTHER: short}, found)
    assert verdict.chosen == GRAM
    assert verdict.dropped == "likely behind rank_average, so not judged on all 8 chunks: sum_squares after 4"
    assert decide(found, found).dropped == ""


def test_all_compete_and_the_promising_once_more_with_the_set_of_all_text() -> None:
    statistics, calls = random_statistics(2), []

    def judging(contenders, *, race, budget):  # type: ignore[no-untyped-def]
        calls.append((contenders, budget))
        return {name: losses(*gains[name]) for name in contenders}

    gains = {each.name: (2.0, 2.0) for each in CONTENDERS}
    verdict = compete(statistics, 4, 1, judging, budget=100, clock=iter([0.0, 60.0]).__next__)
    assert (verdict.chosen, len(calls)) == (DEFAULT, 1)
    gains["gram"] = (1.0, 1.0)
    verdict = compete(statistics, 4, 1, judging, budget=100, clock=iter([0.0, 60.0]).__next__)
    assert verdict.chosen == GRAM
    halves, budget = calls[1]
    assert budget == pytest.approx(70)
    assert [tuple(keep.values()) for keep in halves["gram"]] == list(crossed(statistics, 4, 1)[GRAM])
    own, budget = calls[2]
    assert budget == pytest.approx(40)
    assert set(own) == {DEFAULT.name, REAP.name, "gram"}
    rows = choose(statistics, "gram", "uniform", 4).rows
    assert [tuple(keep.values()) for keep in own["gram"]] == [rows, rows]


def test_a_difference_takes_chunks_in_pairs() -> None:
    one, other = losses(1.5, 1), losses(1, 1, 0.5)
    found = Difference.of(one, other)
    assert found.mean == pytest.approx(0.25)
    variance = np.var([0.5, -0.5, 0.5, -0.5], ddof=1) / 4
    assert found.stderr == pytest.approx(math.sqrt(2 * variance) / 2)
    assert found.between == pytest.approx(np.std([0.5, 0.0], ddof=1) / math.sqrt(2))
    assert Difference.of(one, one) == Difference(0.0, 0.0, 0.0)
    assert Difference.of({"a": one["a"]}, {"a": other["a"]}).between == 0
