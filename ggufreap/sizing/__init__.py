"""What candidates weigh, before any is made: (experts kept, their width, types) -> exact bytes."""

from ggufreap.sizing.classes import (
    CLASSES,
    REST,
    ROUTED,
    Portion,
    class_of,
    portion,
)
from ggufreap.sizing.nearest import TYPES, nearest_type
from ggufreap.sizing.outline import Outline, Rows, rows_of
from ggufreap.sizing.sizer import Rewriter, Sizer, of_count, rewriter

__all__ = [
    "CLASSES",
    "REST",
    "ROUTED",
    "TYPES",
    "Outline",
    "Portion",
    "Rewriter",
    "Rows",
    "Sizer",
    "class_of",
    "nearest_type",
    "of_count",
    "portion",
    "rewriter",
    "rows_of",
]
