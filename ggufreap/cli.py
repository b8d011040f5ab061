"""The command line: one sub-command per verb, flags named as llama.cpp names them.

Exit codes: 0 done, 1 a foreseeable failure, 2 wrong usage, 3 verification failed, 130 interrupted.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ggufreap import __version__
from ggufreap.errors import GgufReapError

if TYPE_CHECKING:
    from ggufreap.verbs import Pruned

EPILOG = """\
example:
  ggufreap inspect model.gguf
  ggufreap prune model.gguf --ratio 0.2 -f calibration.txt
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    # `kill` and `timeout` stop as Ctrl-C does: nothing half-written stays behind.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        from ggufreap import console

        console.listen(options.verbose)
        result, code = options.run(options)
        console.show(result, options.json)
        return int(code)
    except KeyboardInterrupt:
        return _fail("interrupted; nothing is lost, the same command goes on from here", 130)
    except BrokenPipeError:  # `ggufreap inspect … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (GgufReapError, OSError, MemoryError) as error:
        if options.traceback:
            raise
        return _fail(str(error), getattr(error, "exit_code", 1))


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"ggufreap: {message}\n")
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ggufreap",
        description="Prune experts out of mixture-of-experts models directly in GGUF.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ggufreap {__version__}")
    commands = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    for name, (run, summary, groups) in VERBS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        for add in (*groups, _general):
            add(command)
        command.set_defaults(run=run)
    return parser


# Groups of flags, shared between verbs.


