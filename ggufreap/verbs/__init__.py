"""What a user can ask for, with the flags of the command line as parameters."""

from ggufreap.verbs.candidates import Preview, choose_ratio, preview
from ggufreap.verbs.evaluation import Evaluation, eval
from ggufreap.verbs.recipes import run
from ggufreap.verbs.requantize import quantize
from ggufreap.verbs.stages import apply, calibrate, inspect, plan, verify
from ggufreap.verbs.whole import Pruned, demo, prune

__all__ = [
    "Evaluation",
    "Preview",
    "Pruned",
    "apply",
    "calibrate",
    "choose_ratio",
    "demo",
    "eval",
    "inspect",
    "plan",
    "preview",
    "prune",
    "quantize",
    "run",
    "verify",
]
