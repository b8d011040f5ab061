"""Text that a model writes on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ggufreap.engine.generator import GenerativeEngine, Sampling, generate
from ggufreap.engine.protocol import Keep, Tokens
from ggufreap.progress import Progress, silent


class TextEngine(GenerativeEngine, Protocol):
    """A model that reads and writes text."""

    bos: int | None

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> Tokens:
        """Tokens of `text`, see ggufreap.engine.protocol.Engine."""

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`."""


@dataclass(frozen=True)
class Answer:
    """What a model wrote; `ended`: it stopped by itself rather than at the limit."""

    text: str
    tokens: tuple[int, ...]
    ended: bool


def answers(
    engine: TextEngine,
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    keep: Keep | None = None,
    special: bool = False,
    progress: Progress = silent,
    stage: str = "generating",
) -> list[Answer]:
    """Continue every prompt; `special` where a chat template made them, whose control tokens count as such."""
    tokens = [prompt_tokens(engine, prompt, special) for prompt in prompts]
    written = generate(engine, tokens, sampling, keep=keep, progress=progress, stage=stage)
    return [
        Answer(engine.detokenize(ids), tuple(ids), each.ended) for each in written for ids in [each.tokens.tolist()]
    ]


def prompt_tokens(engine: TextEngine, prompt: str, special: bool = False) -> Tokens:
    """Tokens of a prompt, with one BOS: a template may have written the one that the vocabulary adds."""
    tokens = engine.tokenize(prompt, parse_special=special)
    doubled = special and engine.bos is not None and tokens[:2].tolist() == [engine.bos] * 2
    return tokens[1:] if doubled else tokens
