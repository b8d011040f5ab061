"""Which files of unknown architectures may be pruned: those that the laws held on, remembered between runs.

An architecture that no table knows is bound by the names of its tensors alone. Nobody has read how llama.cpp computes
it, so nothing is written until pruning was tried out on that very file (ggufreap.verbs.laws).
"""

import importlib.metadata
import logging

from ggufreap import cache
from ggufreap.architecture.layout import MoeLayout
from ggufreap.container import GgufFile
from ggufreap.errors import UnsupportedModel

_LOG = logging.getLogger(__name__)


def trust(file: GgufFile) -> bool:
    """Remember that the laws held on this file in this llama.cpp; tells whether it could be remembered."""
    return cache.put(_name(file), _fact(file))


def is_trusted(file: GgufFile, layout: MoeLayout) -> bool:
    """Whether this file may be pruned: its architecture is known, or the laws held on it."""
    return layout.proven or cache.get(_name(file)) == _fact(file)


def require_trust(file: GgufFile, layout: MoeLayout) -> None:
    """Raise UnsupportedModel unless this file may be pruned."""
    if not is_trusted(file, layout):
        raise UnsupportedModel(
            f"{unproven(file, layout)}; let it be tried out on this very file: ggufreap doctor {file.path}"
        )


def warn(file: GgufFile, layout: MoeLayout) -> None:
    """Say that nothing is known of this file, where that is so."""
    if not is_trusted(file, layout):
        _LOG.warning("%s; apply asks for ggufreap doctor %s", unproven(file, layout), file.path)


def unproven(file: GgufFile, layout: MoeLayout) -> str:
    """The fact about such a file."""
    return f"{file.path}: no table knows the architecture {layout.architecture.name!r}, so pruning it is unproven"


def _name(file: GgufFile) -> str:
    return f"laws-{file.fingerprint}"


def _fact(file: GgufFile) -> dict[str, object]:
    return {"nbytes": file.nbytes, "llama-cpp-python": importlib.metadata.version("llama-cpp-python")}
