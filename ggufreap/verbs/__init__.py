"""What a user can ask for, with the flags of the command line as parameters."""

from ggufreap.verbs.importance import ImatrixReport, imatrix
from ggufreap.verbs.recipes import run
from ggufreap.verbs.requantize import Variants, gap_note, quantize, quantize_variants
from ggufreap.verbs.stages import apply, calibrate, inspect, plan, verify
from ggufreap.verbs.whole import Pruned, demo, prune

__all__ = [
    "ImatrixReport",
    "Pruned",
    "Variants",
    "apply",
    "calibrate",
    "demo",
    "gap_note",
    "imatrix",
    "inspect",
    "plan",
    "prune",
    "quantize",
    "quantize_variants",
    "run",
    "verify",
]
