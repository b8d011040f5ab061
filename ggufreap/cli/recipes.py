"""The flags that tell of recipes instead of running one: answered at once, as --version is."""

import argparse
import sys
from collections.abc import Callable
from typing import Any

from ggufreap.cli.flags import AddFlags
from ggufreap.errors import InputError


def _told(tell: Callable[[Any], str]) -> type[argparse.Action]:
    """An action that writes a text and ends the program."""

    class Told(argparse.Action):
        def __call__(self, parser: argparse.ArgumentParser, _: Any, value: Any, __: str | None = None) -> None:
            try:
                text = tell(value)
            except InputError as error:
                parser.error(str(error))
            sys.stdout.write(text)
            parser.exit()

    return Told


def _list(_: Any) -> str:
    from ggufreap.recipe import recipe_names, recipe_summary

    width = max(map(len, recipe_names()))
    return "".join(f"{name:<{width}}  {recipe_summary(name)}\n" for name in recipe_names())


def _show(name: str) -> str:
    from ggufreap.recipe import recipe_text

    return recipe_text(name)


def _flag(name: str, tell: Callable[[Any], str], **settings: Any) -> AddFlags:
    def add(command: argparse.ArgumentParser) -> None:
        command.add_argument(name, action=_told(tell), default=argparse.SUPPRESS, **settings)

    return add


LIST = _flag("--list", _list, nargs=0, help="list the recipes that come with ggufreap")
SHOW = _flag("--show", _show, metavar="NAME", help="print one of them, with the reason of every value")
