"""The table [engine] of a recipe: how llama.cpp runs, in the words of its flags."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ggufreap.errors import InputError
from ggufreap.options.engine import CONTEXT, SEQUENCES, EngineSettings
from ggufreap.options.flag import Flag, flags_of
from ggufreap.recipe.values import check_known

# The other tables tell the length of a chunk, and a recipe runs one text at a time.
_FIELDS = {
    flag.key: (name, flag) for name, flag in flags_of(EngineSettings).items() if flag.group not in (CONTEXT, SEQUENCES)
}
_RULES: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    str: "a string",
    int | str: "a whole number or a string",
}


def read_engine(path: Path, table: Any) -> EngineSettings:
    """The settings that `table` of the recipe `path` tells; raises InputError, naming the file and key."""
    if not isinstance(table, Mapping):
        raise InputError(f"{path}: engine is {table!r}; it must be a table, write it as [engine]")
    values = {}
    for key, value in table.items():
        check_known(key, f"{path}: key engine.", _FIELDS)
        name, flag = _FIELDS[key]
        values[name] = _read(f"{path}: engine.{key}", value, flag)
    return EngineSettings(**values, given=tuple(values))


def _read(where: str, value: Any, flag: Flag) -> Any:
    if not isinstance(value, flag.kind) or isinstance(value, bool) != (flag.kind is bool):
        raise InputError(f"{where} is {value!r}; it must be {_RULES[flag.kind]}, correct it")
    if flag.parse is None:
        return value
    try:
        return flag.parse(str(value))
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
