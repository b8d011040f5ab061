"""How llama.cpp runs: flags made of the fields of EngineSettings, and the settings made of the flags."""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ggufreap.cli.flags import AddFlags, typed
from ggufreap.options.engine import (
    ANSWERING,
    ATTENTION,
    BATCH,
    CALIBRATING,
    CONTEXT,
    PLACEMENT,
    SEQUENCES,
    THREADS,
    WRITING,
    EngineSettings,
)
from ggufreap.options.flag import Flag, flags_of, whole

_TITLES = {PLACEMENT: "llama.cpp: where the weights go"}  # the other groups share one
_PREFIX = "engine_"  # of the parsed names: a verb may have a flag of its own that is called the same


def given(options: argparse.Namespace) -> dict[str, Any]:
    """Field -> value, of the flags that were given."""
    return {name.removeprefix(_PREFIX): value for name, value in vars(options).items() if name.startswith(_PREFIX)}


def settings(options: argparse.Namespace) -> EngineSettings:
    """How llama.cpp shall run: what was given, and the verb's defaults."""
    base: EngineSettings = options.engine
    return replace(base, **given(options))


def _flags(base: EngineSettings, *groups: str, instead: Mapping[str, Flag] | None = None) -> AddFlags:
    """The flags of these groups, whose defaults are those of `base`; `instead`: field -> flag that the verb has."""

    def add(command: argparse.ArgumentParser) -> None:
        offered = []
        titled: dict[str, Any] = {}
        for name, usual in flags_of(base).items():
            flag = (instead or {}).get(name, usual)
            if flag.group in groups:
                title = _TITLES.get(flag.group, "llama.cpp")
                group = titled[title] = titled.get(title) or command.add_argument_group(title)
                _add(group, name, flag, getattr(base, name))
                offered.append(name)
        command.set_defaults(engine=base, offered=offered)  # what to try where llama.cpp dies

    return add


class _Joined(argparse.Action):
    """What is given again is added, with a comma."""

    def __call__(self, _parser: Any, options: argparse.Namespace, value: Any, _name: str | None = None) -> None:
        before = getattr(options, self.dest, None)
        setattr(options, self.dest, f"{before},{value}" if before else value)


def _add(group: Any, name: str, flag: Flag, default: Any) -> None:
    common: dict[str, Any] = {
        "dest": f"{_PREFIX}{name}",
        "default": argparse.SUPPRESS,
        "help": flag.help.format(default),
    }
    if flag.repeatable:
        common["action"] = _Joined
    if flag.parse:
        group.add_argument(*flag.names, type=typed(flag.parse), metavar=flag.metavar, **common)
    elif default is None:
        group.add_argument(*flag.names, action=argparse.BooleanOptionalAction, **common)
    else:
        group.add_argument(*flag.names, action="store_true", **common)


_CONTEXT_FLAG = flags_of(EngineSettings)["n_ctx"]
_OF_DATA = replace(_CONTEXT_FLAG, parse=whole(1), help="tokens per chunk (512 for text, 2048 for data sets and rows)")
_OF_TEXT = replace(_CONTEXT_FLAG, parse=whole(1), help="tokens per chunk ({})")
_OF_TEXTS = replace(_CONTEXT_FLAG, names=("-c", "--ctx-size"), help="tokens of all texts together (what fits)")
_EVERYWHERE = (THREADS, PLACEMENT, ATTENTION)

# Where the data decide on the length of a chunk, where only text is read, and where texts are written.
engine_of_data = _flags(CALIBRATING, CONTEXT, BATCH, *_EVERYWHERE, instead={"n_ctx": _OF_DATA})
engine_of_text = _flags(EngineSettings(), CONTEXT, BATCH, *_EVERYWHERE, instead={"n_ctx": _OF_TEXT})
engine_that_writes = _flags(WRITING, CONTEXT, BATCH, SEQUENCES, *_EVERYWHERE, instead={"n_ctx": _OF_TEXTS})
engine_that_answers = _flags(ANSWERING, CONTEXT, BATCH, SEQUENCES, *_EVERYWHERE, instead={"n_ctx": _OF_TEXTS})
# Where the length is not the user's to choose, and where neither it nor the batch nor the precision is.
engine_of_fixed_length = _flags(EngineSettings(), BATCH, *_EVERYWHERE)
engine_of_fixed_batch = _flags(EngineSettings(), *_EVERYWHERE)
engine_that_is_exact = _flags(EngineSettings(), THREADS, PLACEMENT)
