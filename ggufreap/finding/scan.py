"""The mixtures of experts that lie on this machine, looked for where people have them, and not without end."""

import os
import shlex
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ggufreap.container import GgufFile, open_gguf
from ggufreap.container.gguf_file import SPLIT_NAME
from ggufreap.errors import GgufReapError
from ggufreap.finding import hub, ollama
from ggufreap.finding.places import HUGGING_FACE, Place, ollama_folders, places

DEPTH, MOST_ENTRIES, MOST_FILES = 5, 20_000, 300
OLLAMA = "Ollama"


@dataclass(frozen=True)
class FoundModel:
    """A mixture of experts; `argument` is what a shell's command takes for it, `owner` whose folder it lies in."""

    argument: str
    owner: str
    path: Path
    architecture: str
    n_expert: int
    n_used: int
    nbytes: int


@dataclass(frozen=True)
class Listing:
    """What was found; `n_other` GGUF files are no mixtures of experts, `unreadable` (path, why) could not be told.

    `cut_short`: folders that hold more than was looked at.
    """

    models: tuple[FoundModel, ...]
    n_other: int
    unreadable: tuple[tuple[Path, str], ...]
    cut_short: tuple[Path, ...]


def find_models() -> Listing:
    """Look through the current folder and those of llama.cpp, Hugging Face, LM Studio and Ollama.

    In each at most MOST_ENTRIES entries, DEPTH folders deep, are looked at, and the headers of MOST_FILES files; links
    to folders are not followed.
    """
    search = _Search()
    for place in places():
        search.folder(place)
    for folder in ollama_folders():
        search.check(folder)
    try:
        for name, manifest in ollama.manifests():
            search.ollama(name, manifest)
    except OSError as error:
        search.refuse(Path(error.filename or ollama_folders()[0]), error)
    models = sorted(search.models, key=lambda model: model.nbytes, reverse=True)
    return Listing(
        tuple(models), search.n_other, tuple(search.unreadable.items()), tuple(dict.fromkeys(search.cut_short))
    )


class _Search:
    """What was found so far; a file that is reached in two ways is looked at once."""

    def __init__(self) -> None:
        self.models: list[FoundModel] = []
        self.n_other = 0
        self.unreadable: dict[Path, str] = {}
        self.cut_short: list[Path] = []
        self._seen: set[tuple[int, int]] = set()

    def folder(self, place: Place) -> None:
        files = [path for path in self._walk(place) if _is_first(path)]
        if len(files) > MOST_FILES:
            self.cut_short.append(place.folder)
        for path in files[:MOST_FILES]:
            self._look(path, place.owner, _argument(path, place))

    def ollama(self, name: str, manifest: Path) -> None:
        try:
            blob = ollama.blob_of(manifest)
        except GgufReapError as error:
            self.refuse(manifest, error)
        else:
            self._look(blob, OLLAMA, name)

    def check(self, folder: Path) -> None:
        """Note a folder that is there and cannot be looked into."""
        try:
            with os.scandir(folder):
                return
        except FileNotFoundError:
            return
        except OSError as error:
            self.refuse(folder, error)

    def refuse(self, path: Path, error: Exception) -> None:
        self.unreadable[path] = str(getattr(error, "strerror", None) or error)

    def _walk(self, place: Place) -> Iterator[Path]:
        left, ahead = MOST_ENTRIES, deque([(place.folder, 0)])
        while ahead:
            folder, depth = ahead.popleft()
            try:
                with os.scandir(folder) as listing:
                    entries = sorted(listing, key=lambda entry: entry.name)
            except FileNotFoundError:
                continue
            except OSError as error:
                self.refuse(folder, error)
                continue
            left -= len(entries)
            if left < 0 or depth > DEPTH:
                self.cut_short.append(place.folder)
                return
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    ahead += [] if place.skip.match(entry.name) else [(Path(entry.path), depth + 1)]
                elif entry.name.endswith(".gguf"):
                    yield Path(entry.path)

    def _look(self, path: Path, owner: str, argument: str) -> None:
        try:
            status = path.stat()
            if (key := (status.st_dev, status.st_ino)) in self._seen:
                return
            file = open_gguf(path)
            self._seen.add(key)
            model = _described(file, owner, argument)
        except (GgufReapError, OSError) as error:
            self.refuse(path, error)
            return
        if model is None:
            self.n_other += 1
        else:
            self.models.append(model)


def _described(file: GgufFile, owner: str, argument: str) -> FoundModel | None:
    architecture = str(file.get("general.architecture"))
    n_expert, n_used = (file.get(f"{architecture}.{key}", 0) for key in ("expert_count", "expert_used_count"))
    if not isinstance(n_expert, int) or n_expert < 2:
        return None
    return FoundModel(argument, owner, file.path, architecture, n_expert, _most(n_used), file.nbytes)


def _most(n_used: object) -> int:
    """A number, or the largest of the blocks' numbers."""
    numbers = n_used if isinstance(n_used, list | tuple) else [n_used]
    return max((number for number in numbers if isinstance(number, int)), default=0)


def _is_first(path: Path) -> bool:
    match = SPLIT_NAME.fullmatch(path.name)
    return match is None or int(match["number"]) == 1


def _argument(path: Path, place: Place) -> str:
    """In a hub cache what -hf calls it, where that names this very file."""
    if place.owner == HUGGING_FACE:
        parts = path.relative_to(place.folder).parts
        if parts[0].startswith("models--") and "snapshots" in parts:
            repository = parts[0].removeprefix("models--").replace("--", "/", 1)
            if name := hub.name_of(path, repository):
                return f"-hf {name}"
    return shlex.quote(str(path))
