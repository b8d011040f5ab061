"""Spans are found in templates that know their own: each way of finding them against the truth."""

import time
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufreap.corpus import chat_spans
from ggufreap.corpus.chat_spans import GENERATION, Messages, View, _by_generation, _by_search, _cuts, find_spans
from ggufreap.corpus.samples import Unusable

Pieces = list[tuple[str, bool]]  # text, and whether the assistant says it


class Style:
    """A template that also says which of its text is the assistant's."""

    opening, closing, prompt = "<|{}|>\n", "<|end|>\n", "<|assistant|>\n"
    keeps_reasoning = True
    last_closing = closing
    marks = False

    def pieces(self, messages: Messages) -> Pieces:
        pieces = [("<s>", False)]
        last_user = max(i for i, message in enumerate(messages) if message["role"] == "user")
        for index, message in enumerate(messages):
            assistant = message["role"] == "assistant"
            said = message["content"].strip()
            if message.get("reasoning_content") and (self.keeps_reasoning or index > last_user):
                said = f"<think>{message['reasoning_content']}</think>{said}"
            closing = self.last_closing if assistant and message is messages[-1] else self.closing
            pieces.append((self.opening.format(message["role"]), False))
            pieces.append((said + closing, assistant))
        return pieces

    def render(self, messages: Messages, views: Sequence[View]) -> list[str | None]:
        texts: list[str | None] = []
        for n, prompted, marked in views:
            if not any(message["role"] == "user" for message in messages[:n]):
                if not texts:
                    raise Unusable("chat template refused: no user")
                texts.append(None)
                continue
            pieces = self.pieces(messages[:n])
            if prompted and pieces[-1][1]:
                pieces[-1] = (pieces[-1][0].removesuffix(self.last_closing) + self.closing, True)
            start, end = GENERATION if marked and self.marks else ("", "")
            text = "".join(f"{start}{text}{end}" if assistant else text for text, assistant in pieces)
            texts.append(text + self.prompt if prompted else text)
        return texts

    def truth(self, messages: Messages) -> list[str]:
        return [text for text, assistant in self.pieces(messages) if assistant]


class Forgetful(Style):
    """Past reasoning is left out."""

    keeps_reasoning = False


class Thoughtful(Forgetful):
    """The prompt opens a thought."""

    prompt = "<|assistant|>\n<think>"


class Final(Forgetful):
    """The last turn ends in another way."""

    last_closing = "<|return|>"


class Generating(Forgetful):
    """The template marks what the assistant says."""

    marks = True


WORDS = st.text("ab <>|\n", min_size=1, max_size=8).filter(str.strip) | st.sampled_from(["<|end|>", "<think>", "user"])
ROLES = st.lists(st.sampled_from(["user", "assistant", "system"]), max_size=5).map(lambda roles: ["user", *roles])


@st.composite
def conversations(draw: st.DrawFn) -> Messages:
    messages = []
    for role in draw(ROLES):
        message = {"role": role, "content": draw(WORDS)}
        if role == "assistant" and draw(st.booleans()):
            message["reasoning_content"] = draw(WORDS)
        messages.append(message)
    return messages


def said(style: Style, messages: Messages) -> list[str]:
    text, spans = find_spans(messages, style.render, style.marks)
    assert text == style.render(messages, [(len(messages), False, False)])[0]
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    return [text[start:end] for start, end in spans]


@pytest.mark.parametrize("style", [Style(), Forgetful(), Final(), Generating()], ids=lambda style: type(style).__name__)
@given(messages=conversations())
def test_every_turn_is_found_whole(style: Style, messages: Messages) -> None:
    assert said(style, messages) == style.truth(messages)


@given(messages=conversations())
def test_a_thought_that_the_prompt_opens_is_not_counted(messages: Messages) -> None:
    style = Thoughtful()
    for found, whole in zip(said(style, messages), style.truth(messages), strict=True):
        assert found in (whole, whole.removeprefix("<think>"))


@given(messages=conversations())
def test_marks_find_what_prefixes_find(messages: Messages) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_spans, "_by_prefixes", lambda *_: ())
        assert said(Style(), messages) == Style().truth(messages)


@given(messages=conversations())
def test_what_cannot_be_rendered_in_parts_is_looked_up(messages: Messages) -> None:
    whole = Forgetful().render(messages, [(len(messages), False, False)])

    def render(asked: Messages, views: Sequence[View]) -> list[str | None]:
        if asked is not messages:
            raise Unusable("chat template refused: marks")
        return [*whole, *(None for _ in views[1:])]

    text, spans = find_spans(messages, render, False)
    contents = [message["content"].strip() for message in messages if message["role"] == "assistant"]
    assert [text[start:end] for start, end in spans] == contents


def test_a_long_conversation_is_not_rendered_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    style = Style()

    def render(messages: Messages, views: Sequence[View]) -> list[str | None]:
        asked.append(len(views))
        return style.render(messages, views)

    messages = [{"role": role, "content": f"{role} {turn}"} for turn in range(3) for role in ("user", "assistant")]
    monkeypatch.setattr(chat_spans, "_MOST", 10)
    text, spans = find_spans(messages, render, False)
    assert asked == [1, 1]
    assert [text[start:end] for start, end in spans] == [f"assistant {turn}" for turn in range(3)]


def test_spans_of_many_turns_are_found_in_time() -> None:
    """A row of 16 MiB can hold a hundred thousand turns: no way may look at all of them for each."""
    n = 30_000
    opening, closing = GENERATION
    marked = "".join(f"{index} {opening}said {index}{closing}" for index in range(n))
    text = marked.replace(opening, "").replace(closing, "")
    began = time.process_time()
    spans = _by_generation(text, marked)
    assert len(spans) == n
    assert text[slice(*spans[-1])] == f"said {n - 1}"
    messages = [{"role": "assistant", "content": f"never {index}"} for index in range(n)]
    assert _by_search("x" * 1_000_000, messages) == ()
    assert next(_cuts(">" * 100_000)) == 100_000
    assert len(list(_cuts(">" * 100_000))) <= 33
    assert time.process_time() - began < 10
