"""Optimal brain surgeon by whole columns, against the textbook and against least squares."""

from itertools import combinations

import numpy as np
import pytest

from ggufreap.narrowing import surgeon
from ggufreap.narrowing.surgeon import damped, refitted, remove

WIDTH, N_EMBD = 12, 7
Floats = np.ndarray


def problem(seed: int, width: int = WIDTH, n_tokens: int = 200) -> tuple[Floats, Floats, Floats]:
    """Correlated activations `[n_tokens, width]`, down `[n_embd, width]`, and what each token counts."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(n_tokens, width)) @ rng.normal(size=(width, width)) ** 3
    return mixed, rng.normal(size=(N_EMBD, width)), rng.random(n_tokens)


def curvature(seed: int, width: int = WIDTH) -> tuple[Floats, Floats]:
    activations, down, counts = problem(seed, width)
    return damped((activations * counts[:, None]).T @ activations), down


def textbook(hessian: Floats, down: Floats, n_remove: int) -> tuple[list[int], list[float], Floats]:
    """One column at a time: W and H⁻¹ are written anew after each."""
    weights, inverse, left = down.copy(), np.linalg.inv(hessian), list(range(len(hessian)))
    order, costs = [], []
    for _ in range(n_remove):
        prices = {i: weights[:, i] @ weights[:, i] / inverse[i, i] for i in left}
        i = min(prices, key=prices.__getitem__)
        weights -= np.outer(weights[:, i], inverse[i]) / inverse[i, i]
        inverse -= np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
        left.remove(i)
        order.append(i)
        costs.append(prices[i])
    return order, costs, weights[:, left]


def loss(hessian: Floats, down: Floats, kept: Floats, fitted: Floats) -> float:
    change = down.copy()
    change[:, kept] -= fitted
    return float(np.trace(change @ hessian @ change.T))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("together", [1, 3, 32])
def test_removals_put_together_are_those_of_the_textbook(
    seed: int, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surgeon, "TOGETHER", together)
    hessian, down = curvature(seed)
    order, costs, weights = textbook(hessian, down, 9)
    found = remove(hessian, down.T @ down, 9)
    assert found.order.tolist() == order
    np.testing.assert_allclose(found.losses, np.concatenate(([0.0], np.cumsum(costs))), rtol=1e-9)
    kept = found.kept(WIDTH - 9, WIDTH)
    np.testing.assert_allclose(refitted(down, hessian, kept), weights, rtol=1e-5, atol=1e-6)


def test_the_first_removal_is_the_best_of_all() -> None:
    hessian, down = curvature(11)

    def best_loss(gone: tuple[int, ...]) -> float:
        kept = np.setdiff1d(np.arange(WIDTH), gone)
        return loss(hessian, down, kept, refitted(down, hessian, kept))

    found = remove(hessian, down.T @ down, 2)
    singles = [best_loss((i,)) for i in range(WIDTH)]
    assert found.order[0] == int(np.argmin(singles))
    assert found.losses[1] == pytest.approx(min(singles), rel=1e-5)
    assert found.losses[2] == pytest.approx(best_loss(tuple(found.order)), rel=1e-5)
    assert found.losses[2] <= np.median([best_loss(pair) for pair in combinations(range(WIDTH), 2)])


@pytest.mark.parametrize("width", [1, 5, 11])
def test_the_losses_of_all_widths_are_those_of_their_fits(width: int) -> None:
    hessian, down = curvature(3)
    found = remove(hessian, down.T @ down, WIDTH - 1)
    kept = found.kept(width, WIDTH)
    assert found.losses[WIDTH - width] == pytest.approx(
        loss(hessian, down, kept, refitted(down, hessian, kept)), rel=1e-4
    )


def test_what_stays_is_the_least_squares_of_the_tokens() -> None:
    activations, down, counts = problem(5)
    kept = np.array([0, 2, 3, 7, 10])
    roots = np.sqrt(counts)[:, None]
    expected, *_ = np.linalg.lstsq(roots * activations[:, kept], roots * (activations @ down.T), rcond=None)
    found = refitted(down, (activations * counts[:, None]).T @ activations, kept)
    np.testing.assert_allclose(found, expected.T, rtol=1e-5, atol=1e-6)


def test_neurons_that_say_nothing_go_first_and_cost_nothing() -> None:
    activations, down, _ = problem(8)
    activations[:, [1, 4]] = 0.0
    down[:, 6] = 0.0
    hessian = damped(activations.T @ activations)
    found = remove(hessian, down.T @ down, 4)
    assert found.order[0] == 6
    assert sorted(found.order[:3]) == [1, 4, 6]
    assert found.losses[1] == 0.0
    # What never fires costs the damping alone.
    assert found.losses[3] == pytest.approx(hessian[1, 1] * (down[:, [1, 4]] ** 2).sum())


def test_twins_make_up_for_each_other() -> None:
    activations, down, _ = problem(9)
    activations[:, 2] = activations[:, 9]
    hessian = activations.T @ activations
    found = remove(damped(hessian), down.T @ down, 1)
    assert found.order[0] in (2, 9)
    kept = found.kept(WIDTH - 1, WIDTH)
    without = loss(hessian, down, kept, down[:, kept])
    assert loss(hessian, down, kept, refitted(down, damped(hessian), kept)) < 1e-3 * without


def test_wide_experts_keep_their_accuracy() -> None:
    width = 96
    hessian, down = curvature(1, width)
    order, costs, weights = textbook(hessian, down, 80)
    found = remove(hessian, down.T @ down, 80)
    assert found.order.tolist() == order
    np.testing.assert_allclose(np.diff(found.losses), costs, rtol=1e-6)
    np.testing.assert_allclose(refitted(down, hessian, found.kept(16, width)), weights, rtol=1e-4, atol=1e-5)
