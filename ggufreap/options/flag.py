"""A field of an options class as a flag of the command line and a key of a recipe, and how their text is read."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from types import UnionType
from typing import Any

from ggufreap.errors import InputError

MOST, MOST_PORT = 2**31 - 1, 2**16 - 1
Parse = Callable[[str], Any]  # text -> the field's value; raises InputError


@dataclass(frozen=True)
class Flag:
    """How a field is named, told and read. `parse` None: a switch, with a `--no-` twin where its default is None.

    `names` are llama.cpp's where it has them (common/arg.cpp), `group` is what verbs ask for; `help` holds {} where the
    default stands; what is `repeatable` is joined with commas, of `many` each is an item of a tuple. A recipe writes
    values of the type `kind` under the key `recipe`, empty: as the first long flag; None: it cannot.
    """

    names: tuple[str, ...]
    group: str
    help: str
    parse: Parse | None = None
    metavar: str | None = None
    kind: type | UnionType = bool
    repeatable: bool = False
    many: bool = False
    recipe: str | None = ""

    @property
    def key(self) -> str:
        """The name in a recipe, and of the flag among the others of a verb."""
        return self.recipe or next(name for name in self.names if name.startswith("--"))[2:].replace("-", "_")


@dataclass(frozen=True)
class Options:
    """What every value of options has. `given`: the fields that were told, be it as their defaults, where that is
    known: from Python it is not, there a field counts as told where it is not its default."""

    given: tuple[str, ...] = field(default=(), kw_only=True, compare=False, repr=False)

    def told(self, name: str) -> bool:
        """Whether somebody asked for what the field says."""
        usual = next(each.default for each in fields(self) if each.name == name)
        return name in self.given or getattr(self, name) != usual


def flagged(default: Any, flag: Flag) -> Any:
    """A dataclass field with its flag."""
    return field(default=default, metadata={"flag": flag})


def flags_of(options: Any) -> dict[str, Flag]:
    """Field -> flag, of an options class or value, in their order."""
    return {each.name: each.metadata["flag"] for each in fields(options) if "flag" in each.metadata}


def check(options: Any) -> None:
    """Raise InputError unless every field that was set could have been given as its flag."""
    for each in fields(options):
        value, flag = getattr(options, each.name), each.metadata.get("flag")
        if flag and flag.parse and value != each.default:
            for item in value if flag.many else (value,):
                _check(item, flag)


def refuse_unused(options: Options, unused: Mapping[str, str]) -> None:
    """Raise InputError where a field was told that would not be used; `unused`: field -> what it is for."""
    for name, what_for in unused.items():
        if options.told(name):
            raise InputError(f"{flags_of(options)[name].names[0]} is for {what_for}; leave it out")


def _check(value: Any, flag: Flag) -> None:
    try:
        assert flag.parse
        flag.parse(str(value))
    except InputError as error:
        raise InputError(f"{flag.names[0]}: {error}") from None


def whole(least: int, **words: int) -> Parse:
    """A whole number that fits llama.cpp, or one of the words that stand for one."""

    def parse(text: str) -> int:
        if text in words:
            return words[text]
        if not text.removeprefix("-").isdecimal() or not least <= int(text) <= MOST:
            more = "".join(f" or {word}" for word in words)
            raise InputError(f"{text!r} is not a number from {least} to {MOST}{more}")
        return int(text)

    return parse


def number(text: str) -> float:
    """Any number."""
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{text!r} is not a number") from None


def one_of(*known: str) -> Parse:
    """One of the words."""

    def parse(text: str) -> str:
        if text not in known:
            raise InputError(f"{text!r} is not known; choose one of {', '.join(known)}")
        return text

    return parse


def names(text: str) -> str:
    """Names with commas between them."""
    if not all(split_names(text)):
        raise InputError(f"{text!r} holds an empty name; write names with commas between them")
    return text


def split_names(text: str) -> list[str]:
    """What `names` lists."""
    return [name.strip() for name in text.split(",")]


def endpoints(text: str) -> str:
    """HOST:PORT with commas between them, as ggml-rpc.cpp (parse_endpoint) reads each: up to the first colon."""
    for host, port in split_endpoints(text):
        if not host or not port.isdecimal() or not 1 <= int(port) <= MOST_PORT:
            raise InputError(f"{text!r} is not HOST:PORT[,HOST:PORT]; write it as in 192.168.1.2:50052")
    return text


def split_endpoints(text: str) -> list[tuple[str, str]]:
    """(host, port) of what `endpoints` lists."""
    parts = [name.partition(":") for name in split_names(text)]
    return [(host, port) for host, _, port in parts]


def proportions(text: str) -> str:
    """Numbers with commas or slashes between them, such as 3,1."""
    try:
        values = split_proportions(text)
    except ValueError:
        values = [math.nan]
    if not (all(math.isfinite(value) and value >= 0 for value in values) and sum(values) > 0):
        raise InputError(f"{text!r} is not a list of proportions, none below 0 and some above; write them as 3,1")
    return text


def split_proportions(text: str) -> list[float]:
    """What `proportions` lists (common/arg.cpp, --tensor-split)."""
    return [float(part) for part in re.split(r"[,/]+", text)]


def overrides(text: str) -> str:
    """PATTERN=BUFFER with commas between them."""
    for pattern, buffer in split_overrides(text):
        if not pattern or not buffer:
            raise InputError(f"{text!r} is not PATTERN=BUFFER[,PATTERN=BUFFER]; write it as in exps=CPU")
        try:
            re.compile(pattern)
        except re.error as error:
            raise InputError(f"{pattern!r} is not a regular expression ({error}); correct it") from None
    return text


def split_overrides(text: str) -> list[tuple[str, str]]:
    """(pattern, buffer) of what `overrides` lists, split as llama.cpp does (parse_tensor_buffer_overrides)."""
    parts = [part.partition("=") for part in text.split(",")]
    return [(pattern, buffer) for pattern, _, buffer in parts]
