"""Where statistics come from, and whether two of them may be used for one another."""

from dataclasses import dataclass
from typing import Self

from ggufreap.corpus.record import SourceRecord
from ggufreap.errors import InputError

# What makes the sums other sums; the rest is for the reader.
DECIDING = ("model", "corpus", "shard", "n_ctx", "n_ubatch", "count")


@dataclass(frozen=True)
class Provenance:
    """Where statistics come from; `source` is what the corpus was called, `version` who observed.

    `corpus` is of the whole corpus, in every shard. `shard` `2/3` says that every third chunk from the second on was
    observed, `1+3/3` that two such shards were merged. Statistics merged from several corpora name each in `corpus`
    and its part in `shard`, in the same order, separated by commas.
    """

    model: str  # fingerprint of the file
    corpus: str  # SHA-256 of the token chunks
    n_ctx: int
    n_ubatch: int
    source: str
    version: str
    sources: tuple[SourceRecord, ...] = ()
    shard: str = "1/1"
    count: str = "all"  # which tokens were counted: all, or those of the assistant
    structure: str = ""  # of the model, and its types, as in ModelIdentity; empty in files of earlier versions
    types: str = ""
    n_together: int = 1  # chunks that were run at once: the order in which a graph adds depends on it, to rounding

    def differences(self, other: Self) -> list[str]:
        """In what `other` differs so that its sums are others."""
        return [name for name in DECIDING if getattr(self, name) != getattr(other, name)]

    @property
    def observed(self) -> dict[str, tuple[frozenset[int], int]]:
        """Corpus -> which shards of how many."""
        shards_of = {}
        for corpus, part in zip(self.corpus.split(","), self.shard.split(","), strict=True):
            shards, count = part.split("/")
            shards_of[corpus] = frozenset(map(int, shards.split("+"))), int(count)
        return shards_of

    @property
    def missing(self) -> str:
        """Which shards of its text nobody has merged yet, in words; empty where all is there."""
        parts = self.observed.values()
        gaps = [f"{len(shards)} of {count} shards" for shards, count in parts if len(shards) < count]
        return f"{', '.join(gaps)} of its text alone; merge it with the others" if gaps else ""


@dataclass(frozen=True)
class Shard:
    """The `index`-th of `count` parts of a corpus: of every `count` chunks one."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """`2/3` is the second of three; raises InputError."""
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            raise InputError(f"shard {text!r} is not understood; write i/n, such as 1/3, 2/3 and 3/3 for three parts")
        return cls(int(index), int(count))

    def holds(self, position: int) -> bool:
        """Whether the chunk at `position` of the corpus belongs to it."""
        return position % self.count == self.index - 1
