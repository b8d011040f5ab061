"""What candidates weigh, before any is made: (experts kept, types) -> exact bytes."""

from ggufreap.sizing.classes import CLASSES, ClassSizes, class_sizes
from ggufreap.sizing.nearest import TYPES, nearest_type
from ggufreap.sizing.sizer import Rewriter, Sizer, rewriter

__all__ = ["CLASSES", "TYPES", "ClassSizes", "Rewriter", "Sizer", "class_sizes", "nearest_type", "rewriter"]
