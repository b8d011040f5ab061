"""How domains weigh: by tokens, alike, as told, or so that none pays for the others."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import of_parts, part, quick, random_statistics

from ggufreap.blending import BLENDS, blend, check_blend, most_needed, remark, scored, weighted
from ggufreap.corpus.request import Request
from ggufreap.errors import InputError
from ggufreap.observation import STATISTICS
from ggufreap.planning import select
from ggufreap.saliency import METHODS
from ggufreap.verbs.data import open_data

SEEDS = st.integers(0, 2**32 - 1)
# Code has nine times the text; expert 0 is code's, 1 is prose's, 2 serves both, 3 nobody.
CODE = part([[600, 0, 300, 0]], [[4, 1, 2, 1]])
PROSE = part([[0, 60, 40, 0]], [[4, 3, 2, 1]])
BOTH = of_parts({"code": CODE, "prose": PROSE})


@pytest.mark.parametrize("method", METHODS)
def test_tokens_is_the_score_of_all_text(method: str) -> None:
    statistics = random_statistics(1)
    assert np.array_equal(blend(statistics, "tokens", method), METHODS[method].score(statistics.total))


def test_blends_by_hand() -> None:
    # Tokens: Σ g‖f‖ as it is. Uniform: 1000 tokens of which each domain has 500, so code x 5/9 and prose x 5.
    assert blend(BOTH, "tokens", "weighted_ean_sum")[0].tolist() == [2400, 180, 680, 0]
    np.testing.assert_allclose(
        blend(BOTH, "uniform", "weighted_ean_sum")[0], [2400 * 5 / 9, 180 * 5, 600 * 5 / 9 + 80 * 5, 0]
    )
    np.testing.assert_allclose(
        blend(BOTH, "prose=3,code=1", "weighted_ean_sum")[0],
        [2400 * 2.5 / 9, 180 * 7.5, 600 * 2.5 / 9 + 80 * 7.5, 0],
    )
    # The larger share of a domain's 3000 and 260.
    np.testing.assert_allclose(blend(BOTH, "maxmin", "weighted_ean_sum")[0], [2400 / 3000, 180 / 260, 80 / 260, 0])


def test_means_are_weighted_as_if_the_text_were_another() -> None:
    skewed = of_parts({"a": part([[10, 90]], [[1, 1]]), "b": part([[10, 10]], [[5, 2]])})
    alike = of_parts({"a": part([[10, 90]], [[1, 1]]), "b": part([[50, 50]], [[5, 2]])})
    np.testing.assert_allclose(blend(skewed, "uniform", "reap"), METHODS["reap"].score(alike.total))


def test_a_rare_expert_in_a_domain_of_little_weight_has_its_mean() -> None:
    statistics = of_parts({"a": part([[1, 999]], [[7, 1]]), "b": part([[0, 9]], [[1, 1]])})
    assert blend(statistics, "a=0.001,b=1", "reap")[0, 0] == pytest.approx(7)


def test_domains_of_equal_text_weigh_alike_bit_for_bit() -> None:
    statistics = of_parts({name: part([[50, 30, 20]], [[seed, 2, 1.5]]) for seed, name in enumerate("abcdef", 1)})
    for method in METHODS:
        assert np.array_equal(blend(statistics, "uniform", method), blend(statistics, "tokens", method))


def test_a_domain_of_weight_zero_is_as_if_it_were_not_there() -> None:
    for method in METHODS:
        alone = METHODS[method].score(CODE)
        found = blend(BOTH, "code=2,prose=0", method)
        np.testing.assert_allclose(found / found[0, 0], alone / alone[0, 0])


@quick
@given(
    SEEDS, st.lists(st.floats(0.01, 10), min_size=3, max_size=3), st.lists(st.floats(0.01, 10), min_size=3, max_size=3)
)
def test_sums_are_linear_in_the_weights(seed: int, one: list[float], other: list[float]) -> None:
    statistics = random_statistics(seed)

    def sums(weights: list[float], name: str) -> np.ndarray:
        return weighted(statistics, dict(zip(statistics.domains, weights, strict=True))).values[name] * sum(weights)

    added = [a + b for a, b in zip(one, other, strict=True)]
    for name in STATISTICS:
        if name != "max_f":
            np.testing.assert_allclose(sums(added, name), sums(one, name) + sums(other, name), rtol=1e-9)


@quick
@given(SEEDS, st.lists(st.floats(0.01, 10), min_size=3, max_size=3))
def test_weighted_statistics_are_of_as_many_tokens(seed: int, weights: list[float]) -> None:
    statistics = random_statistics(seed)
    found = weighted(statistics, dict(zip(statistics.domains, weights, strict=True)))
    np.testing.assert_allclose(found.values["count"].sum(axis=1), statistics.n_tokens)
    assert np.array_equal(found.values["max_f"], statistics.total.values["max_f"])


def largest_loss(shares: np.ndarray, kept: tuple[int, ...]) -> float:
    """The largest share `[n_domains, n_expert]` that any domain has in one removed expert."""
    return float(np.delete(shares, kept, axis=1).max())


@quick
@given(SEEDS, st.integers(1, 5))
def test_maxmin_makes_the_largest_loss_of_any_domain_smallest(seed: int, n_keep: int) -> None:
    statistics = random_statistics(seed, n_blocks=1, n_expert=6)
    mass = np.stack([statistics.of(domain).values["sum_gf"][0] for domain in statistics.domains])
    shares = mass / mass.sum(axis=1, keepdims=True)
    (chosen,) = select(blend(statistics, "maxmin", "reap"), n_keep, 1)
    best = min(largest_loss(shares, kept) for kept in itertools.combinations(range(6), n_keep))
    assert largest_loss(shares, chosen) == best


@quick
@given(
    SEEDS,
    st.integers(1, 7),
    st.sampled_from(["tokens", "uniform", "d0=5,d1=1,d2=0.2"]),
    st.sampled_from(sorted(METHODS)),
)
def test_no_blend_loses_less_of_a_domain_in_one_expert_than_maxmin(
    seed: int, n_keep: int, how: str, method: str
) -> None:
    statistics = random_statistics(seed)
    mass = np.stack([statistics.of(domain).values[METHODS[method].mass] for domain in statistics.domains])
    shares = mass / mass.sum(axis=2, keepdims=True)
    maxmin, other = (select(blend(statistics, name, method), n_keep, 1) for name in ("maxmin", how))
    for block in range(2):
        assert largest_loss(shares[:, block], maxmin[block]) <= largest_loss(shares[:, block], other[block])


def test_maxmin_does_not_depend_on_how_much_text_a_domain_has() -> None:
    statistics, tenfold = (
        of_parts({"code": part(counts, [[4, 1, 2, 1]]), "prose": PROSE})
        for counts in ([[600, 0, 300, 0]], [[6000, 0, 3000, 0]])
    )
    assert np.array_equal(blend(statistics, "maxmin", "reap"), blend(tenfold, "maxmin", "reap"))


def test_a_domain_that_a_block_never_served_asks_for_nothing() -> None:
    statistics = of_parts({"a": part([[6, 4]], [[1, 1]]), "b": part([[5, 5]], [[0, 0]])})
    assert most_needed(statistics, "reap")[0].tolist() == [0.6, 0.4]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("code=1", "weighs code, the text has code, prose; name every domain"),
        ("code=1,prose=1,math=1", "weighs code, prose, math, the text has code, prose"),
        ("maximum", "blend 'maximum' is not known at 'maximum'; give tokens, uniform, maxmin or NAME=WEIGHT"),
        ("code=1,code=2", "at 'code=2'"),
        ("code=1,prose=-1", "at 'prose=-1'"),
        ("code=1,prose=nan", "at 'prose=nan'"),
        ("code=1,prose=inf", "at 'prose=inf'"),
        ("code=1,", "at ''"),
        ("=1", "at '=1'"),
        ("", "at ''"),
        ("code=0,prose=0", "gives no domain any weight"),
    ],
)
def test_a_blend_that_cannot_be_read_is_refused(how: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        blend(BOTH, how, "reap")


@pytest.mark.parametrize("how", [*BLENDS, "code=1", "a name with = inside=0.5"])
def test_a_blend_is_checked_before_there_are_domains(how: str) -> None:
    check_blend(how)
    with pytest.raises(InputError, match="not known"):
        check_blend(how + ",")


@pytest.mark.parametrize("how", ["uniform", "maxmin", "code=1,prose=1"])
def test_a_domain_without_text_is_noticed(how: str) -> None:
    statistics = of_parts({"code": CODE, "prose": part([[0, 0, 0, 0]], [[1, 1, 1, 1]])})
    with pytest.raises(InputError, match="no token of prose was counted"):
        blend(statistics, how, "reap")
    assert np.array_equal(blend(statistics, "code=1,prose=0", "reap"), METHODS["reap"].score(CODE))


def test_an_unknown_domain_is_known_before_any_calibration(tmp_path: Path) -> None:
    """The data are open, nothing of them has been read."""
    for name in ("code", "prose"):
        (tmp_path / f"{name}.txt").write_text("text")
    data = Request(file=(str(tmp_path / "code.txt"), str(tmp_path / "prose.txt")))
    assert open_data(data, "code=2,prose=1").records
    with pytest.raises(InputError, match="weighs code, chat, the text has code, prose; name every domain"):
        open_data(data, "code=1,chat=1")


def test_it_is_said_what_is_scored() -> None:
    """By need, a mean and its sum are one score; which is not the formula that the method is named for."""
    assert (
        "sum of g‖f‖ of any domain, as by reap_root and weighted_ean_sum; --blend tokens or uniform scores by"
        in scored("reap", "maxmin")
    )
    assert np.array_equal(blend(BOTH, "maxmin", "reap"), blend(BOTH, "maxmin", "weighted_ean_sum"))
    assert scored("reap", "tokens") == METHODS["reap"].formula
    assert scored("random", "") == ""


def test_whoever_meets_a_plan_is_told_that_a_blend_by_need_is_not_the_methods_own_score() -> None:
    said = "scored by the largest share in the sum of g‖f‖ of any domain, not by 1/|X_j| Σ g_j‖f_j‖"
    assert remark("reap", "maxmin") == said
    assert remark("reap", "uniform") == remark("rank_average", "maxmin") == remark("random", "") == ""
