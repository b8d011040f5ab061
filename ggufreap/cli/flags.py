"""Groups of flags that verbs share, named as llama.cpp names them."""

import argparse
from collections.abc import Callable
from typing import Any

from ggufreap.errors import InputError
from ggufreap.options.flag import Parse, whole

AddFlags = Callable[[argparse.ArgumentParser], None]


def general(command: argparse.ArgumentParser) -> None:
    """What every verb takes."""
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.add_argument("-v", "--verbose", action="count", default=0, help="show what llama.cpp says")
    command.add_argument("--traceback", action="store_true", help="show where a failure comes from")


def model(command: argparse.ArgumentParser) -> None:
    """The model, always first."""
    _model(command)


def model_if_any(command: argparse.ArgumentParser) -> None:
    """The same where the verb does something without one."""
    _model(command, nargs="?")


def _model(command: argparse.ArgumentParser, **settings: Any) -> None:
    command.add_argument(
        "model",
        metavar="MODEL",
        help="a GGUF file, or any shard of a split one; -hf user/repo[:quant] as in llama.cpp; a name of Ollama's",
        **settings,
    )
    command.add_argument("--download", action="store_true", help="fetch what -hf names if it is not in the cache")


def imatrix(command: argparse.ArgumentParser) -> None:
    """Where the importance matrix goes."""
    group = command.add_argument_group("importance matrix").add_mutually_exclusive_group()
    group.add_argument(
        "--imatrix-out",
        metavar="FILE",
        help="where it goes (S.imatrix.gguf beside the statistics); .dat for the legacy format",
    )
    group.add_argument("--no-imatrix", action="store_true", help="do not collect it")


def shard(command: argparse.ArgumentParser) -> None:
    """A part of the work."""
    help = "only the I-th of N parts of the chunks, for `merge`"
    command.add_argument("--shard", default="1/1", metavar="I/N", help=help)


def types(command: argparse.ArgumentParser) -> None:
    """What a model is quantised to."""
    add = command.add_mutually_exclusive_group(required=True).add_argument
    add("--type", metavar="TYPE", help="Q4_K_M, IQ4_XS, Q8_0, ...")
    add("--recipe", metavar="RECIPE", help="make the variants of a recipe instead: a name, or a .toml file")


def out(meaning: str, required: bool = True) -> AddFlags:
    """The output."""

    def add(command: argparse.ArgumentParser) -> None:
        command.add_argument("-o", "--output", required=required, metavar="OUT", help=meaning)

    return add


def argument(*names: str, **settings: Any) -> AddFlags:
    """A flag of one verb alone."""

    def add(command: argparse.ArgumentParser) -> None:
        command.add_argument(*names, **settings)

    return add


def at_least(minimum: int) -> Callable[[str], int]:
    """A whole number that fits llama.cpp."""
    return typed(whole(minimum))


def typed(parse: Parse) -> Parse:
    """The same for argparse: what cannot be read is wrong usage."""

    def read(text: str) -> Any:
        try:
            return parse(text)
        except InputError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read
