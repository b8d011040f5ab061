"""Which files of unknown architectures may be pruned: those that the laws held on, remembered between runs.

An architecture that no table knows is bound by the names of its tensors alone. Nobody has read how llama.cpp computes
it, so nothing is written until pruning was tried out on that very file (ggufreap.verbs.laws).
"""

import importlib.metadata

from ggufreap import cache
from ggufreap.errors import UnsupportedModel
from ggufreap.model import Model
from ggufreap.showing import to_copy


def trust(model: Model) -> bool:
    """Remember that the laws held on this file in this llama.cpp; tells whether it could be remembered."""
    return cache.put(_name(model), _fact(model))


def is_trusted(model: Model) -> bool:
    """Whether this file may be pruned: its architecture is known, or the laws held on it."""
    return model.layout.proven or cache.get(_name(model)) == _fact(model)


def require_trust(model: Model) -> None:
    """Raise UnsupportedModel unless this file may be pruned."""
    if not is_trusted(model):
        raise UnsupportedModel(
            f"{unproven(model)}; let it be tried out on this very file: {to_copy('doctor', model.path)}"
        )


def warn(model: Model) -> None:
    """Say that nothing is known of this file, where that is so."""
    if not is_trusted(model):
        model.warn(f"{unproven(model)}; apply asks for {to_copy('doctor', model.path)}")


def unproven(model: Model) -> str:
    """The fact about such a file."""
    return (
        f"{model.path}: no table knows the architecture {model.layout.architecture.name!r}, so pruning it is unproven"
    )


def _name(model: Model) -> str:
    return f"laws-{model.file.fingerprint}"


def _fact(model: Model) -> dict[str, object]:
    return {"nbytes": model.file.nbytes, "llama-cpp-python": importlib.metadata.version("llama-cpp-python")}
