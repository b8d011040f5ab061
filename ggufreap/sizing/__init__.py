"""What candidates weigh, before any is made: (experts kept, types) -> exact bytes."""

from ggufreap.sizing.classes import (
    CLASSES,
    REST,
    ROUTED,
    ClassSizes,
    Portion,
    class_of,
    class_sizes,
    portion,
    portions_of,
)
from ggufreap.sizing.nearest import TYPES, nearest_type
from ggufreap.sizing.outline import Outline, Rows, rows_of
from ggufreap.sizing.sizer import Rewriter, Sizer, of_count, rewriter

__all__ = [
    "CLASSES",
    "REST",
    "ROUTED",
    "TYPES",
    "ClassSizes",
    "Outline",
    "Portion",
    "Rewriter",
    "Rows",
    "Sizer",
    "class_of",
    "class_sizes",
    "nearest_type",
    "of_count",
    "portion",
    "portions_of",
    "rewriter",
    "rows_of",
]
