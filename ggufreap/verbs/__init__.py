"""What a user can ask for, with the flags of the command line as options and parameters."""

from ggufreap.verbs.advise import Advice, advise
from ggufreap.verbs.apply import apply
from ggufreap.verbs.bench import bench
from ggufreap.verbs.calibrate import calibrate
from ggufreap.verbs.coverage import coverage
from ggufreap.verbs.doctor import Checkup, doctor
from ggufreap.verbs.eval import Evaluation, eval
from ggufreap.verbs.fit import Fitted, fit
from ggufreap.verbs.frontier import Frontier, frontier
from ggufreap.verbs.imatrix import ImatrixReport, imatrix
from ggufreap.verbs.inspect import inspect
from ggufreap.verbs.merge import merge
from ggufreap.verbs.models import Models, models
from ggufreap.verbs.narrow import Narrowed, narrow
from ggufreap.verbs.plan import plan
from ggufreap.verbs.preview import Preview, preview
from ggufreap.verbs.probe import probe
from ggufreap.verbs.prune import Pruned, prune
from ggufreap.verbs.quantize import Variants, gap_note, quantize, quantize_variants
from ggufreap.verbs.ratio import choose_ratio
from ggufreap.verbs.report import Account, report
from ggufreap.verbs.run import run
from ggufreap.verbs.tasks import tasks
from ggufreap.verbs.verify import verify

__all__ = [
    "Account",
    "Advice",
    "Checkup",
    "Evaluation",
    "Fitted",
    "Frontier",
    "ImatrixReport",
    "Models",
    "Narrowed",
    "Preview",
    "Pruned",
    "Variants",
    "advise",
    "apply",
    "bench",
    "calibrate",
    "choose_ratio",
    "coverage",
    "doctor",
    "eval",
    "fit",
    "frontier",
    "gap_note",
    "imatrix",
    "inspect",
    "merge",
    "models",
    "narrow",
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
