"""Widths are what rows of quantised weights allow, and never less than was asked to stay."""

import pytest

from ggufreap.errors import InfeasiblePlan, InputError
from ggufreap.narrowing.widths import width_to_keep
from ggufreap.planning import least_ratio


@pytest.mark.parametrize(
    ("source_width", "ratio", "block", "width", "taken"),
    [
        (512, "0.25", 32, 384, 32),
        (512, "0.15", 32, 448, 32),
        (512, 0.15, 1, 448, 32),
        (512, "0.25", 256, 384, 32),  # of 256 nothing could be removed
        (512, "0.5", 256, 256, 256),
        (1536, "0.25", 256, 1280, 256),
        (2880, "0.2", 32, 2304, 32),
        (256, "0.3", 32, 192, 32),
    ],
)
def test_widths_are_rounded_up_to_whole_blocks(
    source_width: int, ratio: str | float, block: int, width: int, taken: int
) -> None:
    found = width_to_keep(source_width, ratio, block)
    assert (found.width, found.block) == (width, taken)
    assert found.width >= source_width * (1 - float(ratio))


def test_it_is_said_why_a_width_is_another() -> None:
    assert width_to_keep(512, "0.25").reason == ""
    assert width_to_keep(512, "0.15").reason == "rounded up to a multiple of 32, the weights in a block of down's rows"
    assert "of 256, as the type of down has them, there are too few" in width_to_keep(512, "0.25", 256).reason


def test_what_removes_nothing_is_refused() -> None:
    with pytest.raises(InfeasiblePlan, match=r"0.05 of 512 neurons is less than a block of 32.* use 0.0625 or more"):
        width_to_keep(512, "0.05")
    with pytest.raises(InfeasiblePlan, match=r"use 0.04 or more"):
        width_to_keep(100, "0.01")
    assert width_to_keep(100, "0.04").width == 96
    with pytest.raises(InfeasiblePlan, match=r"use 0.3334 or more"):
        width_to_keep(96, "0.3333")
    assert width_to_keep(96, "0.3334").width == 64
    assert (least_ratio(1, 48), least_ratio(1, 16)) == ("0.0209", "0.0625")
    with pytest.raises(InfeasiblePlan, match="experts of 32 neurons cannot be narrower"):
        width_to_keep(32, "0.5")
    with pytest.raises(InputError, match=r"not in \[0, 1\); it is the fraction of neurons to remove"):
        width_to_keep(512, "1.5")
