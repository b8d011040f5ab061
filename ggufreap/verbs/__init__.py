"""What a user can ask for, with the flags of the command line as parameters."""

from ggufreap.verbs.probing import bench, probe, tasks
from ggufreap.verbs.recipes import run
from ggufreap.verbs.requantize import quantize
from ggufreap.verbs.stages import apply, calibrate, inspect, plan, verify
from ggufreap.verbs.whole import Pruned, demo, prune

__all__ = [
    "Pruned",
    "apply",
    "bench",
    "calibrate",
    "demo",
    "inspect",
    "plan",
    "probe",
    "prune",
    "quantize",
    "run",
    "tasks",
    "verify",
]
