"""How a finished model is run in llama.cpp, LM Studio and Ollama, and given to others: commands to copy.

Commands: llama.cpp's tools/server, `lms import` (LM Studio's CLI), `ollama create` with a Modelfile (Ollama's import of
GGUF; shards by a wildcard), `hf upload` (huggingface_hub's CLI).
"""

import logging
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ggufreap import naming
from ggufreap.files import forced, replacing

_LOG = logging.getLogger(__name__)
_YOU = "YOU"  # the user's name on the hub, which nobody but them knows


@dataclass(frozen=True)
class Handover:
    """Finished models, each one file or its shards in order; the first is run, all are given away with `more`.

    `card`: the folder of a report with the model card, None where none was written.
    """

    models: tuple[tuple[Path, ...], ...]
    more: tuple[Path, ...] = ()
    card: Path | None = None

    @property
    def modelfile_path(self) -> Path:
        """Ollama's Modelfile, beside the first model."""
        first = self.models[0][0]
        return first.with_name(f"{naming.stem_of(first)}.Modelfile")

    @property
    def modelfile(self) -> str:
        """What stands in it; Ollama takes the chat template out of the GGUF file where it knows it."""
        names = [_pattern(model) for model in self.models]
        others = "".join(f"# FROM ./{name}\n" for name in names[1:])
        return f"# ollama create {_ollama_name(self.models[0][0])}\nFROM ./{names[0]}\n{others}"

    @property
    def steps(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """(with what, commands), each command as a shell takes it, from the current folder."""
        first = self.models[0][0]
        stem, name = naming.stem_of(first), _ollama_name(first)
        studio = [
            shlex.join(["lms", "import", "--symbolic-link", "--user-repo", f"local/{stem}", os.path.abspath(path)])
            for path in self.models[0]
        ]
        return (
            ("llama.cpp", (shlex.join(["llama-server", "-m", str(first)]),)),
            ("LM Studio", tuple(studio)),
            (
                "Ollama",
                (
                    shlex.join(["ollama", "create", name, "-f", str(self.modelfile_path)]),
                    shlex.join(["ollama", "run", name]),
                ),
            ),
            ("upload", self._uploads(f"{_YOU}/{_base(stem)}-GGUF")),
        )

    def _uploads(self, repository: str) -> tuple[str, ...]:
        files = [str(path) for model in self.models for path in model] + [str(path) for path in self.more]
        words = [["hf", "upload", repository, file] for file in files]
        if self.card is not None:
            words.insert(0, ["hf", "upload", repository, str(self.card), "."])
        return tuple(map(shlex.join, words))

    def write(self) -> Path:
        """Write the Modelfile; one that is there and says something else stays, and that is said.

        Called while `writing`; raises OutputError.
        """
        path, text = self.modelfile_path, self.modelfile.encode()
        if os.path.lexists(path) and not forced() and not (path.is_file() and path.read_bytes() == text):
            _LOG.info("%s is there already and stays as it is (--force writes it anew)", path)
            return path
        with replacing(path) as file:
            file.write(text)
        return path


def _pattern(model: Sequence[Path]) -> str:
    return f"{naming.stem_of(model[0])}-*.gguf" if len(model) > 1 else model[0].name


def _base(stem: str) -> str:
    """The name without its encoding."""
    match = naming.ENCODING.search(stem)
    return stem[: match.start()] if match else stem


def _ollama_name(first: Path) -> str:
    """A model name as Ollama has them: lower case, letters, digits and `. _ -`, the encoding as the tag."""
    stem = naming.stem_of(first)
    base = _base(stem)
    parts = (re.sub(r"[^a-z0-9._-]+", "-", part.lower()).strip("-._") for part in (base, stem[len(base) + 1 :]))
    return ":".join(filter(None, parts)) or "pruned"
