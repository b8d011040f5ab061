"""What goes out: foreign text that commands no terminal and turns no line around, and values as valid JSON.

Names in models, files, data sets and templates are written by strangers. Whatever shows them shows them through here.
"""

import json
import os
import re
import reprlib
import shlex
from math import inf, isnan
from typing import Any

EXCERPT = 80
LONGEST_MESSAGE = 2000
# Control characters of both sets (ESC, CSI, OSC), line and paragraph separators, marks that turn the direction of
# writing, invisible ones that hide text, and halves of surrogate pairs, which stand for bytes that are no text.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_EXCERPT = reprlib.Repr()
_EXCERPT.maxlevel, _EXCERPT.maxstring, _EXCERPT.maxother = 2, EXCERPT, EXCERPT
_PATH = re.compile(r"""(?:(?<=["'=])|(?<=, )|^)(?:~[\w.-]*|[A-Za-z]:)?[/\\](?:(?!, )[^"'=\n])*""", re.MULTILINE)
# Strings, as protobuf's JSON has them: null would pass for a small number where figures are compared.
_NO_NUMBER = {inf: "Infinity", -inf: "-Infinity"}


def shown(text: object, most: int | None = None, allowed: str = "") -> str:
    r"""Foreign text on one line: `\x1b` for an escape, `\n` for a newline, but those in `allowed` as they are.

    What is longer than `most` characters ends in an ellipsis.
    """
    escaped = _UNSAFE.sub(lambda match: match[0] if match[0] in allowed else _escape(match[0]), _head(str(text), most))
    return _head(escaped, most)


def as_text(name: str) -> str:
    r"""A file's name as valid Unicode: bytes of it that are none stand there as `\xff`."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def excerpt(value: object) -> str:
    """A value that was found where another was due, as Python writes it, in EXCERPT characters at most."""
    try:
        return shown(_EXCERPT.repr(value), EXCERPT)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return "an integer of thousands of digits"


def message(text: object) -> str:
    """A message on one line; one that swallowed a whole file loses its middle."""
    line = str(text)
    if len(line) > LONGEST_MESSAGE:
        line = f"{line[: LONGEST_MESSAGE * 3 // 4]} … {line[-LONGEST_MESSAGE // 4 :]}"
    return shown(line)


def to_copy(verb: str, *words: str | os.PathLike[str]) -> str:
    """One of our commands to be copied into a shell, whatever the names in it hold."""
    return shlex.join(["ggufreap", verb, *(os.fspath(word) for word in words)])


def place(folder: str | os.PathLike[str]) -> str:
    """A folder for a sentence: the current one by its whole path, since a dot says nothing there."""
    name = os.fspath(folder)
    return os.path.abspath(name) if name in ("", os.curdir) else name


def file_name(name: str) -> str:
    """The name of a file without its folders, for what is published: whose home it lay in is nobody's business."""
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1]


def published(text: str) -> str:
    """A text whose paths from a root or a home are file names: of what stands alone, in quotes, or behind `=` or `, `.

    A relative path stays as it is: it may as well be a data set on the hub.
    """
    return _PATH.sub(lambda match: file_name(match[0]), text)


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON for machines: what is no number is the string `NaN`, `Infinity` or `-Infinity`; unsafe text is escaped.

    Anything that JSON does not know, such as a path, is written as its text.
    """
    text = json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False, default=str)
    return _UNSAFE.sub(lambda match: match[0] if match[0] == "\n" else _json_escape(match[0]), text)


def _head(text: str, most: int | None) -> str:
    return text if most is None or len(text) <= most else f"{text[: most - 1]}…"


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def _json_escape(character: str) -> str:
    return json.dumps(character)[1:-1]


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return "NaN" if isnan(value) else _NO_NUMBER.get(value, value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
