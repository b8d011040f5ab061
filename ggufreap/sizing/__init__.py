"""What candidates weigh, before any is made: (experts kept, types) -> exact bytes."""

from ggufreap.sizing.classes import CLASSES, REST, ROUTED, ClassSizes, Portion, class_of, class_sizes, portions_of
from ggufreap.sizing.nearest import TYPES, nearest_type
from ggufreap.sizing.sizer import Rewriter, Sizer, rewriter

__all__ = [
    "CLASSES",
    "REST",
    "ROUTED",
    "TYPES",
    "ClassSizes",
    "Portion",
    "Rewriter",
    "Sizer",
    "class_of",
    "class_sizes",
    "nearest_type",
    "portions_of",
    "rewriter",
]
