"""Sizes as people read them, the same wherever they stand; a figure that is exact to the byte shows all its digits."""

from collections.abc import Sequence

BYTES = ("B", "kB", "MB", "GB", "TB")


def size(nbytes: float) -> str:
    """Bytes in the decimal units that disks are sold in, in three digits or all that stand before the point."""
    value, unit = scaled(nbytes, BYTES)
    decimals = 0 if unit == "B" or abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:,.{decimals}f} {unit}"


def scaled(value: float, units: Sequence[str]) -> tuple[float, str]:
    """A value in the one of `units`, each a thousand of the one before, in which it has one to three digits."""
    index = 0
    # What would round up to 1000 of a unit is one of the next.
    while abs(value) >= 999.5 and index < len(units) - 1:
        value, index = value / 1000, index + 1
    return value, units[index]
