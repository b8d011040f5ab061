"""Models of the Hugging Face hub by `user/repo[:quant]`, found in the cache that llama.cpp uses.

Which file a quant names: llama.cpp, common/download.cpp (find_best_model, get_split_files) and common/hf-cache.cpp
(get_cached_files).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ggufreap.container.gguf_file import SPLIT_NAME
from ggufreap.errors import InputError
from ggufreap.finding.places import hub_caches
from ggufreap.showing import excerpt

USUAL = ("Q4_K_M", "Q8_0")
_REPOSITORY = re.compile(r"\w+([.-]+\w+)*/\w+([.-]+\w+)*", re.ASCII)
_QUANT = re.compile(r"[-.](\w+)$", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NO_MODEL = re.compile(r"mmproj|imatrix|(mtp|eagle3|dflash|dspark)-")  # gguf_filename_is_model


@dataclass(frozen=True)
class HubName:
    """A repository, and the quant that is wanted of it; empty: the usual ones, else whatever is there."""

    repository: str
    quant: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """`user/repo` or `user/repo:quant`; raises InputError."""
        repository, _, quant = text.partition(":")
        if not _REPOSITORY.fullmatch(repository):
            raise InputError(f"-hf {excerpt(text)} is no model of the hub; write -hf user/repo or -hf user/repo:Q4_K_M")
        return cls(repository, quant)

    def __str__(self) -> str:
        return ":".join(filter(None, (self.repository, self.quant)))

    def choose(self, files: Sequence[str]) -> list[str]:
        """The file of a repository that llama.cpp would load, with all of its shards; empty where there is none."""
        models = sorted(file for file in files if file.endswith(".gguf") and not _NO_MODEL.search(file.split("/")[-1]))
        first = [file for file in models if _shard(file) == 1]
        wanted = [rf"(?i){re.escape(quant)}[.-]" for quant in ((self.quant,) if self.quant else USUAL)]
        named = next((file for rule in wanted for file in first if re.search(rule, file)), None)
        chosen = named or next(iter(() if self.quant else first), None)
        return [file for file in models if chosen and _set_of(file) == _set_of(chosen)]


def cached(name: HubName) -> Path | None:
    """Where it lies in a cache, all of it, or None."""
    for cache in hub_caches():
        snapshot = snapshot_of(cache / folder_of(name))
        if snapshot is None:
            continue
        files = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*.gguf") if path.is_file()]
        chosen = name.choose(files)
        if chosen and len(chosen) == _n_shards(chosen[0]):
            return snapshot / chosen[0]
    return None


def name_of(path: Path, repository: str) -> HubName | None:
    """What `path` in a cache is called by -hf, if anything."""
    stem = path.name.removesuffix(".gguf")
    match = SPLIT_NAME.fullmatch(path.name)
    quant = _QUANT.search(match["prefix"] if match else stem)
    name = HubName(repository, quant[1] if quant else "")
    return name if cached(name) == path else None


def snapshot_of(folder: Path) -> Path | None:
    """The files of a repository's folder in a cache: those of the branch main, else of any."""
    refs = folder / "refs"
    try:
        branches = sorted(refs.iterdir(), key=lambda path: path.name != "main") if refs.is_dir() else []
        commits = [path.read_text(encoding="utf-8").strip() for path in branches if path.is_file()]
    except (OSError, ValueError):
        return None
    known = (folder / "snapshots" / commit for commit in commits if _COMMIT.fullmatch(commit))
    return next((path for path in known if path.is_dir()), None)


def folder_of(name: HubName) -> str:
    """What a repository's folder in a cache is called."""
    return f"models--{name.repository.replace('/', '--')}"


def _shard(file: str) -> int:
    match = SPLIT_NAME.fullmatch(file)
    return int(match["number"]) if match else 1


def _set_of(file: str) -> tuple[str, str]:
    match = SPLIT_NAME.fullmatch(file)
    return (match["prefix"], match["count"]) if match else (file, "")


def _n_shards(file: str) -> int:
    match = SPLIT_NAME.fullmatch(file)
    return int(match["count"]) if match else 1
