"""Which widths of the experts are looked at."""

from ggufreap.narrowing.widths import BLOCK

WIDE = 256  # the weights in a block of the types of few bits
STEPS = 16  # so many steps at most from no neuron to all: what is finer loses about the same


def widths_to_try(source_width: int, most: float) -> list[int]:
    """Fewer neurons than `source_width`, from many to few, of which at most the fraction `most` is missing.

    Multiples of BLOCK, since rows of other lengths are in no quantised type, and of more where the experts are wide;
    those of WIDE are all there, or as many as there are steps.
    """
    step = BLOCK
    while step * STEPS < source_width:
        step *= 2
    widths = {*range(step, source_width, step), *range(max(step, WIDE), source_width, max(step, WIDE))}
    return sorted((width for width in widths if 1 - width / source_width <= most), reverse=True)
