"""What calibration knows of every expert, per domain of the text; sums that add up over any split of the data."""

from ggufreap.statistics.domains import DomainStatistics
from ggufreap.statistics.experts import ACCUMULATORS, Accumulator, ExpertStatistics, Floats
from ggufreap.statistics.merging import merge
from ggufreap.statistics.provenance import Provenance, SourceRecord
from ggufreap.statistics.storage import ONLY_DOMAIN, load, load_more, save

__all__ = [
    "ACCUMULATORS",
    "ONLY_DOMAIN",
    "Accumulator",
    "DomainStatistics",
    "ExpertStatistics",
    "Floats",
    "Provenance",
    "SourceRecord",
    "load",
    "load_more",
    "merge",
    "save",
]
