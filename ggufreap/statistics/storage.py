"""Statistics as a file: an .npz with a JSON header and arrays `[n_domains, 2, n_moe_blocks, n_expert]`."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from ggufreap.errors import InputError
from ggufreap.files import replacing
from ggufreap.statistics.domains import DomainStatistics
from ggufreap.statistics.experts import ACCUMULATORS, ExpertStatistics, Floats
from ggufreap.statistics.provenance import Provenance, SourceRecord

SCHEMA = "ggufreap.statistics/2"
# One body of text, arrays [n_moe_blocks, n_expert]; read as the first half of the domain `text`.
SCHEMA_WITHOUT_DOMAINS = "ggufreap.statistics/1"
ONLY_DOMAIN = "text"


def save(
    path: Path,
    statistics: DomainStatistics,
    provenance: Provenance,
    more: Mapping[str, npt.NDArray[Any]] = MappingProxyType({}),
) -> None:
    """Write the file atomically and synced, so that a killed run leaves the last whole one.

    `more` arrays travel along, for `load_more`.
    """
    header = {
        "schema": SCHEMA,
        "provenance": asdict(provenance),
        "blocks": statistics.blocks,
        "n_used": statistics.n_used,
        "n_expert": statistics.n_expert,
        "domains": [
            {
                "name": domain,
                "tokens": [half.n_tokens for half in halves],
                "chunks": [half.n_chunks for half in halves],
            }
            for domain, halves in statistics.halves.items()
        ],
    }
    shape = (len(statistics.halves), 2, len(statistics.blocks), statistics.n_expert)
    values = {
        name: np.array([[half.values[name] for half in halves] for halves in statistics.halves.values()]).reshape(shape)
        for name in ACCUMULATORS
    }
    arrays: dict[str, Any] = {"header": np.array(json.dumps(header)), **values, **more}
    with replacing(path) as file:
        np.savez(file, **arrays)


def load_more(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays that were saved along with the statistics."""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive if name != "header" and name not in ACCUMULATORS}


def load(path: Path) -> tuple[DomainStatistics, Provenance]:
    """Read what `save` wrote, or what an earlier version did; raises InputError for anything else."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            header = json.loads(str(archive["header"]))
            values = {name: archive[name] for name in ACCUMULATORS}
        if header["schema"] == SCHEMA_WITHOUT_DOMAINS:
            values = {name: np.stack([array, np.zeros_like(array)])[None] for name, array in values.items()}
            counts = {"tokens": [header["n_tokens"], 0], "chunks": [header["n_chunks"], 0]}
            header |= {"schema": SCHEMA, "domains": [{"name": ONLY_DOMAIN, **counts}]}
        if header["schema"] != SCHEMA:
            raise InputError(f"{path} has schema {header['schema']!r}, this version reads {SCHEMA!r}; calibrate again")
        return _statistics(header, values), _provenance(**header["provenance"])
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, EOFError, BadZipFile) as error:
        raise InputError(f"{path} is not a statistics file of ggufreap ({error}); make one with calibrate") from None


def _statistics(header: dict[str, Any], values: Mapping[str, Floats]) -> DomainStatistics:
    blocks, n_used, n_expert = tuple(header["blocks"]), tuple(header["n_used"]), header["n_expert"]
    expected = (len(header["domains"]), 2, len(blocks), n_expert)
    wrong = [name for name, array in values.items() if array.shape != expected]
    if wrong:
        raise ValueError(f"{wrong[0]} has shape {values[wrong[0]].shape}, the header says {expected}")

    def half(row: int, domain: dict[str, Any], which: int) -> ExpertStatistics:
        of_half = {name: array[row, which] for name, array in values.items()}
        return ExpertStatistics(blocks, n_used, n_expert, domain["tokens"][which], domain["chunks"][which], of_half)

    halves = {
        domain["name"]: (half(row, domain, 0), half(row, domain, 1)) for row, domain in enumerate(header["domains"])
    }
    return DomainStatistics(blocks, n_used, n_expert, halves)


def _provenance(sources: tuple[dict[str, Any], ...] = (), **fields: Any) -> Provenance:
    return Provenance(**fields, sources=tuple(SourceRecord(**source) for source in sources))
