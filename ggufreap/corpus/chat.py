"""Conversations as text: rendered with the chat template inside the GGUF, or without any.

The template is a program out of a stranger's file. It runs in a process of its own (chat_worker), sandboxed and with
limits of time and memory; one that breaks them costs its conversation, three times in a row the run.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ggufreap.container import GgufFile
from ggufreap.corpus.chat_spans import GENERATION, Messages, Spans, View, find_spans
from ggufreap.corpus.samples import Conversation, Unusable
from ggufreap.errors import InputError
from ggufreap.process import Child, Ending, last_words

SECONDS = 10.0  # for one conversation
NBYTES = 512 << 20  # address space; Python with jinja2 takes 25 MiB of it
_DEATHS = 3  # in a row, until the template is given up
_OUT_OF_MEMORY = 3  # chat_worker's exit code
_KEY = "tokenizer.chat_template"
# What templates call the special tokens, and GGUF (gguf/constants.py, Keys.Tokenizer).
_TOKENS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "sep_token": "tokenizer.ggml.seperator_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
    "cls_token": "tokenizer.ggml.cls_token_id",
    "mask_token": "tokenizer.ggml.mask_token_id",
}
_REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, special tokens written out (BOS too, where the template has it).

    `assistant`: where the assistant speaks, `(start, end)` in characters, in order: content, reasoning and tool calls,
    up to and including the end-of-turn marker where that can be known; empty where it cannot be told.
    """

    text: str
    assistant: Spans


@dataclass(frozen=True)
class ChatTemplate:
    """The template for conversations, the one for those with tools, and the special tokens that they name."""

    default: str
    tool_use: str
    tokens: Mapping[str, str]

    @classmethod
    def of(cls, file: GgufFile) -> Self | None:
        """The template that a model brings, or None; `tool_use` is the named one, as in llama.cpp (common/chat.cpp).

        A text that never reads the messages, such as the bare name of a template that old files have, is none.
        """
        sources = (file.get(_KEY), file.get(f"{_KEY}.tool_use"))
        default, tool_use = (source if isinstance(source, str) and "messages" in source else "" for source in sources)
        if not default and not tool_use:
            return None
        named = {name: key for name, key in _TOKENS.items() if name in default + tool_use}
        tokens = {name: token for name, key in named.items() if (token := _token(file, key)) is not None}
        return cls(default or tool_use, tool_use or default, tokens)

    def renderer(self, spans: bool = True, seconds: float = SECONDS, nbytes: int = NBYTES) -> "Renderer":
        """A context in which conversations can be rendered; `spans=False` is quicker and finds no `assistant`."""
        return Renderer(self, spans, seconds, nbytes)


