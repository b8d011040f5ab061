"""What was measured of pruned files, and of the rival of equal size, as the meters give it.

Gates and the console read it, with all that the meters can tell; what a report publishes of it are reporting.facts,
figures alone, whose names are those of `report.json`.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ggufreap import naming
from ggufreap.container import GgufFile, type_name
from ggufreap.evaluation import Comparison, Outcome
from ggufreap.evaluation.probes import Probes
from ggufreap.evaluation.speed import SpeedReport
from ggufreap.evaluation.tasks import TaskReport
from ggufreap.quantization.request import FILE_TYPES


@dataclass(frozen=True)
class Judged:
    """One pruned file and what it lost; `kind` is its type."""

    path: Path
    kind: str
    nbytes: int
    comparison: Comparison | None = None
    probes: Probes | None = None
    tasks: tuple[TaskReport, ...] = ()
    speed: SpeedReport | None = None
    gates: tuple[Outcome, ...] = ()


@dataclass(frozen=True)
class EqualSize:
    """The unpruned model in the type whose size is nearest to that of the first pruned file."""

    kind: str
    nbytes: int
    comparison: Comparison
    pruned: Judged

    @property
    def loses(self) -> bool:
        """Whether pruning costs more than quantising the whole model to that size."""
        return bool(self.pruned.comparison and self.pruned.comparison.mean.kld > self.comparison.mean.kld)


def kind_of(file: GgufFile) -> str:
    """The type that its name ends with, else the one that the file says it is, else that of most of its bytes."""
    if match := naming.ENCODING.search(naming.stem_of(file.path)):
        return str(match["encoding"])
    names = {number: name for name, number in FILE_TYPES.items()}
    if (kind := names.get(file.get("general.file_type"))) is not None:
        return kind
    sizes: Counter[str] = Counter()
    for record in file.tensors:
        sizes[type_name(record.type)] += record.nbytes
    return max(sizes, key=lambda name: sizes[name])
