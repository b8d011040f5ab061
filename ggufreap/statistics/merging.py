"""Puts statistics together that were observed apart: shards of one corpus, or several texts on one model."""

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import add
from pathlib import Path

from ggufreap.errors import InputError, MismatchError
from ggufreap.statistics.domains import DomainStatistics
from ggufreap.statistics.provenance import Provenance
from ggufreap.statistics.storage import load

SAME = ("model", "n_ctx", "n_ubatch", "count")


def merge(paths: Sequence[Path]) -> tuple[DomainStatistics, Provenance]:
    """The sum of statistics files, as if one run had observed all, up to the order in which float64 adds.

    Raises MismatchError for files of another model or other settings, and where a chunk would count twice: the same
    shard again, or shards of one corpus that was cut in different ways.
    """
    if not paths:
        raise InputError("there is nothing to merge; name two or more statistics files")
    loaded = [load(path) for path in paths]
    first = loaded[0][1]
    parts: dict[str, tuple[int, dict[int, Path]]] = {}  # corpus -> n, and which file observed which of its n shards
    for path, (_, provenance) in zip(paths, loaded, strict=True):
        differing = [name for name in SAME if getattr(provenance, name) != getattr(first, name)]
        if differing:
            raise MismatchError(
                f"{path} has another {', '.join(differing)} than {paths[0]}; only sums of the same kind add up"
            )
        for corpus, shards, n_shards in _observed(provenance):
            known, seen = parts.setdefault(corpus, (n_shards, {}))
            if known != n_shards:
                raise MismatchError(
                    f"{path} holds a shard of {n_shards}, {next(iter(seen.values()))} one of {known} of one corpus; "
                    "chunks that they have in common would count twice"
                )
            for shard in shards:
                if shard in seen:
                    raise MismatchError(
                        f"{path} and {seen[shard]} both hold shard {shard}/{n_shards} of the same corpus; "
                        "it would count twice"
                    )
                seen[shard] = path
    provenances = [provenance for _, provenance in loaded]
    merged = replace(
        first,
        corpus=",".join(parts),
        shard=",".join(f"{'+'.join(map(str, sorted(seen)))}/{n_shards}" for n_shards, seen in parts.values()),
        source=" + ".join(dict.fromkeys(provenance.source for provenance in provenances)),
        version=" + ".join(dict.fromkeys(provenance.version for provenance in provenances)),
        sources=tuple(dict.fromkeys(source for provenance in provenances for source in provenance.sources)),
    )
    return reduce(add, (statistics for statistics, _ in loaded)), merged


def _observed(provenance: Provenance) -> list[tuple[str, list[int], int]]:
    """Per corpus, which shards of how many."""
    found = []
    for corpus, part in zip(provenance.corpus.split(","), provenance.shard.split(","), strict=True):
        shards, n_shards = part.split("/")
        found.append((corpus, [int(shard) for shard in shards.split("+")], int(n_shards)))
    return found
