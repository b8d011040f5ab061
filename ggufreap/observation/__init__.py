"""What a pass over text records of a model: statistics per domain and block, and importance sums; they add up."""

from ggufreap.observation.chunkwise import observe
from ggufreap.observation.domains import DomainStatistics
from ggufreap.observation.experts import ExpertStatistics
from ggufreap.observation.held_out import HeldOut
from ggufreap.observation.merging import merge
from ggufreap.observation.provenance import Provenance, Shard
from ggufreap.observation.reuse import checkpoint_path, finished
from ggufreap.observation.statistics import STATISTICS, Floats, Importance, Statistic, observables, per_expert
from ggufreap.observation.store import ONLY_DOMAIN, Stored, load, save

__all__ = [
    "ONLY_DOMAIN",
    "STATISTICS",
    "DomainStatistics",
    "ExpertStatistics",
    "Floats",
    "HeldOut",
    "Importance",
    "Provenance",
    "Shard",
    "Statistic",
    "Stored",
    "checkpoint_path",
    "finished",
    "load",
    "merge",
    "observables",
    "observe",
    "per_expert",
    "save",
]
