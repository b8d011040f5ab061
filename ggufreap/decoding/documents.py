"""JSON and TOML as values of declared types, decoded by msgspec; what does not fit raises one line that says where."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from ggufreap.decoding.signatures import HEAD, what_is
from ggufreap.errors import InputError
from ggufreap.showing import excerpt, shown

T = TypeVar("T")

DEPTH = 64
VALUES = 1 << 21
MOST_JSON, MOST_TOML = 16 << 20, 256 << 10  # a plan of 512 blocks of 1024 experts takes 3 MiB
_REASON = 200
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[{]|[\]}]|,', re.DOTALL)
# tomllib's time goes with the square of the parts of a dotted key.
_LONG_KEY = re.compile(rf"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){{{DEPTH}}}""", re.ASCII)


class Damaged(ValueError):
    """Bytes that are no such document: what was found and which rule it breaks; whoever raises it on names the file."""


class _NotUnique(ValueError):
    pass


def parse_json(data: bytes, kind: type[T]) -> T:
    """The value in `data`, of the type `kind` as msgspec knows types; raises Damaged.

    Integers are integers, floats finite, names in an object unique, and what a type does not name it may refuse
    (msgspec.Struct with forbid_unknown_fields).
    """
    import msgspec

    data = data.removeprefix(b"\xef\xbb\xbf")
    check_limits(data)
    try:
        value = msgspec.json.decode(data, type=kind)
        json.loads(data, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        known = isinstance(error, msgspec.ValidationError | _NotUnique)
        raise Damaged(f"{'' if known else 'it is not JSON: '}{shown(error, _REASON)}") from error
    return value


def check_limits(data: bytes, depth: int = DEPTH, values: int = VALUES) -> None:
    """Raise Damaged for JSON that nests deeper or holds more values: reading it would take the stack or the memory."""
    opened = data.count(b"[") + data.count(b"{")
    if opened <= depth and opened + data.count(b",") <= values:  # what stands in strings counts here
        return
    level = count = 0
    for match in _TOKEN.finditer(data):
        mark = match[0]
        if mark in b"]}":
            level -= 1
        elif mark[:1] != b'"':
            level += mark != b","
            count += 1
            if level > depth:
                raise Damaged(f"it nests more than {depth} deep")
            if count > values:
                raise Damaged(f"it holds more than {values:,} values in one")


def load_json(path: Path, kind: type[T], what: str, advice: str, schema: str, most: int = MOST_JSON) -> T:
    """The JSON file `path` as a value of `kind`; raises InputError: the file, the fault, why it is not `what`.

    It has `most` bytes at most.
    Its `schema` is looked at first: a file of another version is not a damaged one.
    """
    data = read_document(path, what, advice, most)
    try:
        stated = parse_json(data, dict[str, Any]).get("schema")
        if isinstance(stated, str) and stated != schema:
            raise InputError(f"{path} has schema {excerpt(stated)}, this version reads {schema!r}; {advice}")
        return parse_json(data, kind)
    except Damaged as error:
        raise InputError(f"{path} is not {what}: {error}; {advice}") from error


def read_document(path: Path, what: str, advice: str, most: int = MOST_JSON) -> bytes:
    """The bytes of a document, `most` at most; raises InputError for more, or for another file by its start."""
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; {advice}") from error
    kind = what_is(data[:HEAD])
    if kind and kind != "JSON":
        raise InputError(f"{path} is {kind}, not {what}; {advice}")
    if len(data) > most:
        raise InputError(f"{path} has more than {most:,} bytes, so it is not {what}; {advice}")
    return data


def load_toml(path: Path, what: str, advice: str) -> dict[str, Any]:
    """The TOML file `path` as a dictionary, integers of 64 bits at most; raises InputError as `load_json` does."""
    data = read_document(path, what, advice, MOST_TOML)
    try:
        text = data.decode("utf-8-sig")
        if _LONG_KEY.search(text):
            raise Damaged(f"a key has more than {DEPTH} parts")
        tables = tomllib.loads(text)
        _check_values(tables)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not TOML: {shown(error, _REASON)}; correct it") from error
    return tables


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _NotUnique(f"the name {excerpt(twice)} stands twice in one object")
    return members


def _check_values(tables: dict[str, Any]) -> None:
    """Without recursion: dotted keys nest as deep as a file is long."""
    left: list[tuple[Any, int]] = [(tables, 1)]
    while left:
        value, depth = left.pop()
        if depth > DEPTH:
            raise Damaged(f"it nests more than {DEPTH} deep")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise Damaged("an integer has more than 64 bits")
        if isinstance(value, dict | list):
            left += [(item, depth + 1) for item in (value.values() if isinstance(value, dict) else value)]
