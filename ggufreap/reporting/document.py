"""`report.json`: the facts, and the summary that follows from them; nothing else holds a number of the report."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from math import isfinite
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from ggufreap.decoding import Damaged, parse_json, read_document
from ggufreap.errors import InputError, NumericFailure
from ggufreap.reporting.facts import Report
from ggufreap.reporting.summary import summary_of
from ggufreap.showing import excerpt
from ggufreap.showing import to_json as json_of
from ggufreap.version import __version__

SCHEMA = "ggufreap.report/1"
Document = Mapping[str, Any]
_WORDS = {str: "a string", int: "a whole number", float: "a finite number", bool: "true or false"}


def document_of(report: Report) -> Document:
    """The report as plain lists and dictionaries, with `summary` beside the facts; raises NumericFailure for a NaN."""
    facts = {"schema": SCHEMA, **asdict(report)}
    if wrong := next(_no_numbers(facts, ""), None):
        raise NumericFailure(f"the report's {wrong} is not a number; the model's logits overflow, measure another file")
    # Tuples become lists here, so that the document is the same whether it was made or read.
    document: Document = json.loads(json.dumps(facts | {"summary": summary_of(report)}, allow_nan=False))
    return document


def _no_numbers(value: Any, where: str) -> Iterator[str]:
    """The places of floats that are not finite."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _no_numbers(item, f"{where}.{key}".lstrip("."))
    elif isinstance(value, float) and not isfinite(value):
        yield where


def to_json(report: Report) -> str:
    """`report.json`: one line per block and row, so that it can be read and compared."""
    return _lines(document_of(report)) + "\n"


def from_json(text: str, source: str = "report.json") -> Report:
    """The report that `to_json` wrote.

    Raises InputError where a key is unknown, missing or of another type, or the summary does not follow from the
    facts: numbers that somebody changed by hand.
    """
    try:
        document = parse_json(text.encode(errors="surrogatepass"), dict[str, Any])
    except Damaged as error:
        raise InputError(f"{source} is no report: {error}; make one with report") from error
    if (schema := document.get("schema")) != SCHEMA:
        raise InputError(f"{source} has schema {excerpt(schema)}, this version reads {SCHEMA!r}; make the report again")
    facts = {key: value for key, value in document.items() if key not in ("schema", "summary")}
    report: Report = _decoded(Report, facts, source, "the report")
    # Another version may word its summary otherwise.
    if report.version == __version__ and document_of(report)["summary"] != document.get("summary"):
        raise InputError(f"{source}: summary does not follow from the facts beside it; make the report again")
    return report


def load_report(path: Path) -> Report:
    """Read a `report.json`; raises InputError for anything else."""
    data = read_document(path, "a report", "make one with report")
    try:
        return from_json(data.decode(), str(path))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text; make one with report") from error


def _decoded(kind: Any, value: Any, source: str, where: str) -> Any:
    """`value` as `kind`: a dataclass, a tuple of one type, a plain value, or any of these or nothing.

    Our own decoder, since msgspec lets pass what a dataclass does not know.
    """
    if is_dataclass(kind):
        return _dataclass(kind, value, source, where)
    if get_origin(kind) is UnionType:
        inner = next(option for option in get_args(kind) if option is not type(None))
        return None if value is None else _decoded(inner, value, source, where)
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise InputError(f"{source}: {where} is {excerpt(value)}; it must be a list")
        return tuple(_decoded(get_args(kind)[0], item, source, f"{where}[{i}]") for i, item in enumerate(value))
    fits = isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)
    if not fits or (kind is float and not isfinite(value)):
        raise InputError(f"{source}: {where} is {excerpt(value)}; it must be {_WORDS[kind]}")
    return kind(value)


def _dataclass(kind: Any, value: Any, source: str, where: str) -> Any:
    if not isinstance(value, dict):
        raise InputError(f"{source}: {where} is {excerpt(value)}; it must be an object")
    hints = get_type_hints(kind)
    for key in value:
        if key not in hints:
            raise InputError(f"{source}: {where} has the key {excerpt(key)}, which is not known; take it out")
    for field in fields(kind):
        if field.name not in value and field.default is MISSING:
            raise InputError(f"{source}: {where} has no {field.name}; every report has one")
    names = "" if kind is Report else f"{where}."
    values = {key: _decoded(hints[key], item, source, names + key) for key, item in value.items()}
    try:
        return kind(**values)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error


def _lines(value: Any, indent: str = "") -> str:
    """JSON with containers of plain values on one line."""
    if not isinstance(value, dict | list) or not value:
        return json_of(value)
    items = value.values() if isinstance(value, dict) else value
    if not any(isinstance(item, dict | list) and item for item in items):
        return json_of(value)
    if "block" in value:  # a row of the plan, with its lists
        return json_of(value)
    inner = indent + "  "
    if isinstance(value, dict):
        body = [f"{json_of(key)}: {_lines(item, inner)}" for key, item in value.items()]
    else:
        body = [_lines(item, inner) for item in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{opening}\n{inner}" + f",\n{inner}".join(body) + f"\n{indent}{closing}"
