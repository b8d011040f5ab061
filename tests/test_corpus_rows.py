"""Rows in the shapes in which people publish them become samples, and all others say why they do not."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggufreap.corpus import rows
from ggufreap.corpus.rows import to_sample
from ggufreap.corpus.samples import Conversation, Text, Unusable

USER, ASSISTANT = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
SYSTEM = {"role": "system", "content": "S"}
PAIR = Conversation((USER, ASSISTANT))
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def conversation(*messages: dict[str, Any], tools: tuple[dict[str, Any], ...] = ()) -> Conversation:
    return Conversation(messages, tools)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": " x\n", "id": 1}, Text(" x\n")),
        ({"content": "x", "text": None}, Text("x")),
        ({"prompt": "Q", "response": "A"}, PAIR),
        ({"prompt": "Q", "completion": "A", "text": "<q>Q<a>A"}, PAIR),
        ({"prompt": [SYSTEM, USER], "completion": [ASSISTANT]}, conversation(SYSTEM, USER, ASSISTANT)),
        ({"instruction": "Q", "output": "A"}, PAIR),
        ({"instruction": "Q", "input": " ", "output": "A"}, PAIR),
        (
            {"instruction": "Q", "input": "I", "output": "A"},
            conversation({"role": "user", "content": "Q\n\nI"}, ASSISTANT),
        ),
        ({"system_prompt": "S", "question": "Q", "response": "A"}, conversation(SYSTEM, USER, ASSISTANT)),
        ({"problem": "Q", "solution": "A"}, PAIR),
        ({"messages": [USER, ASSISTANT], "prompt": "Q", "response": "other"}, PAIR),
        ({"messages": json.dumps([USER, ASSISTANT])}, PAIR),
        ({"messages": [{**USER, "weight": 0, "tool_calls": None, "name": None}, ASSISTANT]}, PAIR),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Q"}]}, ASSISTANT]}, PAIR),
        ({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}, PAIR),
        ({"conversations": [{"role": "human", "content": "Q"}, {"role": "model", "content": "A"}]}, PAIR),
        (
            {"system": "S", "conversations": [{"from": "human", "value": "Q"}, {"from": "function", "value": "3"}]},
            conversation(SYSTEM, USER, {"role": "tool", "content": "3"}),
        ),
        ({"system": "other", "messages": [SYSTEM, USER]}, conversation(SYSTEM, USER)),
    ],
)
def test_shapes(row: dict[str, Any], expected: Any) -> None:
    assert to_sample(row) == expected


@pytest.mark.parametrize("name", rows.REASONING)
def test_reasoning_has_one_name(name: str) -> None:
    sample = to_sample({"messages": [USER, {**ASSISTANT, name: "hm"}]})
    assert sample == conversation(USER, {**ASSISTANT, "reasoning_content": "hm"})


@pytest.mark.parametrize("arguments", [None, "", " ", "null", "{}", {}])
def test_a_call_without_arguments_is_a_call(arguments: object) -> None:
    call = {"type": "function", "function": {"name": "now", "arguments": arguments}}
    sample = rows.to_sample({"messages": [USER, {**ASSISTANT, "tool_calls": [call]}]})
    assert sample.messages[1]["tool_calls"] == [{"type": "function", "function": {"name": "now", "arguments": {}}}]


@pytest.mark.parametrize("call", [CALL, CALL["function"], {"function": {"name": "add", "arguments": '{"a": 1}'}}])
@pytest.mark.parametrize("as_text", [False, True])
def test_tool_calls_and_tools(call: Any, as_text: bool) -> None:
    tools = [{**TOOL, "strict": None}, TOOL["function"]]
    calls = {"role": "assistant", "content": None, "tool_calls": json.dumps([call]) if as_text else [call]}
    result = {"role": "tool", "content": "3", "tool_call_id": "c1", "name": "add"}
    sample = to_sample({"messages": [USER, calls, result], "tools": json.dumps(tools) if as_text else tools})
    expected = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert sample == conversation(USER, expected, result, tools=(TOOL, TOOL))


def test_a_field_can_be_named() -> None:
    row = {"text": "no", "a": {"b": ["x", "y"], "c": [USER, ASSISTANT]}, "d.e": "z"}
    assert to_sample(row, "a.b.1") == Text("y")
    assert to_sample(row, "d.e") == Text("z")
    assert to_sample(row, "a.c") == PAIR
    for missing in ("b", "a.x", "a.b.2", "text.a", "a.b.c"):
        with pytest.raises(Unusable, match=rows.NO_FIELD):
            to_sample(row, missing)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, rows.UNKNOWN),
        ({"prompt": "Q"}, rows.UNKNOWN),
        ({"text": None}, rows.UNKNOWN),
        ({"text": ""}, rows.EMPTY),
        ({"text": " \n\u2003"}, rows.EMPTY),
        ({"text": 3}, rows.NOT_TEXT),
        ({"text": ["x"]}, rows.NOT_TEXT),
        ({"text": "\ud800"}, rows.NOT_UTF8),
        ({"instruction": "Q", "output": 3}, rows.NOT_TEXT),
        ({"prompt": "Q", "response": " "}, rows.EMPTY),
        ({"messages": []}, rows.EMPTY),
        ({"messages": [SYSTEM]}, rows.EMPTY),
        ({"messages": [{"role": "user", "content": " "}]}, rows.EMPTY),
        ({"messages": "Q"}, rows.NOT_MESSAGES),
        ({"messages": {"role": "user"}}, rows.NOT_MESSAGES),
        ({"messages": ["Q", "A"]}, rows.NOT_MESSAGES),
        ({"messages": [{"role": "narrator", "content": "x"}]}, rows.NO_ROLE),
        ({"messages": [{"role": ["user"], "content": "x"}]}, rows.NO_ROLE),
        ({"messages": [{"content": "x"}]}, rows.NO_ROLE),
        ({"messages": [{"role": "user"}]}, rows.NO_CONTENT),
        ({"messages": [{"role": "user", "content": 3}]}, rows.NOT_TEXT),
        ({"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]}, rows.NOT_TEXT),
        ({"messages": [{**USER, "content": "\udc00"}]}, rows.NOT_UTF8),
        ({"messages": [USER, {**ASSISTANT, "reasoning": 3}]}, rows.NOT_TEXT),
        ({"messages": [USER, {**ASSISTANT, "tool_calls": "{"}]}, rows.NOT_TOOLS),
        ({"messages": [USER, {**ASSISTANT, "tool_calls": [{"id": "x"}]}]}, rows.NOT_TOOLS),
        ({"messages": [USER, {**ASSISTANT, "tool_calls": [{"name": "f", "arguments": "[1]"}]}]}, rows.NOT_TOOLS),
        ({"messages": [USER], "tools": "no"}, rows.NOT_TOOLS),
        ({"messages": [USER], "tools": [{"name": "f", "default": {1, 2}}]}, rows.NOT_TOOLS),
        ({"messages": "[" * 100_000}, rows.NOT_MESSAGES),
    ],
)
def test_unusable_rows_say_why(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unusable) as caught:
        to_sample(row)
    assert str(caught.value) == reason


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(sorted(rows.ROLES)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "from", "content", "value", "text", "tool_calls", "name"]), inner)
    ),
    max_leaves=12,
)
COLUMNS = sorted({column for columns, _ in rows.SHAPES for column in columns} | {"tools", "system", "input"})


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(COLUMNS), JSON), st.none() | st.sampled_from(COLUMNS))
def test_any_row_is_a_sample_or_unusable(row: dict[str, Any], field: str | None) -> None:
    reasons = {value for name, value in vars(rows).items() if name.isupper() and isinstance(value, str)}
    try:
        sample = to_sample(row, field)
    except Unusable as unusable:
        texts = [str(unusable)] if str(unusable) in reasons else []
    else:
        texts = [sample.text] if isinstance(sample, Text) else [message["content"] for message in sample.messages]
    assert any(text.strip() for text in texts)