def _general(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.add_argument("-v", "--verbose", action="count", default=0, help="show what llama.cpp says")
    command.add_argument("--traceback", action="store_true", help="show where a failure comes from")


def _model(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="MODEL", help="a GGUF file, or any shard of a split one")


def _engine(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("llama.cpp")
    group.add_argument("-c", "--ctx-size", type=_at_least(1), default=512, metavar="N", help="tokens per chunk (512)")
    group.add_argument("-ub", "--ubatch-size", type=_at_least(1), default=512, metavar="N", help="tokens at once (512)")
    _device(group)


def _device(group: Any) -> None:
    group.add_argument("-t", "--threads", type=_at_least(1), default=0, metavar="N", help="CPU threads (all cores)")
    group.add_argument(
        "-ngl", "--n-gpu-layers", type=_at_least(-1), default=-1, metavar="N", help="layers on the GPU (as many as fit)"
    )


def _text(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("calibration").add_mutually_exclusive_group()
    group.add_argument("-f", "--file", metavar="FILE", help="UTF-8 text; - is standard input")
    group.add_argument("--tokens", metavar="IDS.npy", help="token ids, [n] or [n_chunks, n_ctx]")


def _target(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("target")
    size = group.add_mutually_exclusive_group(required=True)
    size.add_argument("--ratio", metavar="R", help="fraction of the experts to remove from every block, such as 0.2")
    size.add_argument("--keep", type=int, metavar="N", help="experts to keep in every block")
    group.add_argument(
        "--method", default="reap", metavar="NAME", help="saliency: reap (default), frequency, ... (see README)"
    )
    group.add_argument(
        "--mtp", choices=("mirror", "drop"), default="mirror", help="MTP blocks: as the last block (default), or out"
    )
    group.add_argument("--seed", type=_at_least(0), default=0, metavar="N", help="for --method random (0)")


def _files(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("output")
    split = group.add_mutually_exclusive_group()
    split.add_argument("--split-max-size", metavar="N(M|G)", help="shards of at most this size")
    split.add_argument("--keep-split", action="store_true", help="as many shards as the model has")
    group.add_argument("--dry-run", action="store_true", help="print what would be written, to the byte")


def _out(meaning: str, required: bool = True) -> Callable[[argparse.ArgumentParser], None]:
    def add(command: argparse.ArgumentParser) -> None:
        command.add_argument("-o", "--output", required=required, metavar="OUT", help=meaning)

    return add


def _argument(*names: str, **settings: Any) -> Callable[[argparse.ArgumentParser], None]:
    def add(command: argparse.ArgumentParser) -> None:
        command.add_argument(*names, **settings)

    return add


def _at_least(minimum: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.lstrip("-").isdecimal() or not minimum <= int(text) < 2**31:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {minimum} to 2147483647")
        return int(text)

    return number


# What each verb does with its flags: returns the result to show and the exit code.

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

    given = {"file": options.file, "tokens": options.tokens}
    return verbs.calibrate(options.model, options.output, **given, settings=_settings(options), progress=_progress()), 0


def _run_plan(options: argparse.Namespace) -> Result:
    from pathlib import Path

    from ggufreap import verbs
    from ggufreap.files import check_output
    from ggufreap.planning import save_plan

    out = Path(options.output)
    check_output(out, options.model, options.stats)
    plan = verbs.plan(options.model, stats=options.stats, **_choice(options), progress=_progress())
    save_plan(out, plan)
    return plan, 0


def _run_apply(options: argparse.Namespace) -> Result:
    from ggufreap import console, verbs

    script = verbs.apply(options.model, options.plan, options.output, **_splitting(options), progress=_progress())
    return console.DryRun(script) if options.dry_run else script, 0


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
        out=options.output,
        **_splitting(options),
        verification=not options.no_verify,
        settings=_settings(options),
        progress=_progress(),
    )
    if options.dry_run:
        return console.DryRun(pruned.script), 0
    return pruned, _proven(pruned)


def _run_demo(options: argparse.Namespace) -> Result:
    from ggufreap import verbs

    demonstration = verbs.demo(options.output, ratio=options.ratio, threads=options.threads, progress=_progress())
    return demonstration, _proven(demonstration.pruned)


def _proven(pruned: "Pruned") -> int:
    return 3 if pruned.verification and not pruned.verification.ok else 0


Groups = tuple[Callable[[argparse.ArgumentParser], None], ...]
VERBS: dict[str, tuple[Callable[[argparse.Namespace], Result], str, Groups]] = {
    "inspect": (_run_inspect, "show a model's experts and what pruning would leave", (_model,)),
    "calibrate": (
        _run_calibrate,
        "run text through the model and record what every expert does",
        (_model, _out("statistics file, S.npz"), _text, _engine),
    ),
    "plan": (
        _run_plan,
        "choose which experts stay",
        (
            _model,
            _argument("--stats", metavar="S.npz", help="what calibrate saved"),
            _out("plan file, P.json"),
            _target,
        ),
    ),
    "apply": (
        _run_apply,
        "write the pruned file that a plan asks for",
        (
            _model,
            _argument("--plan", required=True, metavar="P.json", help="what plan saved"),
            _out("GGUF file"),
            _files,
        ),
    ),
    "verify": (
        _run_verify,
        "prove that a pruned file is the model without the dropped experts",
        (
            _model,
            _argument("out", metavar="PRUNED", help="the pruned GGUF file"),
            _argument("--plan", required=True, metavar="P.json", help="the plan it was made with"),
            _device,
        ),
    ),
    "prune": (
        _run_prune,
        "the whole job: calibrate, plan, apply, verify",
        (
            _model,
            _out("file or folder (beside the model)", required=False),
            _target,
            _text,
            _engine,
            _files,
            _argument("--no-verify", action="store_true", help="do not prove the result"),
        ),
    ),
    "demo": (
        _run_demo,
        "the whole job on a small model that comes with ggufreap",
        (
            _argument(
                "-o", "--output", default="ggufreap-demo", metavar="DIR", help="folder for the files (ggufreap-demo)"
            ),
            _argument("--ratio", default="0.25", metavar="R", help="fraction of the experts to remove (0.25)"),
            _argument("-t", "--threads", type=_at_least(1), default=0, metavar="N", help="CPU threads (all cores)"),
        ),
    ),
}
