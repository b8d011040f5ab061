"""Text and tables, as every drawer uses them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ggufreap.showing import shown

Drawers = Mapping[type, Callable[[Any], None]]
Plain = Mapping[type, Callable[[Any], Any]]  # what JSON shows of a result


def say(*things: Any, style: str | None = None) -> None:
    """Draw; what stands in names, paths and samples is never taken for markup, nor for commands by the terminal."""
    from rich.console import Console

    safe = [shown(thing, allowed="\n\t") if isinstance(thing, str) else thing for thing in things]
    Console(highlight=False, soft_wrap=True, markup=False, emoji=False).print(*safe, style=style)


def styled(text: str, style: str) -> Any:
    """A piece of text in a style."""
    from rich.text import Text

    return Text(shown(text, allowed="\n"), style)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table; its first column is text, the others are numbers."""
    from rich.table import Table

    grid = Table(box=None, pad_edge=False)
    for index, column in enumerate(columns):
        grid.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        grid.add_row(*map(shown, row))
    say(title, style="italic")  # not the table's own title, which would be folded to the table's width
    say(grid)
