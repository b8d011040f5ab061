"""What the verbs of the whole job do with their flags."""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ggufreap.cli.asked import (
    CUT,
    EFFORT,
    FORCE,
    INSTEAD,
    JUDGEMENT,
    MEMORY,
    OUTPUT_HEAD,
    PLACE,
    PROOF,
    SEARCH,
    SOURCE,
    SPLIT,
    VARIANTS,
    check_unused_fit,
    request,
)
from ggufreap.cli.common import Result, Verbs, command, progress
from ggufreap.cli.engine import engine_of_data, engine_of_fixed_batch, settings
from ggufreap.cli.evaluate import FAILED
from ggufreap.cli.flags import argument, model
from ggufreap.cli.generated import given, value
from ggufreap.cli.recipes import LIST, SHOW
from ggufreap.options import fit
from ggufreap.options.engine import EngineSettings
from ggufreap.options.fit import Fit
from ggufreap.options.judgement import Judgement
from ggufreap.options.output import Output
from ggufreap.options.quantisation import Quantisation
from ggufreap.options.target import Target

if TYPE_CHECKING:
    from ggufreap.verbs import Pruned


def _wishes(options: argparse.Namespace) -> dict[str, Any]:
    """What both ways of doing the whole job are asked, beside model and data."""
    return {
        "target": value(options, Target),
        "quantisation": value(options, Quantisation),
        "judgement": value(options, Judgement),
        "output": value(options, Output),
        "command": command(),
        "settings": settings(options),
        "progress": progress(),
    }


def _run_prune(options: argparse.Namespace) -> Result:
    from ggufreap import verbs

    if value(options, Target).fit is not None:
        return _run_fit(options)
    check_unused_fit(options, fit.MEMORY, fit.EFFORT, fit.NEURONS)
    pruned = verbs.prune(options.model, request(options), **_wishes(options))
    return _shown(pruned, value(options, Output))


def _run_fit(options: argparse.Namespace) -> Result:
    from ggufreap import verbs

    fitted = verbs.fit(options.model, request(options), fit=value(options, Fit), **_wishes(options))
    failed = FAILED if fitted.account and not fitted.account.ok else 0
    return fitted, failed if fitted.best.proven else 3


def _run_recipe(options: argparse.Namespace) -> Result:
    from ggufreap import verbs
    from ggufreap.recipe import Overrides, load_recipe

    recipe, output = load_recipe(options.recipe), value(options, Output)
    engine, judgement = given(options, EngineSettings), given(options, Judgement)
    overrides = Overrides(given(options, Target), given(options, Quantisation), judgement, engine.pop("n_ctx", 0))
    pruned = verbs.run(
        recipe,
        options.model,
        request(options),
        overrides=overrides,
        output=output,
        report=judgement.pop("report", None),
        command=command(),
        settings=replace(recipe.engine, **engine, given=tuple(engine)),
        progress=progress(),
    )
    return _shown(pruned, output)


def _shown(pruned: "Pruned", output: Output) -> Result:
    from ggufreap import console

    if output.dry_run:
        return console.DryRun(pruned.script, pruned.quantized), 0
    return pruned, _proven(pruned)


def _run_demo(options: argparse.Namespace) -> Result:
    from ggufreap.demonstration import demo

    force = value(options, Output).force
    demonstration = demo(
        options.output, ratio=options.ratio, force=force, settings=settings(options), progress=progress()
    )
    return demonstration, _proven(demonstration.pruned)


def _proven(pruned: "Pruned") -> int:
    if pruned.verification and not pruned.verification.ok:
        return 3
    return FAILED if pruned.account and not pruned.account.ok else 0


VERBS: Verbs = {
    "prune": (
        _run_prune,
        "the whole job: calibrate, plan, apply, verify, quantise",
        (
            model,
            PLACE,
            FORCE,
            CUT,
            SEARCH,
            MEMORY,
            EFFORT,
            *SOURCE,
            OUTPUT_HEAD,
            engine_of_data,
            SPLIT,
            VARIANTS,
            JUDGEMENT,
            PROOF,
        ),
    ),
    "run": (
        _run_recipe,
        "the whole job as a recipe tells it; what is given beside it takes the place of its values",
        (
            argument("recipe", metavar="RECIPE", help="a name such as q4_k_m (--list tells all), or a .toml file"),
            LIST,
            SHOW,
            model,
            PLACE,
            FORCE,
            INSTEAD,
            SEARCH,
            *SOURCE,
            OUTPUT_HEAD,
            engine_of_data,
            SPLIT,
            VARIANTS,
            JUDGEMENT,
            PROOF,
        ),
    ),
    "demo": (
        _run_demo,
        "the whole job on a small model that comes with ggufreap",
        (
            argument(
                "-o", "--output", default="ggufreap-demo", metavar="DIR", help="folder for the files (ggufreap-demo)"
            ),
            FORCE,
            argument("--ratio", default="0.25", metavar="R", help="fraction of the experts to remove (0.25)"),
            engine_of_fixed_batch,
        ),
    ),
}
