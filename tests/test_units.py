"""Sizes as people read them."""

import pytest

from ggufreap.units import size


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9_994, "9.99 kB"),
        (9_996, "10.0 kB"),
        (99_960, "100 kB"),
        (999_499, "999 kB"),
        (999_700, "1.00 MB"),
        (-24_130_000, "-24.1 MB"),
        (4_321_000_000, "4.32 GB"),
        (1_500_000_000_000, "1.50 TB"),
        (2_000_000_000_000_000, "2,000 TB"),
    ],
)
def test_sizes_are_decimal_and_have_three_digits(nbytes: int, text: str) -> None:
    assert size(nbytes) == text
