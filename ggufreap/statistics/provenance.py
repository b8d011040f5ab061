"""Where statistics come from, and whether two of them may be used for one another."""

from dataclasses import dataclass
from typing import Self

# What makes the sums other sums; the rest is for the reader.
DECIDING = ("model", "corpus", "shard", "n_ctx", "n_ubatch", "count")


@dataclass(frozen=True)
class SourceRecord:
    """One source of text: a file or a data set, with what was taken of it. What does not apply is empty.

    `samples` documents or conversations gave `tokens` tokens; `sha256` is of these tokens.
    """

    name: str
    revision: str
    subset: str
    split: str
    domain: str
    samples: int
    tokens: int
    sha256: str


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

    def differences(self, other: Self) -> list[str]:
        """In what `other` differs so that its sums are others."""
        return [name for name in DECIDING if getattr(self, name) != getattr(other, name)]
