"""What each verb does with its flags: returns the result to show and the exit code."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufreap.cli.flags import (
    AddFlags,
    argument,
    at_least,
    device,
    engine,
    files,
    imatrix,
    model,
    out,
    quantiser,
    source,
    target,
    text,
    variants,
)

if TYPE_CHECKING:
    from ggufreap.verbs import Pruned

Result = tuple[Any, int]


def _settings(options: argparse.Namespace) -> Any:
    from ggufreap.engine.session import EngineSettings

    flags = vars(options)
    return EngineSettings(
        flags.get("ctx_size", 512), flags.get("ubatch_size", 512), options.threads, options.n_gpu_layers
    )


def _splitting(options: argparse.Namespace) -> dict[str, Any]:
    from ggufreap.rewriting import parse_size

    size = parse_size(options.split_max_size) if options.split_max_size else None
    return {"split_max_size": size, "keep_split": options.keep_split, "dry_run": options.dry_run}


def _choice(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("ratio", "keep", "method", "mtp", "seed")}


def _progress() -> Any:
    from ggufreap import console

    return console.progress


def _run_inspect(options: argparse.Namespace) -> Result:
    from ggufreap import verbs

    return verbs.inspect(options.model), 0


def _run_calibrate(options: argparse.Namespace) -> Result:
    from ggufreap import verbs

    beside = f"{options.output.removesuffix('.npz')}.imatrix.gguf"
    statistics = verbs.calibrate(
        options.model,
        options.output,
        file=options.file,
        tokens=options.tokens,
        chunks=options.chunks,
        imatrix_out=None if options.no_imatrix else options.imatrix_out or beside,
        settings=_settings(options),
        progress=_progress(),
    )
    return statistics, 0


def _run_plan(options: argparse.Namespace) -> Result:

    from ggufreap import verbs
    from ggufreap.files import check_output
    from ggufreap.planning import save_plan

    plan_path = Path(options.output)
    check_output(plan_path, options.model, options.stats)
    plan = verbs.plan(options.model, stats=options.stats, **_choice(options), progress=_progress())
    save_plan(plan_path, plan)
    return plan, 0


def _run_apply(options: argparse.Namespace) -> Result:
    from ggufreap import console, verbs

    script = verbs.apply(options.model, options.plan, options.output, **_splitting(options), progress=_progress())
    return console.DryRun(script) if options.dry_run else script, 0


def _run_quantize(options: argparse.Namespace) -> Result:
    from ggufreap import verbs
    from ggufreap.quantization import parse_tensor_type

    made = verbs.quantize(
        options.model,
        options.output,
        options.type,
        imatrix=options.imatrix,
        tensor_types=[parse_tensor_type(text) for text in options.tensor_type],
        token_embedding_type=options.token_embedding_type,
        output_tensor_type=options.output_tensor_type,
        pure=options.pure,
        keep_split=options.keep_split,
        allow_requantize=options.allow_requantize,
        threads=options.threads,
        dry_run=options.dry_run,
        progress=_progress(),
    )
    return made, 0


def _run_verify(options: argparse.Namespace) -> Result:
    from ggufreap import verbs

    proof = verbs.verify(options.model, options.out, options.plan, settings=_settings(options), progress=_progress())
    return proof, 0 if proof.ok else 3


def _run_prune(options: argparse.Namespace) -> Result:
    from ggufreap import console, verbs

    pruned = verbs.prune(
        options.model,
        **_choice(options),
        file=options.file,
        tokens=options.tokens,
        chunks=options.chunks,
        out=options.output,
        quant=options.quant or ("keep",),
        imatrix=options.imatrix,
        keep_intermediate=options.keep_intermediate,
        allow_requantize=options.allow_requantize,
        **_splitting(options),
        verification=not options.no_verify,
        settings=_settings(options),
        progress=_progress(),
    )
    if options.dry_run:
        return console.DryRun(pruned.script), 0
    return pruned, _proven(pruned)


def _run_recipe(options: argparse.Namespace) -> Result:
    from ggufreap import console, verbs

    pruned = verbs.run(
        options.recipe,
        options.model,
        file=options.file,
        tokens=options.tokens,
        out=options.output,
        settings=_settings(options),
        dry_run=options.dry_run,
        progress=_progress(),
    )
    return (console.DryRun(pruned.script), 0) if options.dry_run else (pruned, _proven(pruned))


def _run_demo(options: argparse.Namespace) -> Result:
    from ggufreap import verbs

    demonstration = verbs.demo(options.output, ratio=options.ratio, threads=options.threads, progress=_progress())
    return demonstration, _proven(demonstration.pruned)


def _proven(pruned: "Pruned") -> int:
    return 3 if pruned.verification and not pruned.verification.ok else 0


Groups = tuple[AddFlags, ...]
VERBS: dict[str, tuple[Callable[[argparse.Namespace], Result], str, Groups]] = {
    "inspect": (_run_inspect, "show a model's experts and what pruning would leave", (model,)),
    "calibrate": (
        _run_calibrate,
        "run text through the model and record what every expert does",
        (model, out("statistics file, S.npz"), text, imatrix, engine),
    ),
    "plan": (
        _run_plan,
        "choose which experts stay",
        (
            model,
            argument("--stats", metavar="S.npz", help="what calibrate saved"),
            out("plan file, P.json"),
            target,
        ),
    ),
    "apply": (
        _run_apply,
        "write the pruned file that a plan asks for",
        (
            model,
            argument("--plan", required=True, metavar="P.json", help="what plan saved"),
            out("GGUF file"),
            files,
        ),
    ),
    "verify": (
        _run_verify,
        "prove that a pruned file is the model without the dropped experts",
        (
            model,
            argument("out", metavar="PRUNED", help="the pruned GGUF file"),
            argument("--plan", required=True, metavar="P.json", help="the plan it was made with"),
            device,
        ),
    ),
    "quantize": (
        _run_quantize,
        "requantise a model with llama.cpp's own quantiser",
        (model, out("GGUF file"), quantiser),
    ),
    "prune": (
        _run_prune,
        "the whole job: calibrate, plan, apply, verify",
        (
            model,
            out("file or folder (beside the model)", required=False),
            target,
            text,
            engine,
            files,
            variants,
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
            device,
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
            argument("-t", "--threads", type=at_least(1), default=0, metavar="N", help="CPU threads (all cores)"),
        ),
    ),
}
