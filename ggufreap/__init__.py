"""Prunes experts out of mixture-of-experts models directly in GGUF.

The verbs are the same here and on the command line::

    from ggufreap import calibrate, plan, apply, verify
"""

import logging
from typing import TYPE_CHECKING, Any

from ggufreap.version import __version__

if TYPE_CHECKING:
    from ggufreap.demonstration import demo
    from ggufreap.verbs import (
        apply,
        bench,
        calibrate,
        doctor,
        eval,
        inspect,
        merge,
        plan,
        preview,
        probe,
        prune,
        quantize,
        report,
        run,
        tasks,
        verify,
    )

__all__ = [
    "__version__",
    "apply",
    "bench",
    "calibrate",
    "demo",
    "doctor",
    "eval",
    "inspect",
    "merge",
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


def __getattr__(name: str) -> Any:
    """Import the verbs on first use: `ggufreap --help` must not wait for numpy and gguf."""
    if name in __all__:
        from ggufreap import demonstration, verbs

        return getattr(demonstration if name == "demo" else verbs, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
