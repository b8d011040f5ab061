"""What is in a model."""

from ggufreap.inspection import Inspection, inspect_file
from ggufreap.model import AnyModel, Model


def inspect(model: AnyModel) -> Inspection:
    """Describe a model from its header alone."""
    opened = Model.open(model)
    return inspect_file(opened.file, opened.layout)
