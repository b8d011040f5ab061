"""Rows of data sets become samples: a table of the shapes in which people publish text and conversations.

Shapes: plain text; prompt and completion; Alpaca (`instruction`, `input`, `output`); messages as OpenAI has them
(`role`, `content`, `reasoning_content`, `tool_calls`) and as ShareGPT has them (`from`, `value`). The first row of
`SHAPES` whose columns are all filled decides, conversations before text: some sets hold both, and there the text is the
rendered conversation.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ggufreap.corpus.samples import Conversation, Sample, Text, Unusable
from ggufreap.decoding import check_limits

Row = Mapping[str, Any]
Messages = list[dict[str, Any]]

UNKNOWN = "no column of text or messages is known"
NO_FIELD = "the named column is missing"
EMPTY = "the text is empty"
NOT_TEXT = "the text is no string"
NOT_UTF8 = "the text is not UTF-8"
NOT_MESSAGES = "the messages are no list of messages"
NO_ROLE = "a message has no known role"
NO_CONTENT = "a message has no content"
NOT_TOOLS = "tools or tool calls are malformed"

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
REASONING = ("reasoning_content", "reasoning", "thinking")
SYSTEM = ("system", "system_prompt")


def to_sample(row: Row, text_field: str | None = None) -> Sample:
    """The sample in a row; `text_field` names the column of the text or messages, `a.b` the field b of column a.

    A value `None` is a missing one: data sets fill the fields that only other rows have. Raises Unusable.
    """
    if text_field is not None:
        value = _picked(row, text_field)
        sample: Sample = _conversation(_messages(value), row) if isinstance(value, list) else Text(_text(value))
    else:
        shape = next((make for columns, make in SHAPES if all(row.get(name) is not None for name in columns)), None)
        if shape is None:
            raise Unusable(UNKNOWN)
        sample = shape(row)
    _check_unicode(sample)
    return sample


def _picked(row: Row, field: str) -> Any:
    value: Any = row
    for key in [field] if field in row else field.split("."):
        if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        else:
            value = value.get(key) if isinstance(value, Mapping) else None
    if value is None:
        raise Unusable(NO_FIELD)
    return value


def _of_text(column: str) -> Callable[[Row], Sample]:
    return lambda row: Text(_text(row[column]))


def _of_messages(column: str) -> Callable[[Row], Sample]:
    return lambda row: _conversation(_messages(row[column]), row)


def _of_turns(asked: str, answered: str) -> Callable[[Row], Sample]:
    def made(row: Row) -> Sample:
        turns = [_turn(row[asked], "user"), _turn(row[answered], "assistant")]
        return _conversation([message for turn in turns for message in turn], row)

    return made


def _of_instruction(answered: str, *more: str) -> Callable[[Row], Sample]:
    """The instruction, then what it is about: Alpaca's `input`, Dolly's `context`."""

    def made(row: Row) -> Sample:
        asked = [_text(row["instruction"]), *(_text(row[name]) for name in more if str(row.get(name) or "").strip())]
        turns = (("user", "\n\n".join(asked)), ("assistant", _text(row[answered])))
        return _conversation([{"role": role, "content": content} for role, content in turns], row)

    return made


SHAPES: tuple[tuple[tuple[str, ...], Callable[[Row], Sample]], ...] = (
    (("messages",), _of_messages("messages")),
    (("conversations",), _of_messages("conversations")),
    (("conversation",), _of_messages("conversation")),
    (("instruction", "output"), _of_instruction("output", "input")),
    (("instruction", "response"), _of_instruction("response", "context")),
    (("prompt", "response"), _of_turns("prompt", "response")),
    (("prompt", "completion"), _of_turns("prompt", "completion")),
    (("question", "answer"), _of_turns("question", "answer")),
    (("question", "response"), _of_turns("question", "response")),
    (("problem", "solution"), _of_turns("problem", "solution")),
    (("text",), _of_text("text")),
    (("content",), _of_text("content")),
)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise Unusable(NOT_TEXT)
    if not value.strip():
        raise Unusable(EMPTY)
    return value


def _turn(value: Any, role: str) -> Messages:
    """One side of a pair: a text, or messages as conversational prompts and completions have them."""
    return _messages(value) if isinstance(value, list) else [{"role": role, "content": _text(value)}]


def _conversation(messages: Messages, row: Row) -> Conversation:
    if not any(str(message["content"]).strip() for message in messages if message["role"] != "system"):
        raise Unusable(EMPTY)
    system = next((row[name] for name in SYSTEM if isinstance(row.get(name), str) and row[name].strip()), None)
    if system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    tools = [] if row.get("tools") in (None, "") else _list_of(row["tools"], NOT_TOOLS)
    return Conversation(tuple(messages), tuple(_function(tool) for tool in tools))


def _messages(value: Any) -> Messages:
    return [_message(entry) for entry in _list_of(value, NOT_MESSAGES)]


def _message(entry: Mapping[str, Any]) -> dict[str, Any]:
    given = _first(entry, ("role", "from"))
    role = ROLES.get(given) if isinstance(given, str) else None
    if role is None:
        raise Unusable(NO_ROLE)
    message: dict[str, Any] = {"role": role, "content": _content(_first(entry, ("content", "value")))}
    if reasoning := _first(entry, REASONING):
        message["reasoning_content"] = _text(reasoning)
    if calls := entry.get("tool_calls"):
        message["tool_calls"] = [_call(call) for call in _list_of(calls, NOT_TOOLS)]
    if message["content"] is None:
        if not message.keys() & {"reasoning_content", "tool_calls"}:
            raise Unusable(NO_CONTENT)
        message["content"] = ""
    return message | {key: entry[key] for key in ("name", "tool_call_id") if isinstance(entry.get(key), str)}


def _first(entry: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((entry[name] for name in names if entry.get(name) is not None), None)


def _content(value: Any) -> str | None:
    """Text, or the joined text of parts; a part of another kind, such as a picture, is refused."""
    if value is None or isinstance(value, str):
        return value
    parts = [part.get("text") if isinstance(part, Mapping) else part for part in _list_of(value, NOT_TEXT, object)]
    texts = [part for part in parts if isinstance(part, str)]
    if len(texts) < len(parts):
        raise Unusable(NOT_TEXT)
    return "".join(texts)


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    """A tool call with its arguments as an object: templates write them as JSON themselves."""
    made = _function(call)
    arguments = made["function"].get("arguments", {})
    if isinstance(arguments, str):
        arguments = _from_json(arguments, NOT_TOOLS) if arguments.strip() else {}
    if arguments is None:  # as data sets write a call without any
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise Unusable(NOT_TOOLS)
    function = made["function"] | {"arguments": dict(arguments)}
    return made | {"function": function}


def _function(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool or a call as `{"type": "function", "function": {...}}`; some sets leave the wrapper out."""
    given = _without_nulls(tool)
    made = given if "function" in given else {"function": given}
    if not isinstance(made["function"], dict) or not isinstance(made["function"].get("name"), str):
        raise Unusable(NOT_TOOLS)
    return {"type": "function", **made}


def _without_nulls(value: Any) -> Any:
    """Without the fields that a columnar file had to fill, at every depth."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _list_of(value: Any, reason: str, kind: type = Mapping) -> list[Any]:
    """A list of `kind` with something in it, or the same as JSON text."""
    if isinstance(value, str):
        value = _from_json(value, reason)
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise Unusable(reason)
    if not value and reason is NOT_MESSAGES:
        raise Unusable(EMPTY)
    return value


def _from_json(text: str, reason: str) -> Any:
    """JSON within a row; Python's own decoder, as for the rows themselves (local.py)."""
    try:
        check_limits(text.encode(errors="surrogatepass"))
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unusable(reason) from error


def _check_unicode(sample: Sample) -> None:
    """Raise Unusable for halves of surrogate pairs and for what JSON cannot hold: no template could write it."""
    try:
        if isinstance(sample, Text):
            sample.text.encode()
        else:
            json.dumps([sample.messages, sample.tools], ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise Unusable(NOT_UTF8) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise Unusable(NOT_TOOLS) from error
