"""What the verbs of the whole job do with their flags."""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ggufreap.cli.common import Result, Verbs, choice, command, data, progress, splitting
from ggufreap.cli.engine import engine_of_data, engine_of_fixed_batch, engine_of_fixed_length, given, settings
from ggufreap.cli.evaluate import FAILED
from ggufreap.cli.flags import (
    argument,
    files,
    judgement,
    model,
    out,
    output_head,
    seed,
    source,
    target,
    variants,
)

if TYPE_CHECKING:
    from ggufreap.verbs import Pruned


def _run_prune(options: argparse.Namespace) -> Result:
    from ggufreap import console, verbs

    pruned = verbs.prune(
        options.model,
        data(options),
        **choice(options),
        out=options.output,
        quant=options.quant or ("auto",),
        imatrix=options.imatrix,
        process_output=options.process_output,
        keep_intermediate=options.keep_intermediate,
        allow_requantize=options.allow_requantize,
        **splitting(options),
        verification=not options.no_verify,
        **_judgement(options),
        settings=settings(options),
        progress=progress(),
    )
    if options.dry_run:
        return console.DryRun(pruned.script, pruned.quantized), 0
    return pruned, _proven(pruned)


def _judgement(options: argparse.Namespace) -> dict[str, Any]:
    """How the result is judged, and how it was asked for."""
    return {
        "eval_file": options.eval_file,
        "eval_chunks": options.eval_chunks,
        "eval_ctx_size": options.eval_ctx_size,
        "max_kld": options.max_kld,
        "compare": options.compare,
        "fail_if": options.fail_if,
        "report_out": options.report,
        "command": command(),
    }


def _run_recipe(options: argparse.Namespace) -> Result:
    from ggufreap import console, verbs
    from ggufreap.recipe import load_recipe

    recipe = load_recipe(options.recipe)
    pruned = verbs.run(
        recipe,
        options.model,
        data(options),
        out=options.output,
        report_out=options.report,
        command=command(),
        settings=replace(recipe.engine, **given(options)),
        dry_run=options.dry_run,
        progress=progress(),
    )
    return (console.DryRun(pruned.script, pruned.quantized), 0) if options.dry_run else (pruned, _proven(pruned))


def _run_demo(options: argparse.Namespace) -> Result:
    from ggufreap.demonstration import demo

    demonstration = demo(options.output, ratio=options.ratio, settings=settings(options), progress=progress())
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
            out("file or folder (beside the model)", required=False),
            target,
            source,
            output_head,
            seed,
            engine_of_data,
            files,
            variants,
            judgement,
            argument("--no-verify", action="store_true", help="do not prove the result"),
        ),
    ),
    "run": (
        _run_recipe,
        "the whole job as a recipe tells it: prune, and quantise in several ways",
        (
            argument("recipe", metavar="RECIPE", help="a name such as q4_k_m (see README), or a .toml file"),
            model,
            out("file or folder (beside the model)", required=False),
            source,
            argument("--report", metavar="DIR", help="write report.json, report.html and README.md there"),
            engine_of_fixed_length,
            argument("--dry-run", action="store_true", help="print what would be written, to the byte"),
        ),
    ),
    "demo": (
        _run_demo,
        "the whole job on a small model that comes with ggufreap",
        (
            argument(
                "-o", "--output", default="ggufreap-demo", metavar="DIR", help="folder for the files (ggufreap-demo)"
            ),
            argument("--ratio", default="0.25", metavar="R", help="fraction of the experts to remove (0.25)"),
            engine_of_fixed_batch,
        ),
    ),
}
