"""Which experts stay by a method and a blend, with the guard over all of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from ggufreap.observation import DomainStatistics
from ggufreap.selection.gram import Rows
from ggufreap.selection.guard import RULE, keeping, super_experts
from ggufreap.selection.methods import method_of


@dataclass(frozen=True)
class Choice:
    """The experts that stay, row by row of the statistics' blocks; `saved`: (block, expert) that the guard put back."""

    rows: Rows
    saved: Sequence[tuple[int, int]]

    @property
    def note(self) -> str:
        """What the guard did, in a line; empty where it did nothing."""
        if not self.saved:
            return ""
        names = ", ".join(f"{expert} of block {block}" for block, expert in self.saved)
        return f"kept against the method, as what makes massive activations: expert {names} ({RULE})"


def choose(statistics: DomainStatistics, method: str, how: str, n_keep: int, n_group: int = 1) -> Choice:
    """The experts that stay by a method, named as for method_of, and a blend; super experts always stay."""
    row = method_of(method)
    rows = row.choose(statistics, how, n_keep, n_group)
    protected = super_experts(statistics.total)
    if not protected.any():
        return Choice(rows, ())
    kept, saved = keeping(rows, protected, row.score(statistics, how), n_group)
    return Choice(kept, [(statistics.blocks[index], expert) for index, expert in saved])
