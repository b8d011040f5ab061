"""What a corpus is made of: one sample per document or conversation, before it is tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Text:
    """A document as it is."""

    text: str


@dataclass(frozen=True)
class Conversation:
    """Messages as chat templates take them (`role`, `content`, `reasoning_content`, `tool_calls` ...), and tools."""

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()


Sample = Text | Conversation


class Unusable(Exception):
    """A row that gives no sample; it is skipped and counted by this reason, which is the same for all such rows."""
