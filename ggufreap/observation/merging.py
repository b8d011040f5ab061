"""Puts files together that were observed apart: shards of one corpus, several texts, or other blocks of one model."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import NamedTuple

from ggufreap.engine.importance import ImportanceSums
from ggufreap.errors import InputError, MismatchError
from ggufreap.observation.domains import DomainStatistics
from ggufreap.observation.held_back import HeldBack
from ggufreap.observation.provenance import Provenance
from ggufreap.observation.store import Stored

SAME = ("model", "n_ctx", "n_ubatch", "count")
_LOG = logging.getLogger(__name__)


class Merged(NamedTuple):
    """What a file holds, as `save` takes it."""

    statistics: DomainStatistics
    provenance: Provenance
    sums: ImportanceSums | None
    digest: str = ""
    held_back: HeldBack | None = None


def merge(paths: Sequence[Path]) -> Merged:
    """The sum of statistics files, as if one run had observed all, up to the order in which float64 adds.

    Files of the same blocks add up; those of other blocks go beside them, where they saw the same chunks. Importance
    sums are merged where every file holds them, those of the output head too; else it is said that they are not.
    Raises MismatchError for files of another model or other settings, and where something would count twice: the same
    shard or block again, or shards of one corpus that was cut in different ways.
    """
    if not paths:
        raise InputError("there is nothing to merge; name two or more statistics files")
    stored = [Stored.open(path) for path in paths]
    _check_kind(stored)
    groups: dict[tuple[int, ...], list[Stored]] = {}
    for each in stored:
        groups.setdefault(each.blocks, []).append(each)
    owners: dict[int, Path] = {}
    for blocks, group in groups.items():
        for block in blocks:
            if block in owners:
                raise MismatchError(
                    f"{group[0].path} and {owners[block]} both hold block {block}, beside different others; "
                    "it would count twice"
                )
            owners[block] = group[0].path
    with_sums = _all_have_sums(stored)
    merged = reduce(_beside, (_added(group, with_sums) for group in groups.values()))
    held_back = HeldBack()
    for each in stored:
        held_back.merge(each.held_back())
    return merged._replace(held_back=held_back)


def _check_kind(stored: Sequence[Stored]) -> None:
    first = stored[0]
    for each in stored[1:]:
        differing = [name for name in SAME if getattr(each.provenance, name) != getattr(first.provenance, name)]
        if differing:
            raise MismatchError(
                f"{each.path} has another {', '.join(differing)} than {first.path}; only sums of the same kind add up"
            )
        if each.statistics != first.statistics:
            names = sorted(name for name, _ in each.statistics.items() ^ first.statistics.items())
            raise MismatchError(
                f"{', '.join(dict.fromkeys(names))}: {each.path} and {first.path} do not both hold that, in one "
                "version; calibrate again what is older"
            )


def _all_have_sums(stored: Sequence[Stored]) -> bool:
    without = [str(each.path) for each in stored if each.importance is None]
    if without and len(without) < len(stored):
        _LOG.warning(
            "no importance matrix is merged: %s holds no importance sums; calibrate again without --no-imatrix to add "
            "them",
            ", ".join(without),
        )
    return not without


def _added(group: Sequence[Stored], with_sums: bool) -> Merged:
    """Files of the same blocks."""
    parts: dict[str, tuple[int, dict[int, Path]]] = {}  # corpus -> n, and which file observed which of its n shards
    for each in group:
        for corpus, (shards, n_shards) in each.provenance.observed.items():
            known, seen = parts.setdefault(corpus, (n_shards, {}))
            if known != n_shards:
                raise MismatchError(
                    f"{each.path} holds a shard of {n_shards}, {next(iter(seen.values()))} one of {known} of one "
                    "corpus; chunks that they have in common would count twice"
                )
            for shard in sorted(shards):
                if shard in seen:
                    raise MismatchError(
                        f"{each.path} and {seen[shard]} both hold shard {shard}/{n_shards} of the same corpus; "
                        "it would count twice"
                    )
                seen[shard] = each.path
    shards_of = ",".join(f"{'+'.join(map(str, sorted(seen)))}/{n_shards}" for n_shards, seen in parts.values())
    provenance = replace(_together([each.provenance for each in group]), corpus=",".join(parts), shard=shards_of)
    statistics = reduce(add, (each.domain_statistics() for each in group))
    return Merged(statistics, provenance, _added_sums(group) if with_sums else None)


def _added_sums(group: Sequence[Stored]) -> ImportanceSums:
    output = all(each.importance and each.importance.output for each in group)
    total = ImportanceSums(output=output)
    for each in group:
        sums = each.importance_sums()
        if sums.output and not output:
            _LOG.warning("%s: the sums of the output head are left out, not all others have them", each.path)
        total.add(sums if output else sums.without_output())
    return total


def _beside(one: Merged, other: Merged) -> Merged:
    """Files of other blocks."""
    if one.provenance.observed != other.provenance.observed:
        raise MismatchError(
            f"blocks {_list(one)} saw shard {one.provenance.shard}, blocks {_list(other)} {other.provenance.shard} or "
            "another corpus; only blocks that were observed on the same chunks go together"
        )
    statistics = one.statistics.beside(other.statistics)
    sums = None
    if one.sums is not None and other.sums is not None:
        twice = sorted(one.sums.input_of.keys() & other.sums.input_of.keys())
        if twice:
            raise MismatchError(
                f"the importance sums of {twice[0]} were collected with either blocks; they would count twice"
            )
        sums = ImportanceSums(output=one.sums.output or other.sums.output)
        for part in (one.sums, other.sums):
            sums.add(part)
    return Merged(statistics, _together([one.provenance, other.provenance]), sums)


def _together(provenances: Sequence[Provenance]) -> Provenance:
    return replace(
        provenances[0],
        source=" + ".join(dict.fromkeys(each.source for each in provenances)),
        version=" + ".join(dict.fromkeys(each.version for each in provenances)),
        sources=tuple(dict.fromkeys(source for each in provenances for source in each.sources)),
    )


def _list(merged: Merged) -> str:
    return ", ".join(map(str, merged.statistics.blocks))
