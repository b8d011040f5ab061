"""A cut is divided so that it is as large as asked for, leaves no room, and takes more neurons than experts."""

from fractions import Fraction

import pytest

from ggufreap.errors import InfeasiblePlan, InputError
from ggufreap.narrowing.splitting import split


@pytest.mark.parametrize("shrink", ["0.1", "0.25", "0.4", "0.5", "0.75"])
@pytest.mark.parametrize(
    ("n_expert", "width", "block"), [(32, 256, 8), (256, 512, 32), (128, 1536, 256), (16, 128, 32)]
)
def test_a_split_is_as_large_as_asked_for_and_leaves_no_room(
    n_expert: int, width: int, block: int, shrink: str
) -> None:
    found = split(n_expert, width, shrink, block=block)
    most = n_expert * width * (1 - Fraction(shrink))
    assert found.width % block == 0
    assert found.n_keep * found.width <= most
    assert found.n_keep == n_expert or (found.n_keep + 1) * found.width > most
    assert found.width == width or found.n_keep * (found.width + block) > most


@pytest.mark.parametrize("shrink", ["0.25", "0.5"])
def test_more_neurons_than_experts_go(shrink: str) -> None:
    found = split(256, 512, shrink)
    experts, neurons = 1 - found.n_keep / 256, 1 - found.width / 512
    assert 1.2 < neurons / experts < 2.5
    assert found.reason.startswith(f"keeps {found.n_keep} of 256 experts with {found.width} of 512 neurons each, ")


def test_only_counts_that_can_be_routed_are_taken() -> None:
    assert split(64, 512, "0.5", n_group=8).n_keep % 8 == 0
    assert split(64, 512, "0.5", allowed=lambda count: count in (40, 64)).n_keep == 40


@pytest.mark.parametrize("shrink", ["0.06", "0.1", "0.2", "0.3"])
@pytest.mark.parametrize(("n_expert", "width", "block"), [(256, 512, 256), (128, 768, 256), (32, 192, 32)])
def test_wide_steps_of_neurons_do_not_remove_much_more_than_was_asked_for(
    n_expert: int, width: int, block: int, shrink: str
) -> None:
    found = split(n_expert, width, shrink, block=block)
    assert (found.width < width) == ("of neurons as of experts" in found.reason)
    assert Fraction(shrink) <= 1 - Fraction(found.n_keep * found.width, n_expert * width) <= Fraction(shrink) * 5 / 4


def test_what_is_less_than_a_step_is_refused_with_what_there_is() -> None:
    with pytest.raises(
        InfeasiblePlan, match=r"keeps 15 of 16 experts with 128 of 128 neurons, .*; use 0\.0625 or more"
    ):
        split(16, 128, "0.001")
    assert split(16, 128, "0.0625").n_keep == 15


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InfeasiblePlan, match=r"a shrink of 0.99 of 8 experts with 64 neurons leaves no experts"):
        split(8, 64, "0.99", allowed=lambda count: count >= 4)
    with pytest.raises(InfeasiblePlan, match="a shrink of 0 removes nothing"):
        split(8, 64, 0)
    with pytest.raises(InputError, match=r"not in \[0, 1\)"):
        split(8, 64, "1")
