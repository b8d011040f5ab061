"""The JSON header of a statistics file as a checked value, of this version's schema and of earlier ones."""

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import Meta, Struct, ValidationError, convert

from ggufreap.architecture.layout import MAX_BLOCKS, MAX_EXPERTS
from ggufreap.decoding import Damaged
from ggufreap.decoding.arrays import Array, parse_header, take
from ggufreap.observation.provenance import Provenance
from ggufreap.observation.statistics import STATISTICS, Importance
from ggufreap.showing import excerpt, shown

SCHEMA = "ggufreap.statistics/3"
# Statistics all of version 1; a checkpoint's importance sums without prefix, its digest as an array.
SCHEMA_2 = "ggufreap.statistics/2"
# Besides, one body of text, arrays [n_moe_blocks, n_expert]; read as the first half of the domain `text`.
SCHEMA_1 = "ggufreap.statistics/1"
ONLY_DOMAIN = "text"

_Amount = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_Experts = Annotated[int, Meta(ge=1, le=MAX_EXPERTS)]
_Block = Annotated[int, Meta(ge=0, lt=MAX_BLOCKS)]


class Domain(Struct, frozen=True, forbid_unknown_fields=True):
    """A domain of the text: its tokens and chunks in both halves."""

    name: str
    tokens: tuple[_Amount, _Amount]
    chunks: tuple[_Amount, _Amount]


class Header(Struct, frozen=True, forbid_unknown_fields=True):
    """What `observation.store.save` writes as JSON.

    `through` is missing in files of earlier versions.
    """

    schema: str
    provenance: Provenance
    blocks: tuple[_Block, ...]
    n_used: tuple[_Experts, ...]
    n_expert: _Experts
    domains: tuple[Domain, ...]
    statistics: dict[str, _Amount]
    importance: Importance | None
    digest: str
    through: _Block | None = None

    def check(self) -> None:
        """Raise Damaged where its parts do not fit together."""
        for what, names in (("block", self.blocks), ("domain", [domain.name for domain in self.domains])):
            twice = [name for name, count in Counter(names).items() if count > 1]
            if twice:
                raise Damaged(f"the {what} {excerpt(twice[0])} stands twice")
        if len(self.n_used) != len(self.blocks) or max(self.n_used, default=1) > self.n_expert:
            used = f"{len(self.n_used)} blocks use {max(self.n_used, default=0)} experts at most"
            raise Damaged(f"{used}, there are {len(self.blocks)} blocks of {self.n_expert} experts")
        try:
            parts = self.provenance.observed.values()
        except ValueError as error:
            raise Damaged(f"shard {excerpt(self.provenance.shard)} is not that of its corpus") from error
        if not all(1 <= index <= count for indices, count in parts for index in indices):
            raise Damaged(f"shard {excerpt(self.provenance.shard)} is none of its corpus")


class OtherVersion(Exception):
    """Statistics of a schema that this version does not read; says which."""


def read_header(arrays: Mapping[str, Array]) -> Header:
    """The header among the arrays of a file; raises Damaged, and OtherVersion."""
    raw = parse_header(arrays, "header", dict[str, Any])
    schema = raw.get("schema")
    if schema in (SCHEMA_1, SCHEMA_2):
        raw = _not_said(arrays) | raw
    elif isinstance(schema, str) and schema != SCHEMA:
        raise OtherVersion(f"schema {excerpt(schema)}, this version reads {SCHEMA!r}")
    if schema == SCHEMA_1:
        n_tokens, n_chunks = raw.pop("n_tokens", None), raw.pop("n_chunks", None)
        raw["domains"] = [{"name": ONLY_DOMAIN, "tokens": [n_tokens, 0], "chunks": [n_chunks, 0]}]
    try:
        header = convert(raw, Header)
    except ValidationError as error:
        raise Damaged(f"its header: {shown(error, 200)}") from error
    header.check()
    return header


def _not_said(arrays: Mapping[str, Array]) -> dict[str, Any]:
    """What an earlier header does not say, and today's does."""
    output = "output" in arrays and bool(take(arrays, "output", "b", ()))
    return {
        "statistics": {name: 1 for name in STATISTICS if name in arrays},
        "importance": {"output": output} if "input_of" in arrays else None,
        "digest": str(take(arrays, "chunks sha256", "U", ())) if "chunks sha256" in arrays else "",
    }
