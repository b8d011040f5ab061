"""What the generation probes ask: 24 prompts that come with ggufreap, or the user's own."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

from msgspec import Struct

from ggufreap.corpus import read_text
from ggufreap.decoding import Damaged, parse_json
from ggufreap.errors import InputError

BUILT_IN = Path(__file__).with_name("prompts.toml")


@dataclass(frozen=True)
class Prompt:
    """A question or the start of a text, and what kind of text it is."""

    text: str
    domain: str = ""


class _Row(Struct):
    """A line; people keep more in it than is asked here."""

    prompt: str
    domain: str | None = None


def load_prompts(path: str | Path | None = None) -> tuple[Prompt, ...]:
    """The prompts of a file, or the built-in ones.

    `.jsonl`: an object per line with `prompt` and, if you like, `domain`; any other file: a prompt per line. Raises
    InputError.
    """
    if path is None:
        return tuple(Prompt(**row) for row in tomllib.loads(BUILT_IN.read_text(encoding="utf-8"))["prompt"])
    read = _object if str(path).endswith(".jsonl") else _line
    lines = enumerate(read_text(str(path)).split("\n"), 1)
    prompts = tuple(read(line, f"{path}, line {number}") for number, line in lines if line.strip())
    if not prompts:
        raise InputError(f"{path} has no prompts; write one per line")
    return prompts


def _line(line: str, _where: str) -> Prompt:
    return Prompt(line)


def _object(line: str, where: str) -> Prompt:
    try:
        row = parse_json(line.encode(), _Row)
    except Damaged as error:
        example = '{"prompt": "...", "domain": "..."}'
        raise InputError(f"{where} is no prompt: {error}; a .jsonl file has {example} in each line") from error
    if not row.prompt.strip():
        raise InputError(f"{where} has no prompt; write one, or leave the line out")
    return Prompt(row.prompt, row.domain or "")
