"""What a corpus is made of: one sample per document or conversation, before it is tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Text:
    """A document as it is, or a piece of a long one: where it `continues`, the next piece follows without a gap."""

    text: str
    continues: bool = False


@dataclass(frozen=True)
class Conversation:
    """Messages as chat templates take them (`role`, `content`, `reasoning_content`, `tool_calls` ...), and tools."""

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()


Sample = Text | Conversation


class Unusable(Exception):
    """A row that gives no sample; it is skipped and counted by this reason, which is the same for all such rows."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing read from a source: a row, a text as it is, or why neither could be read.

    `place` is where it stands, file and row; `position` how many bytes of the files, or rows of the data set, were read
    by then.
    """

    place: str
    position: int
    value: Mapping[str, Any] | Text | Unusable
