"""All that a pass over text recorded as one file: an .npz with a JSON header and the arrays.

A statistic is the array of its name, `[n_domains, 2, n_moe_blocks, *shape]`; the importance sums, where they were
collected, are `importance values <weight>` and `importance counts <weight>`; those to judge by are `held back ...`.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from ggufreap.decoding.arrays import Array, open_arrays, take
from ggufreap.engine.importance import ImportanceSums
from ggufreap.errors import InputError
from ggufreap.files import replacing
from ggufreap.observation.domains import DomainStatistics
from ggufreap.observation.experts import ExpertStatistics
from ggufreap.observation.header import SCHEMA, SCHEMA_1, SCHEMA_2, Header, OtherVersion, read_header
from ggufreap.observation.held_back import HeldBack
from ggufreap.observation.provenance import Provenance
from ggufreap.observation.statistics import STATISTICS, Importance

WHAT, ADVICE = "a statistics file of ggufreap", "make one with calibrate"
MOST = 1e150  # of any sum: products of a few numbers in single precision, for each of 2^63 tokens at most
_PREFIX, _HELD_BACK = "importance ", "held back "
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stored:
    """A file whose header was read; its arrays are read when they are asked for.

    `statistics`: name -> version of those that it holds; `importance`: which importance sums, None where none were
    collected; `digest`: SHA-256 of all chunks of an unfinished run, in order.
    """

    path: Path
    provenance: Provenance
    blocks: tuple[int, ...]
    statistics: Mapping[str, int]
    importance: Importance | None
    digest: str
    header: Header

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read the header of what `save` wrote, or an earlier version did; raises InputError for anything else."""
        with open_arrays(path, WHAT, ADVICE) as arrays:
            try:
                header = read_header(arrays)
            except OtherVersion as error:
                raise InputError(f"{path} has {error}; calibrate again") from error
        return cls(path, header.provenance, header.blocks, header.statistics, header.importance, header.digest, header)

    @property
    def n_chunks(self) -> int:
        """All chunks."""
        return sum(sum(domain.chunks) for domain in self.header.domains)

    @property
    def through(self) -> int | None:
        """The last finished block of an unfinished run that goes block by block, None for all else."""
        return self.header.through

    @property
    def lacking(self) -> list[str]:
        """The rows of STATISTICS that it does not hold, or holds in another version."""
        return [name for name, row in STATISTICS.items() if self.statistics.get(name) != row.version]

    @property
    def unknown(self) -> list[str]:
        """The statistics in it that have no row here, or one of another version."""
        known = {name: row.version for name, row in STATISTICS.items()}
        return [name for name, version in self.statistics.items() if known.get(name) != version]

    @classmethod
    def of(cls, statistics: "AnyStatistics") -> "Stored":
        """What `statistics` names; a file that is open already is taken as it is."""
        return statistics if isinstance(statistics, Stored) else cls.open(Path(statistics))

    def domain_statistics(self) -> DomainStatistics:
        """The statistics that this version knows, read once; raises InputError for a damaged file."""
        return self._domain_statistics

    @cached_property
    def _domain_statistics(self) -> DomainStatistics:
        if self.unknown:
            _LOG.warning(
                "%s holds %s, recorded by another version of ggufreap; that is left out",
                self.path,
                ", ".join(self.unknown),
            )
        known = [name for name in STATISTICS if name in self.statistics and name not in self.unknown]
        header = self.header
        frame = self.blocks, header.n_used, header.n_expert
        with open_arrays(self.path, WHAT, ADVICE) as arrays:
            values = {name: self._values(arrays, name) for name in known}
        if header.schema == SCHEMA_1:
            values = {name: np.stack([array, np.zeros_like(array)])[None] for name, array in values.items()}

        def half(row: int, which: int) -> ExpertStatistics:
            domain, of_half = header.domains[row], {name: array[row, which] for name, array in values.items()}
            return ExpertStatistics(*frame, domain.tokens[which], domain.chunks[which], of_half)

        names = [domain.name for domain in header.domains]
        return DomainStatistics(*frame, {name: (half(row, 0), half(row, 1)) for row, name in enumerate(names)})

    def _values(self, arrays: Mapping[str, Array], name: str) -> Array:
        header, row = self.header, STATISTICS[name]
        halves = () if header.schema == SCHEMA_1 else (len(header.domains), 2)
        shape = (*halves, len(self.blocks), *row.shape(header.n_expert))
        return take(arrays, name, "iuf", shape, least=0 if name == "count" else -MOST, most=MOST)

    def importance_sums(self) -> ImportanceSums:
        """The importance sums; raises InputError where there are none, with what to do."""
        if self.importance is None:
            raise InputError(f"{self.path} holds no importance sums; calibrate again without --no-imatrix to add them")
        prefix = "" if self.header.schema == SCHEMA_2 else _PREFIX
        with open_arrays(self.path, WHAT, ADVICE) as arrays:
            members = {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}
            return ImportanceSums.from_arrays(members)

    def held_back(self) -> HeldBack:
        """The chunks to judge by; none in a file of a version that kept none, or of an unfinished run."""
        with open_arrays(self.path, WHAT, ADVICE) as arrays:
            members = {name.removeprefix(_HELD_BACK): arrays[name] for name in arrays if name.startswith(_HELD_BACK)}
            return HeldBack.from_arrays(members, [domain.name for domain in self.header.domains])


AnyStatistics = Stored | str | Path  # what the public verbs take


def load(path: Path) -> tuple[DomainStatistics, Provenance]:
    """The statistics in a file, and where they come from; raises InputError for what is none."""
    stored = Stored.open(path)
    return stored.domain_statistics(), stored.provenance


def save(
    path: Path,
    statistics: DomainStatistics,
    provenance: Provenance,
    sums: ImportanceSums | None = None,
    digest: str = "",
    held_back: HeldBack | None = None,
    through: int | None = None,
    own: bool = False,
) -> None:
    """Write the file atomically and synced, so that a killed run leaves the last whole one; with a `digest` if it waits
    for more, `through` the last finished block where it is blocks that it waits for. `own`: what lies there is known to
    be of the same work. Raises OutputError.
    """
    header = {
        "schema": SCHEMA,
        "provenance": asdict(provenance),
        "blocks": statistics.blocks,
        "n_used": statistics.n_used,
        "n_expert": statistics.n_expert,
        "domains": [
            {"name": domain, "tokens": [half.n_tokens for half in halves], "chunks": [half.n_chunks for half in halves]}
            for domain, halves in statistics.halves.items()
        ],
        "statistics": {name: STATISTICS[name].version for name in statistics.names},
        "importance": asdict(Importance(sums.output)) if sums else None,
        "digest": digest,
        "through": through,
    }
    frame = (len(statistics.halves), 2, len(statistics.blocks))
    arrays: dict[str, Any] = {"header": np.array(json.dumps(header))}
    for name in statistics.names:
        rows = [[half.values[name] for half in halves] for halves in statistics.halves.values()]
        arrays[name] = np.array(rows).reshape(*frame, *STATISTICS[name].shape(statistics.n_expert))
    if sums is not None:
        arrays |= {f"{_PREFIX}{name}": array for name, array in sums.to_arrays().items()}
    if held_back is not None:
        kept = held_back.to_arrays(statistics.domains)
        arrays |= {f"{_HELD_BACK}{name}": array for name, array in kept.items()}
    with replacing(path, own) as file:
        np.savez(file, **arrays)
