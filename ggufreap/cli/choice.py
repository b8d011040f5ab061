"""What the verbs between statistics and plan do with their flags."""

import argparse
from pathlib import Path

from ggufreap.cli.asked import FORCE, TARGET
from ggufreap.cli.common import Result, Verbs, progress
from ggufreap.cli.engine import engine_of_fixed_length, settings
from ggufreap.cli.flags import argument, model, out
from ggufreap.cli.generated import given, value
from ggufreap.errors import InputError
from ggufreap.options.engine import EngineSettings
from ggufreap.options.flag import refuse_unused
from ggufreap.options.output import Output
from ggufreap.options.target import BEST, Target


def _run_plan(options: argparse.Namespace) -> Result:
    from ggufreap import console, verbs
    from ggufreap.container import open_gguf
    from ggufreap.files import claim, writing
    from ggufreap.planning import save_plan
    from ggufreap.saliency import RANDOM

    path, target = Path(options.output), value(options, Target)
    if given(options, EngineSettings) and target.method != BEST:
        raise InputError(f"flags of llama.cpp are for --method {BEST}; without it a plan does not run the model")
    if target.method != RANDOM:
        refuse_unused(target, {"seed": f"--method {RANDOM}"})
    with writing(value(options, Output).force):
        claim(path, inputs=(*open_gguf(options.model).paths, options.stats, target.from_imatrix))
        plan = verbs.plan(options.model, target, stats=options.stats, settings=settings(options), progress=progress())
        save_plan(path, plan)
    covered = verbs.coverage(options.stats, plan) if plan.corpus else None
    return console.Choice(plan, covered), 0


def _run_coverage(options: argparse.Namespace) -> Result:
    from ggufreap import verbs

    return verbs.coverage(options.stats, options.plan), 0


def _run_merge(options: argparse.Namespace) -> Result:
    from ggufreap import verbs

    return verbs.merge(options.stats, options.output, force=value(options, Output).force), 0


_PLAN = argument("--plan", required=True, metavar="P.json", help="what plan saved")
VERBS: Verbs = {
    "merge": (
        _run_merge,
        "add statistics that were calibrated apart, such as shards",
        (
            argument("stats", nargs="+", metavar="S.npz", help="what calibrate saved"),
            out("statistics file, S.npz"),
            FORCE,
        ),
    ),
    "plan": (
        _run_plan,
        "choose which experts stay",
        (
            model,
            argument("--stats", metavar="S.npz", help="what calibrate saved"),
            out("plan file, P.json"),
            FORCE,
            TARGET,
            engine_of_fixed_length,
        ),
    ),
    "coverage": (
        _run_coverage,
        "show what a plan leaves of each domain, and whether there was enough text",
        (argument("stats", metavar="S.npz", help="what calibrate saved"), _PLAN),
    ),
}