class Renderer:
    """A running process with a template; leaving it kills the process."""

    def __init__(self, template: ChatTemplate, spans: bool, seconds: float, nbytes: int) -> None:
        self._template, self._spans, self._seconds, self._nbytes = template, spans, seconds, nbytes
        self._deaths = 0

    def __enter__(self) -> Self:
        """Raises InputError when the template has a syntax error, or breaks the limits before it is used."""
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def __call__(self, conversation: Conversation) -> Rendered:
        """Render one conversation.

        Raises Unusable when the template refuses it, and InputError when the template broke its limits three times in
        a row.
        """
        messages, job = _job(conversation)

        def render(messages: Messages, views: Sequence[View]) -> Sequence[str | None]:
            return self._texts({**job, "messages": messages, "views": views})

        if self._spans:
            return Rendered(*find_spans(messages, render, "endgeneration" in self._template.default))
        return Rendered(self.prompt(conversation, generation=False), ())

    def prompt(self, conversation: Conversation, generation: bool = True) -> str:
        """The conversation alone, with `generation` up to where the assistant begins; raises as a call does."""
        messages, job = _job(conversation)
        (text,) = self._texts({**job, "messages": messages, "views": [(len(messages), generation, False)]})
        assert text is not None
        return text

    def _texts(self, job: Mapping[str, Any]) -> Sequence[str | None]:
        try:
            line = json.dumps(job, default=_plain_value)
        except (TypeError, ValueError, RecursionError):
            raise Unusable("conversation holds what JSON cannot hold") from None
        try:
            answer = self._ask(line)
        except _Died as death:
            self._deaths += 1
            if self._deaths == _DEATHS:
                raise InputError(
                    f"the chat template {death} on {_DEATHS} conversations in a row; use --no-chat-template"
                ) from None
            self._stop()
            self._start()
            raise Unusable(f"chat template {death}") from None
        self._deaths = 0
        if "refused" in answer:
            raise Unusable(f"chat template refused: {_reason(answer['refused'])}")
        texts: Sequence[str | None] = answer["texts"]
        if not _is_unicode(texts[0] or ""):
            raise Unusable("chat template wrote half a surrogate pair")
        return texts

    def _start(self) -> None:
        self._process = Child(Path(__file__).with_name("chat_worker.py"))
        job = {
            "templates": {"default": self._template.default, "tool_use": self._template.tool_use},
            "tokens": self._template.tokens,
            "marks": GENERATION,
            "seconds": self._seconds,
            "nbytes": self._nbytes,
        }
        try:
            answer = self._ask(json.dumps(job))
        except _Died as death:
            self._stop()
            raise InputError(f"the chat template {death} before it was used; use --no-chat-template") from None
        if "refused" in answer:
            self._stop()
            raise InputError(f"the chat template does not parse: {_reason(answer['refused'])}; use --no-chat-template")

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdout
        self._process.tell(line)
        if not (said := self._process.stdout.readline()):
            raise _Died(self._process.ending(), self._seconds, self._nbytes)
        answer: dict[str, Any] = json.loads(said)
        return answer

    def _stop(self) -> None:
        self._process.stop()


def _job(conversation: Conversation) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    messages = [_as_transformers_does(message) for message in conversation.messages]
    return messages, {"template": "tool_use" if conversation.tools else "default", "tools": list(conversation.tools)}


class _Died(Exception):
    def __init__(self, ending: Ending, seconds: float, nbytes: int) -> None:
        known = {
            1: f"takes more than {seconds:g} s",  # faulthandler's exit code
            _OUT_OF_MEMORY: f"takes more than {nbytes >> 20} MiB",
        }
        super().__init__(known.get(ending.code, f"ends its process, which {last_words(ending)}"))


def plain(conversation: Conversation) -> str:
    """A conversation without a template: what was said, in order, with a blank line between two messages.

    Role names are left out, since no model was trained on ours; so are tools. Reasoning goes before its content, tool
    calls after it as the JSON of their function, one a line.
    """
    said = (_said(_as_transformers_does(message)) for message in conversation.messages)
    return "\n\n".join(filter(None, said))


def _said(message: Mapping[str, Any]) -> str:
    content = message.get("content", "")
    if not isinstance(content, str):  # parts: only those of text
        content = "".join(part.get("text") or "" for part in content if isinstance(part, Mapping))
    calls = [call.get("function", call) for call in message.get("tool_calls", ())]
    lines = (json.dumps(call, ensure_ascii=False, default=_plain_value) for call in calls)
    return "\n\n".join(filter(None, (message.get("reasoning_content", ""), content, "\n".join(lines))))


def _as_transformers_does(message: Mapping[str, Any]) -> dict[str, Any]:
    """Without empty fields, and reasoning under both names that templates read (utils/chat_template_utils.py)."""
    known = {key: value for key, value in message.items() if value is not None}
    reasoning = next((known[key] for key in _REASONING if key in known), None)
    return known if reasoning is None else {"thinking": reasoning, **known, "reasoning_content": reasoning}


def _token(file: GgufFile, key: str) -> str | None:
    index, vocabulary = file.get(key), file.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(index, int) or vocabulary is None or not 0 <= index < vocabulary.count:
        return None
    return vocabulary.string(index)


def _plain_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError


def _reason(message: str) -> str:
    """One short line of what a template says, harmless to a terminal."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in message).split())
    return line if len(line) <= 100 else line[:99] + "…"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
