"""Prunes experts out of mixture-of-experts models directly in GGUF.

The verbs are the same here and on the command line::

    from ggufreap import Target, calibrate, plan, apply, verify

Options (Target, Output and others) are values, made of the same fields as the flags and the keys of recipes.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ggufreap.version import __version__

if TYPE_CHECKING:
    from ggufreap.demonstration import demo
    from ggufreap.options.data import Reading, Request
    from ggufreap.options.engine import EngineSettings
    from ggufreap.options.fit import Fit
    from ggufreap.options.judgement import HeldOut, Judgement
    from ggufreap.options.output import Output
    from ggufreap.options.quantisation import Quantisation, Quantiser
    from ggufreap.options.target import Target
    from ggufreap.verbs.advise import advise
    from ggufreap.verbs.apply import apply
    from ggufreap.verbs.bench import bench
    from ggufreap.verbs.calibrate import calibrate
    from ggufreap.verbs.doctor import doctor
    from ggufreap.verbs.eval import eval
    from ggufreap.verbs.fit import fit
    from ggufreap.verbs.frontier import frontier
    from ggufreap.verbs.inspect import inspect
    from ggufreap.verbs.merge import merge
    from ggufreap.verbs.models import models
    from ggufreap.verbs.narrow import narrow
    from ggufreap.verbs.plan import plan
    from ggufreap.verbs.preview import preview
    from ggufreap.verbs.probe import probe
    from ggufreap.verbs.prune import prune
    from ggufreap.verbs.quantize import quantize
    from ggufreap.verbs.report import report
    from ggufreap.verbs.run import run
    from ggufreap.verbs.tasks import tasks
    from ggufreap.verbs.verify import verify

__all__ = [
    "EngineSettings",
    "Fit",
    "HeldOut",
    "Judgement",
    "Output",
    "Quantisation",
    "Quantiser",
    "Reading",
    "Request",
    "Target",
    "__version__",
    "advise",
    "apply",
    "bench",
    "calibrate",
    "demo",
    "doctor",
    "eval",
    "fit",
    "frontier",
    "inspect",
    "merge",
    "models",
    "narrow",
    "plan",
    "preview",
    "probe",
    "prune",
    "quantize",
    "report",
    "run",
    "tasks",
    "verify",
]

logging.getLogger(__name__).addHandler(logging.NullHandler())


_OPTIONS = {
    "EngineSettings": "engine",
    "Fit": "fit",
    "HeldOut": "judgement",
    "Judgement": "judgement",
    "Output": "output",
    "Quantisation": "quantisation",
    "Quantiser": "quantisation",
    "Reading": "data",
    "Request": "data",
    "Target": "target",
}


def __getattr__(name: str) -> Any:
    """Import the verbs on first use: `ggufreap --help` must not wait for numpy and gguf."""
    if name in _OPTIONS:
        return getattr(import_module(f"ggufreap.options.{_OPTIONS[name]}"), name)
    if name in __all__:
        return getattr(import_module("ggufreap.demonstration" if name == "demo" else "ggufreap.verbs"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
