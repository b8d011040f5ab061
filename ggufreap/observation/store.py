"""All that a pass over text recorded as one file: an .npz with a JSON header and the arrays.

A statistic is the array of its name, `[n_domains, 2, n_moe_blocks, *shape]`; the importance sums, where they were
collected, are `importance values <weight>` and `importance counts <weight>`; those to judge by are `held back ...`.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile

import numpy as np

from ggufreap.corpus.record import SourceRecord
from ggufreap.engine.importance import ImportanceSums
from ggufreap.errors import InputError
from ggufreap.files import replacing
from ggufreap.observation.domains import DomainStatistics
from ggufreap.observation.experts import ExpertStatistics
from ggufreap.observation.held_back import HeldBack
from ggufreap.observation.provenance import Provenance
from ggufreap.observation.statistics import STATISTICS, Importance

SCHEMA = "ggufreap.statistics/3"
# Statistics all of version 1; a checkpoint's importance sums without prefix, its digest as an array.
SCHEMA_2 = "ggufreap.statistics/2"
# Besides, one body of text, arrays [n_moe_blocks, n_expert]; read as the first half of the domain `text`.
SCHEMA_1 = "ggufreap.statistics/1"
ONLY_DOMAIN = "text"
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
    header: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read the header of what `save` wrote, or an earlier version did; raises InputError for anything else."""
        with _archive(path) as archive:
            header = json.loads(str(archive["header"]))
            if header["schema"] in (SCHEMA_1, SCHEMA_2):
                header |= _not_said(header, archive)
            elif header["schema"] != SCHEMA:
                raise InputError(
                    f"{path} has schema {header['schema']!r}, this version reads {SCHEMA!r}; calibrate again"
                )
            return cls(
                path,
                _provenance(**header["provenance"]),
                tuple(header["blocks"]),
                header["statistics"],
                Importance(**header["importance"]) if header["importance"] else None,
                header["digest"],
                header,
            )

    @property
    def n_chunks(self) -> int:
        """All chunks."""
        return sum(sum(domain["chunks"]) for domain in self.header["domains"])

    @property
    def through(self) -> int | None:
        """The last finished block of an unfinished run that goes block by block, None for all else."""
        return self.header.get("through")

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
        frame = self.blocks, tuple(header["n_used"]), header["n_expert"]
        with _archive(self.path) as archive:
            values = {name: archive[name] for name in known}
            if header["schema"] == SCHEMA_1:
                values = {name: np.stack([array, np.zeros_like(array)])[None] for name, array in values.items()}
            for name, array in values.items():
                expected = (len(header["domains"]), 2, len(self.blocks), *STATISTICS[name].shape(header["n_expert"]))
                if array.shape != expected:
                    raise ValueError(f"{name} has shape {array.shape}, the header says {expected}")

            def half(row: int, which: int) -> ExpertStatistics:
                n_tokens, n_chunks = (header["domains"][row][what][which] for what in ("tokens", "chunks"))
                of_half = {name: array[row, which] for name, array in values.items()}
                return ExpertStatistics(*frame, n_tokens, n_chunks, of_half)

            names = [domain["name"] for domain in header["domains"]]
            return DomainStatistics(*frame, {name: (half(row, 0), half(row, 1)) for row, name in enumerate(names)})

    def importance_sums(self) -> ImportanceSums:
        """The importance sums; raises InputError where there are none, with what to do."""
        if self.importance is None:
            raise InputError(f"{self.path} holds no importance sums; calibrate again without --no-imatrix to add them")
        prefix = "" if self.header["schema"] == SCHEMA_2 else _PREFIX
        with _archive(self.path) as archive:
            arrays = {name.removeprefix(prefix): archive[name] for name in archive if name.startswith(prefix)}
            return ImportanceSums.from_arrays(arrays)

    def held_back(self) -> HeldBack:
        """The chunks to judge by; none in a file of a version that kept none, or of an unfinished run."""
        with _archive(self.path) as archive:
            arrays = {name.removeprefix(_HELD_BACK): archive[name] for name in archive if name.startswith(_HELD_BACK)}
            return HeldBack.from_arrays(arrays, [domain["name"] for domain in self.header["domains"]])


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


@contextmanager
def _archive(path: Path) -> Iterator[Any]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            yield archive
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, EOFError, BadZipFile) as error:
        raise InputError(f"{path} is not a statistics file of ggufreap ({error}); make one with calibrate") from None


def _not_said(header: Mapping[str, Any], archive: Any) -> dict[str, Any]:
    """What an earlier header does not say, and today's does."""
    more: dict[str, Any] = {
        "statistics": {name: 1 for name in STATISTICS if name in archive},
        "importance": {"output": bool(archive.get("output", False))} if "input_of" in archive else None,
        "digest": str(archive.get("chunks sha256", "")),
    }
    if header["schema"] == SCHEMA_1:
        counts = {"tokens": [header["n_tokens"], 0], "chunks": [header["n_chunks"], 0]}
        more["domains"] = [{"name": ONLY_DOMAIN, **counts}]
    return more


def _provenance(sources: tuple[dict[str, Any], ...] = (), **fields: Any) -> Provenance:
    return Provenance(**fields, sources=tuple(SourceRecord(**source) for source in sources))
