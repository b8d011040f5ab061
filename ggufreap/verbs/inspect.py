"""What is in a model."""

from ggufreap.inspection import Inspection, described
from ggufreap.model import AnyModel, Model


def inspect(model: AnyModel) -> Inspection:
    """Describe a model from its header alone."""
    return described(Model.open(model))
