"""A model as the stages take it: opened, bound and identified once, by the first line of a verb, and handed down."""

import json
import logging
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ggufreap.architecture.layout import MoeLayout, bind
from ggufreap.container import GgufFile, open_gguf
from ggufreap.container.unchanged import of_unchanged
from ggufreap.evidence import require_weights
from ggufreap.planning import ModelIdentity

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """An opened file and what its experts are."""

    file: GgufFile
    layout: MoeLayout
    _said: set[str] = field(default_factory=set, repr=False, compare=False)

    @classmethod
    def open(cls, model: "Model | str | Path") -> "Model":
        """What `model` names, any shard of a split set will do; a model that is open already is taken as it is.

        Raises InputError and FormatError as `open_gguf`, UnsupportedModel and InfeasiblePlan as `bind`.
        """
        if isinstance(model, Model):
            return model
        file = open_gguf(model)
        return cls(file, bind(file))

    @property
    def path(self) -> Path:
        """The file, or its first shard."""
        return self.file.path

    @cached_property
    def identity(self) -> ModelIdentity:
        """Who it is."""
        name = str(self.file.get("general.name") or self.path.stem)
        file = self.file
        return ModelIdentity(file.fingerprint, self.layout.architecture.name, name, file.structure, file.types)

    def check_weights(self) -> None:
        """Say where zeros stand instead of weights; raises FormatError where an expert is nothing else."""
        for note in self._zeros:
            self.warn(note)

    def warn(self, note: str) -> None:
        """Say what is true of this model, the first time: many plans may be made of it."""
        if note not in self._said:
            self._said.add(note)
            _LOG.warning("%s", note)

    @cached_property
    def _zeros(self) -> tuple[str, ...]:
        """Looked for once for as long as the file stays as it is: from a cold cache that takes seconds."""

        name = f"{self.path}: "  # which the file may have under another one

        def look() -> str:
            return json.dumps([note.removeprefix(name) for note in require_weights(self.file, self.layout)])

        return tuple(name + note for note in json.loads(of_unchanged("zeros", self.file.paths, look)))


AnyModel = Model | str | Path  # what the public verbs take


def file_of(model: AnyModel) -> GgufFile:
    """The opened file of any model, those that cannot be pruned included."""
    return model.file if isinstance(model, Model) else open_gguf(model)


def name_of(model: AnyModel) -> str:
    """The path as it was given, for the reader."""
    return str(model.path if isinstance(model, Model) else model)


def warn_of_context(file: GgufFile, n_ctx: int) -> None:
    """Say where a chunk is longer than what the model was trained on."""
    trained = file.get(f"{file.get('general.architecture')}.context_length")
    if isinstance(trained, int) and 0 < trained < n_ctx:
        _LOG.warning(
            "-c %d is longer than the %d tokens that %s was trained on: what it does beyond them tells little",
            n_ctx,
            trained,
            file.path.name,
        )
