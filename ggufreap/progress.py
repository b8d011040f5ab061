"""How long work reports that it moves on, without knowing who draws it."""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Bar(Protocol):
    """One running stage."""

    def update(self, amount: int) -> object:
        """Add `amount` units of finished work."""


class Progress(Protocol):
    """Opens a bar per stage; the console draws it with tqdm, the library's default draws nothing."""

    def __call__(self, stage: str, total: int | None, unit: str, done: int = 0) -> AbstractContextManager[Bar]:
        """Open the bar of `stage` with `total` units of work, None if unknown, `done` of them finished before."""


class _Silent:
    def update(self, amount: int) -> None:
        pass


def silent(stage: str, total: int | None, unit: str, done: int = 0) -> AbstractContextManager[Bar]:
    """Draw nothing."""
    return nullcontext(_Silent())
