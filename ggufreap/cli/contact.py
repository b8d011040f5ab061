"""What the verbs of the first contact do with their flags."""

import argparse
import shlex
import sys

from ggufreap.cli.common import Result, Verbs
from ggufreap.cli.flags import model
from ggufreap.cli.shorthand import ADVISE, LIST
from ggufreap.process import become


def _run_models(_: argparse.Namespace) -> Result:
    from ggufreap import verbs

    return verbs.models(), 0


def _run_advise(options: argparse.Namespace) -> Result:
    from ggufreap import console, verbs

    counsel = console.Counsel(verbs.advise(options.model), options.named)
    if options.json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return counsel, 0
    console.show(counsel, as_json=False)
    chosen = _asked(len(counsel.commands))
    if chosen is not None:
        words = shlex.split(counsel.commands[chosen][1])
        sys.stdout.flush()
        return None, become(*words)
    return None, 0


def _asked(count: int) -> int | None:
    """Which command shall run, None for none."""
    while True:
        sys.stdout.write(f"\nrun one of them? [1-{count}, Enter: none] ")
        sys.stdout.flush()
        answer = sys.stdin.readline().strip()
        if not answer:
            return None
        if answer.isdecimal() and 1 <= int(answer) <= count:
            return int(answer) - 1


VERBS: Verbs = {
    LIST: (_run_models, "list the mixtures of experts on this machine; also ggufreap alone", ()),
    ADVISE: (
        _run_advise,
        "show a model, what of it fits this machine, and the commands; also ggufreap MODEL",
        (model,),
    ),
}
