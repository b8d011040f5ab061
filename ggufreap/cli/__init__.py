"""The command line: one sub-command per verb, flags named as llama.cpp names them.

Exit codes: 0 done, 1 a foreseeable failure, 2 wrong usage, 3 verification failed, 4 a gate failed, 130 interrupted.
"""

import argparse
import os
import sys
from collections.abc import Collection, Sequence
from typing import NoReturn

from ggufreap import __version__
from ggufreap.cli import choice, completion, contact, doctor, evaluate, probing, stages, whole
from ggufreap.cli.common import Verbs
from ggufreap.cli.flags import general
from ggufreap.cli.generated import value
from ggufreap.cli.help import DESCRIPTION, in_groups
from ggufreap.cli.locating import locate
from ggufreap.cli.shorthand import spelled_out
from ggufreap.errors import GgufReapError, InputError
from ggufreap.interrupts import as_ctrl_c, hear, unwrapped
from ggufreap.options.target import BEST, Target
from ggufreap.showing import message as shorten
from ggufreap.showing import shown

VERBS: Verbs = {
    **contact.VERBS,
    **stages.VERBS,
    **choice.VERBS,
    **evaluate.VERBS,
    **probing.VERBS,
    **whole.VERBS,
    **doctor.VERBS,
    **completion.VERBS,
}
# Those that start llama.cpp.
WITH_ENGINE = frozenset(
    {
        "bench",
        "calibrate",
        "demo",
        "eval",
        "frontier",
        "narrow",
        "preview",
        "probe",
        "prune",
        "quantize",
        "report",
        "run",
        "tasks",
        "verify",
    }
)


def starts_engine(options: argparse.Namespace) -> bool:
    """Whether it will run llama.cpp: a verb that always does, or a plan that judges methods on the model."""
    return options.verb in WITH_ENGINE or (options.verb == "plan" and value(options, Target).method == BEST)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = parse(arguments)
    with as_ctrl_c():
        return _run(options)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags of a verb, and its name as `verb`; exits with 2 on wrong usage."""
    try:
        given = spelled_out(sys.argv[1:] if arguments is None else arguments, VERBS)
    except InputError as error:
        raise SystemExit(fail(str(error), 2)) from None
    return _parser(given).parse_args(given)


def _run(options: argparse.Namespace) -> int:
    try:
        hear()
        from ggufreap import console

        console.listen(options.verbose)
        with unwrapped():
            locate(options)
            result, code = options.run(options)
        if result is not None:
            console.show(result, options.json)
        return int(code)
    except KeyboardInterrupt as stopped:
        return fail(f"interrupted; {str(stopped) or 'nothing is lost, the same command goes on from here'}", 130)
    except BrokenPipeError:  # `ggufreap inspect … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (GgufReapError, OSError, MemoryError) as error:
        if options.traceback:
            raise
        return fail(str(error), getattr(error, "exit_code", 1))


def fail(message: str, code: int) -> int:
    """Say in one line what went wrong; gives the exit code back."""
    sys.stderr.write(f"ggufreap: {shown(message)}\n")
    return code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(shorten(message))


def _parser(named: Collection[str] = tuple(VERBS)) -> argparse.ArgumentParser:
    """All verbs; the flags of those that are `named`, since making them is most of the time that --help takes."""
    parser = _Parser(
        prog="ggufreap",
        usage="%(prog)s [MODEL | VERB ...]",
        description=f"{DESCRIPTION}\n\n{in_groups(VERBS)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ggufreap {__version__}")
    commands = parser.add_subparsers(prog="ggufreap", required=True, metavar="VERB", help=argparse.SUPPRESS)
    for name, (run, summary, groups) in VERBS.items():
        command = commands.add_parser(name, description=summary)
        for add in (*groups, general) if name in named else ():
            add(command)
        command.set_defaults(run=run, verb=name, verbs=VERBS)
    return parser
