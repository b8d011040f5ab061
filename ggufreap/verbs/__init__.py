"""What a user can ask for, with the flags of the command line as parameters."""

from ggufreap.verbs.account import Account, report
from ggufreap.verbs.candidates import Preview, choose_ratio, preview
from ggufreap.verbs.checkup import Checkup, doctor
from ggufreap.verbs.choice import coverage, merge, plan
from ggufreap.verbs.evaluation import Evaluation, eval
from ggufreap.verbs.importance import ImatrixReport, imatrix
from ggufreap.verbs.probing import bench, probe, tasks
from ggufreap.verbs.recipes import run
from ggufreap.verbs.requantize import Variants, gap_note, quantize, quantize_variants
from ggufreap.verbs.stages import apply, calibrate, inspect, verify
from ggufreap.verbs.whole import Pruned, prune

__all__ = [
    "Account",
    "Checkup",
    "Evaluation",
    "ImatrixReport",
    "Preview",
    "Pruned",
    "Variants",
    "apply",
    "bench",
    "calibrate",
    "choose_ratio",
    "coverage",
    "doctor",
    "eval",
    "gap_note",
    "imatrix",
    "inspect",
    "merge",
    "plan",
    "preview",
    "probe",
    "prune",
    "quantize",
    "quantize_variants",
    "report",
    "run",
    "tasks",
    "verify",
]
