"""What the verbs between statistics and plan do with their flags."""

import argparse
from pathlib import Path

from ggufreap.cli.common import Result, Verbs, choice, progress
from ggufreap.cli.engine import engine_of_fixed_length, settings
from ggufreap.cli.flags import argument, model, out, seed, target


def _run_plan(options: argparse.Namespace) -> Result:
    from ggufreap import console, verbs
    from ggufreap.files import check_output
    from ggufreap.planning import save_plan

    path = Path(options.output)
    check_output(path, options.model, options.stats, options.from_imatrix)
    plan = verbs.plan(
        options.model,
        stats=options.stats,
        **choice(options),
        settings=settings(options),
        progress=progress(),
    )
    save_plan(path, plan)
    covered = verbs.coverage(options.stats, plan) if plan.corpus else None
    return console.Choice(plan, covered), 0


def _run_coverage(options: argparse.Namespace) -> Result:
    from ggufreap import verbs

    return verbs.coverage(options.stats, options.plan), 0


def _run_merge(options: argparse.Namespace) -> Result:
    from ggufreap import verbs

    return verbs.merge(options.stats, options.output), 0


_PLAN = argument("--plan", required=True, metavar="P.json", help="what plan saved")
VERBS: Verbs = {
    "merge": (
        _run_merge,
        "add statistics that were calibrated apart, such as shards",
        (argument("stats", nargs="+", metavar="S.npz", help="what calibrate saved"), out("statistics file, S.npz")),
    ),
    "plan": (
        _run_plan,
        "choose which experts stay",
        (
            model,
            argument("--stats", metavar="S.npz", help="what calibrate saved"),
            out("plan file, P.json"),
            target,
            seed,
            engine_of_fixed_length,
        ),
    ),
    "coverage": (
        _run_coverage,
        "show what a plan leaves of each domain, and whether there was enough text",
        (argument("stats", metavar="S.npz", help="what calibrate saved"), _PLAN),
    ),
}
