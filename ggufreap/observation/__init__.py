"""What a pass over text records of a model: statistics per domain and block, and importance sums; they add up."""

from ggufreap.observation.blockwise import Texts, observe_blockwise, resume, spill_nbytes
from ggufreap.observation.chunkwise import observe
from ggufreap.observation.domains import DomainStatistics
from ggufreap.observation.experts import ExpertStatistics
from ggufreap.observation.header import ONLY_DOMAIN
from ggufreap.observation.held_back import Held, HeldBack
from ggufreap.observation.hidden import hidden_path
from ggufreap.observation.merging import merge
from ggufreap.observation.provenance import Provenance, Shard
from ggufreap.observation.reuse import checkpoint_path, finished
from ggufreap.observation.statistics import STATISTICS, Floats, Importance, Statistic, observables, per_expert
from ggufreap.observation.store import AnyStatistics, Stored, load, save

__all__ = [
    "ONLY_DOMAIN",
    "STATISTICS",
    "AnyStatistics",
    "DomainStatistics",
    "ExpertStatistics",
    "Floats",
    "Held",
    "HeldBack",
    "Importance",
    "Provenance",
    "Shard",
    "Statistic",
    "Stored",
    "Texts",
    "checkpoint_path",
    "finished",
    "hidden_path",
    "load",
    "merge",
    "observables",
    "observe",
    "observe_blockwise",
    "per_expert",
    "resume",
    "save",
    "spill_nbytes",
]
