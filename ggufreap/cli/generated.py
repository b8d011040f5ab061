"""Flags made of the fields of options, and options made of the flags: a field more is a flag more."""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from ggufreap.cli.flags import AddFlags, typed
from ggufreap.options.flag import Flag, flags_of

Options = TypeVar("Options")


def flags(
    base: Any,
    *groups: str,
    title: str = "",
    titles: Mapping[str, str] | None = None,
    instead: Mapping[str, Flag] | None = None,
    one_of: tuple[str, ...] = (),
    required: bool = False,
) -> AddFlags:
    """The flags of the fields of `base` in these groups; their defaults are its values.

    They stand under `title`, or what `titles` has for a group. `instead`: field -> the flag that the verb has; of the
    fields `one_of` one alone can be given, and has to be where it is `required`.
    """

    def add(command: argparse.ArgumentParser) -> None:
        command.set_defaults(**{type(base).__name__: base})
        either: Any = None
        for name, usual in flags_of(base).items():
            flag = (instead or {}).get(name, usual)
            if flag.group not in groups:
                continue
            group = titled(command, (titles or {}).get(flag.group, title))
            if name in one_of:
                group = either = either or group.add_mutually_exclusive_group(required=required)
            _add(group, f"{type(base).__name__}.{name}", flag, getattr(base, name))
            command.set_defaults(offered=(*(command.get_default("offered") or ()), name))

    return add


def titled(command: argparse.ArgumentParser, title: str) -> Any:
    """The group of this title, the verb's own flags where there is none."""
    there = {group.title: group for group in command._action_groups}
    return there.get(title) or (command.add_argument_group(title) if title else command)


def given(options: argparse.Namespace, kind: type) -> dict[str, Any]:
    """Field -> value, of the flags of the options `kind` that were given."""
    prefix = f"{kind.__name__}."
    values = {name.removeprefix(prefix): value for name, value in vars(options).items() if name.startswith(prefix)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def value(options: argparse.Namespace, kind: type[Options]) -> Options:
    """The options that the flags tell: what was given, and the verb's defaults."""
    base = getattr(options, kind.__name__, None) or kind()
    told = given(options, kind)
    return replace(base, **told, given=tuple(told))  # type: ignore[type-var]  # kind is a dataclass


class _Joined(argparse.Action):
    """What is given again is added, with a comma."""

    def __call__(self, _parser: Any, options: argparse.Namespace, value: Any, _name: str | None = None) -> None:
        before = getattr(options, self.dest, None)
        setattr(options, self.dest, f"{before},{value}" if before else value)


def _add(group: Any, dest: str, flag: Flag, default: Any) -> None:
    common: dict[str, Any] = {"dest": dest, "default": argparse.SUPPRESS, "help": flag.help.format(default)}
    if flag.repeatable:
        common["action"] = _Joined
    if flag.many:
        common["action"] = "append"
    if flag.parse:
        group.add_argument(*flag.names, type=typed(flag.parse), metavar=flag.metavar, **common)
    elif default is None:
        group.add_argument(*flag.names, action=argparse.BooleanOptionalAction, **common)
    else:
        group.add_argument(*flag.names, action="store_false" if default else "store_true", **common)
