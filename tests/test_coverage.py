"""What a keep-set leaves of every domain, and whether the text was enough to choose it."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import of_halves, of_parts, part, quick, random_statistics

from ggufreap.blending import blend
from ggufreap.coverage import Coverage, Routed, Stability, covered, measure
from ggufreap.errors import MismatchError
from ggufreap.planning import select
from ggufreap.saliency import METHODS

CODE = part([[50, 30, 20, 0], [100, 0, 0, 0]], [[1, 1, 1, 1], [2, 1, 1, 1]])
PROSE = part([[0, 20, 20, 60], [40, 30, 20, 10]], [[1, 1, 1, 1], [1, 1, 1, 1]])


def test_what_stays_by_hand() -> None:
    found = measure(of_parts({"code": CODE, "prose": PROSE}), {0: (0, 1), 1: (0, 1), 9: (2, 3)}, "reap")
    code, prose = found.domains
    assert (code.domain, code.n_tokens, prose.domain) == ("code", 100, "prose")
    assert (code.retained, code.lowest) == (1, 1)
    # Block 0 keeps 20 of the 80 that experts 3 and 1 would hold, block 1 its best two.
    assert (prose.retained, prose.lowest, prose.lowest_block) == (0.625, 0.25, 0)
    assert prose.routed == Routed(0, 20, 7 / 8)
    assert found.routed == Routed(10, 45, 4 / 8)
    assert found.n_tokens == 200
    assert found.stability is code.stability is None, "there is no second half"


def test_warnings_name_the_domain() -> None:
    found = measure(of_parts({"code": CODE, "prose": PROSE}), {0: (0, 1), 1: (0, 1)}, "reap")
    (warning,) = found.warnings(0.9)
    assert warning.startswith("prose retains 62.5% of what experts chosen for it alone would (25.0% in block 0); ")
    assert found.warnings(0.6) == ()


@quick
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 4, 6]), st.sampled_from([1, 2]), st.sampled_from(sorted(METHODS)))
def test_the_own_best_set_is_covered_whole_and_no_set_more(seed: int, n_keep: int, n_group: int, method: str) -> None:
    statistics = random_statistics(seed)
    mass = statistics.of("d0").values[METHODS[method].mass]
    assert covered(mass, select(mass, n_keep, n_group), n_group).tolist() == [1, 1]
    for how in ("tokens", "uniform", "maxmin"):
        chosen = select(blend(statistics, how, method), n_keep, n_group)
        for row in measure(statistics, dict(enumerate(chosen)), method, how, n_group).domains:
            assert 0 <= row.lowest <= row.retained <= 1 + 1e-12


def test_of_nothing_nothing_stays() -> None:
    assert covered(np.zeros((1, 4)), [(0, 1)]).tolist() == [0]
    nothing = part([[0, 0, 0, 0], [0, 0, 0, 0]], [[1, 1, 1, 1], [1, 1, 1, 1]], 0)
    found = measure(of_parts({"code": CODE, "tools": nothing}), {0: (0, 1), 1: (0, 1)}, "reap")
    assert found.domains[1].retained == 0
    assert "no token of tools was counted" in " ".join(found.warnings())


def test_experts_that_only_their_number_kept_are_counted() -> None:
    found = measure(of_parts({"code": CODE}), {0: (0, 1, 2), 1: (0, 1, 2)}, "reap")
    assert found.unknown == 2  # 1 and 2 in block 1, where 3 goes; in block 0 the only unknown one goes
    assert "2 of the experts that stay were never reached" in " ".join(found.warnings())
    assert measure(of_parts({"code": CODE}), {0: (0, 1, 2), 1: (0, 1, 2)}, "reap").warnings(0)[-1].endswith("more text")


def test_a_plan_of_another_model_is_refused() -> None:
    with pytest.raises(MismatchError, match="the plan has no block 1"):
        measure(of_parts({"code": CODE}), {0: (0, 1)}, "reap")
    for keep in ({0: (0, 1), 1: (0, 4)}, {0: (0, 1), 1: (0, -1)}, {0: (0, 1), 1: (0, 1, 2)}, {0: (), 1: ()}):
        with pytest.raises(MismatchError, match="the statistics have 4 in each"):
            measure(of_parts({"code": CODE}), keep, "reap")
    with pytest.raises(MismatchError, match="keep 2 in 4 groups"):
        measure(of_parts({"code": CODE}), {0: (0, 1), 1: (0, 1)}, "reap", n_group=4)


def test_halves_that_agree_and_halves_that_do_not() -> None:
    steady = (part([[40, 30, 20, 10]], [[1, 1, 1, 1]]), part([[41, 30, 20, 9]], [[1, 1, 1, 1]]))
    moody = (part([[40, 30, 20, 10]], [[1, 1, 1, 1]]), part([[40, 10, 20, 30]], [[1, 1, 1, 1]]))
    found = measure(of_halves({"steady": steady, "moody": moody}), {0: (0, 1, 2)}, "frequency")
    assert [row.stability for row in found.domains] == [Stability(1, 1), Stability(2 / 3, 0)]
    assert found.stability == Stability(1, 1), "together they agree: 80 60 40 20 and 81 40 40 39"
    everything = measure(of_halves({"moody": moody}), {0: (0, 1, 2, 3)}, "frequency")
    assert everything.stability is None


def test_stability_is_of_the_blend_that_chose() -> None:
    # Little b changes its mind, which only a blend that listens to it can notice.
    statistics = of_halves(
        {
            "a": (part([[500, 300, 200, 0]], [[1] * 4]), part([[500, 300, 200, 0]], [[1] * 4])),
            "b": (part([[0, 0, 4, 6]], [[1] * 4]), part([[6, 4, 0, 0]], [[1] * 4])),
        }
    )
    by = {how: measure(statistics, {0: (0, 1)}, "frequency", how).stability for how in ("tokens", "maxmin")}
    assert by["tokens"] == Stability(1, 1)
    assert by["maxmin"] == Stability(0.5, 0.5)
    whole = measure(statistics, {0: (0, 1, 2, 3)}, "frequency", "tokens")
    assert (whole.stability, whole.removes) == (None, False)
    assert whole.advice.startswith("no expert goes")


def judged(removed: float | None) -> Coverage:
    return Coverage(1000, (), Routed(0, 0, 0), None if removed is None else Stability(0.99, removed))


@pytest.mark.parametrize(
    ("removed", "factor", "advice"),
    [
        (1.0, 1, "keep-set is stable: two halves of the text agree on 100.0% of the removed experts"),
        (0.95, 1, "keep-set is stable: two halves of the text agree on 95.0%"),
        (0.9, 2**2.5, "keep-set is not stable: two halves of the text agree on 90.0% .*; run 6x the tokens"),
        (0.85, 3**2.5, "run 16x the tokens"),
        (0.5, 10**2.5, "run more than 20x the tokens"),
        (None, None, "cannot be told: every domain needs two chunks or more"),
    ],
)
def test_advice(removed: float | None, factor: float | None, advice: str) -> None:
    found = judged(removed)
    assert found.factor == (None if factor is None else pytest.approx(factor))
    assert re.search(advice, found.advice)


def test_more_text_makes_the_choice_stable() -> None:
    """Experts of nearly equal use: the advice leads to a text that needs no more."""
    rng = np.random.default_rng(5)
    likes = rng.dirichlet(np.full(64, 30), 8)

    def drawn(n_tokens: int) -> Coverage:
        halves = tuple(part([rng.multinomial(n_tokens // 2, row) for row in likes], np.ones((8, 64))) for _ in range(2))
        statistics = of_halves({"text": halves})
        keep = dict(enumerate(select(blend(statistics, "tokens", "frequency"), 48, 1)))
        return measure(statistics, keep, "frequency")

    little = drawn(20_000)
    assert little.factor is not None
    assert little.factor > 2
    enough = drawn(int(20_000 * little.factor))
    assert enough.factor is not None
    assert enough.factor == 1
    assert enough.advice.startswith("keep-set is stable")
