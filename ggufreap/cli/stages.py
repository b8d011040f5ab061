"""What the verbs of single stages do with their flags."""

import argparse
from dataclasses import replace

from ggufreap.cli.asked import DRAWING, DRY_RUN, FORCE, OUTPUT_HEAD, QUANTISER, SOURCE, SPLIT, request
from ggufreap.cli.common import Result, Verbs, progress
from ggufreap.cli.engine import engine_of_data, engine_that_is_exact, settings
from ggufreap.cli.flags import (
    argument,
    imatrix,
    model,
    out,
    shard,
    typed,
    types,
)
from ggufreap.cli.generated import value
from ggufreap.options.fit import memory_size
from ggufreap.options.output import Output
from ggufreap.options.quantisation import Quantisation, Quantiser


def _run_inspect(options: argparse.Namespace) -> Result:
    from ggufreap import verbs

    return verbs.inspect(options.model), 0


def _run_calibrate(options: argparse.Namespace) -> Result:
    from ggufreap import verbs

    beside = f"{options.output.removesuffix('.npz')}.imatrix.gguf"
    statistics = verbs.calibrate(
        options.model,
        options.output,
        request(options),
        shard=options.shard,
        imatrix_out=None if options.no_imatrix else options.imatrix_out or beside,
        process_output=value(options, Quantisation).process_output,
        force=value(options, Output).force,
        settings=settings(options),
        progress=progress(),
    )
    return statistics, 0


def _run_apply(options: argparse.Namespace) -> Result:
    from ggufreap import console, verbs

    output = replace(value(options, Output), out=options.output)
    script = verbs.apply(options.model, options.plan, output, progress=progress())
    return console.DryRun(script) if output.dry_run else script, 0


def _run_narrow(options: argparse.Namespace) -> Result:
    from ggufreap import console, verbs

    output = replace(value(options, Output), out=options.output)
    narrowed = verbs.narrow(
        options.model,
        request(options),
        plan=options.plan,
        width_ratio=options.width_ratio,
        output=output,
        imatrix=options.imatrix,
        allow_requantize=options.allow_requantize,
        sequential=options.sequential,
        memory=options.narrow_memory,
        settings=settings(options),
        progress=progress(),
    )
    return console.DryRun(narrowed.script) if output.dry_run else narrowed, 0


def _run_quantize(options: argparse.Namespace) -> Result:
    from ggufreap import verbs

    make, what = (verbs.quantize, options.type) if options.recipe is None else (verbs.quantize_variants, options.recipe)
    asked, output = value(options, Quantiser), value(options, Output)
    how = {"dry_run": output.dry_run, "force": output.force, "progress": progress()}
    return make(options.model, options.output, what, asked, **how), 0


def _run_imatrix(options: argparse.Namespace) -> Result:
    from ggufreap import verbs

    named = {name: getattr(options, name) for name in ("model", "plan", "narrowing")}
    return verbs.imatrix(options.files, out=options.output, **named, force=value(options, Output).force), 0


def _run_verify(options: argparse.Namespace) -> Result:
    from ggufreap import verbs

    proof = verbs.verify(
        options.model,
        options.out,
        options.plan,
        narrowing=options.narrowing,
        settings=settings(options),
        progress=progress(),
    )
    return proof, 0 if proof.ok else 3


VERBS: Verbs = {
    "inspect": (_run_inspect, "show a model's experts and what pruning would leave", (model,)),
    "calibrate": (
        _run_calibrate,
        "run text through the model and record what every expert does",
        (model, out("statistics file, S.npz"), FORCE, *SOURCE, DRAWING, shard, imatrix, OUTPUT_HEAD, engine_of_data),
    ),
    "apply": (
        _run_apply,
        "write the pruned file that a plan asks for",
        (
            model,
            argument("--plan", required=True, metavar="P.json", help="what plan saved"),
            out("GGUF file"),
            FORCE,
            SPLIT,
        ),
    ),
    "narrow": (
        _run_narrow,
        "write a file of narrower experts: neurons removed, and the others made up for them",
        (
            model,
            argument("--width-ratio", required=True, metavar="W", help="fraction of the neurons to remove, as 0.25"),
            argument("--sequential", action="store_true", help="each block makes up for those before it (4x the time)"),
            argument(
                "--narrow-memory",
                type=typed(memory_size()),
                default=0,
                metavar="SIZE",
                help="memory for what is summed up at a time, such as 4GB (half of what is free)",
            ),
            argument("--plan", metavar="P.json", help="what plan saved: experts that go as well (all stay)"),
            argument("--imatrix", metavar="FILE", help="importance matrix of the model: guides how down is encoded"),
            argument("--allow-requantize", action="store_true", help="also where down has less than 8 bits"),
            out("GGUF file; the neurons are named beside it"),
            FORCE,
            *SOURCE,
            DRAWING,
            engine_of_data,
            SPLIT,
        ),
    ),
    "verify": (
        _run_verify,
        "prove that a pruned file is the model without the dropped experts",
        (
            model,
            argument("out", metavar="PRUNED", help="the pruned GGUF file"),
            argument("--plan", required=True, metavar="P.json", help="the plan it was made with"),
            argument("--narrowing", metavar="N.json", help="the narrowing it was made with, where it has one"),
            engine_that_is_exact,
        ),
    ),
    "quantize": (
        _run_quantize,
        "requantise a model with llama.cpp's own quantiser",
        (model, out("GGUF file, or a folder for the variants of a recipe"), FORCE, types, QUANTISER, DRY_RUN),
    ),
    "imatrix": (
        _run_imatrix,
        "show what importance matrices hold; merge, check and slice them",
        (
            argument("files", nargs="+", metavar="FILE", help="GGUF or .dat; several are added up"),
            out("where it goes; .dat for the legacy format", required=False),
            FORCE,
            argument("--model", metavar="MODEL", help="check that it fits this model"),
            argument("--plan", metavar="P.json", help="slice it to the experts that stay of MODEL, the unpruned one"),
            argument("--narrowing", metavar="N.json", help="and to the neurons that stay of those"),
        ),
    ),
}
