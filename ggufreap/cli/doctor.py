"""What the verb that looks at machine and model does with its flags."""

import argparse

from ggufreap.cli.common import Result, Verbs, progress
from ggufreap.cli.engine import engine_that_is_exact, settings
from ggufreap.cli.flags import argument, model_if_any


def _run_doctor(options: argparse.Namespace) -> Result:
    from ggufreap import verbs

    checkup = verbs.doctor(options.model, tmp_dir=options.tmp_dir, settings=settings(options), progress=progress())
    return checkup, checkup.exit_code


VERBS: Verbs = {
    "doctor": (
        _run_doctor,
        "look whether this machine works, and try the laws of pruning out on a model",
        (
            model_if_any,
            argument("-o", "--tmp-dir", metavar="DIR", help="where a trial file goes for a while (system temp folder)"),
            engine_that_is_exact,
        ),
    ),
}
