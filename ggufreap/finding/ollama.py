"""Ollama's models by name: a manifest says which blob is the GGUF file.

Layout: manifests/HOST/NAMESPACE/MODEL/TAG is JSON with layers, blobs/sha256-HEX their contents (Ollama's
types/model/name.go and server/internal/manifest).
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ggufreap.cache import cache_folder
from ggufreap.errors import InputError
from ggufreap.files import make_folder, private_folder
from ggufreap.finding.places import ollama_folders

HOST, NAMESPACE, TAG = "registry.ollama.ai", "library", "latest"
_PART = re.compile(r"[\w.-]{1,80}", re.ASCII)
_MODEL_LAYER, _DIGEST = "application/vnd.ollama.image.model", re.compile(r"sha256[:-]([0-9a-f]{64})")


def manifest_of(name: str) -> Path | None:
    """The manifest of `[host/][namespace/]model[:tag]`, or None where Ollama has no such model."""
    *before, last = name.split("/")
    model, _, tag = last.partition(":")
    usual = (HOST, NAMESPACE)[: 2 - len(before)]
    parts = (*usual, *before, model, tag or TAG)
    if len(parts) != 4 or not all(_PART.fullmatch(part) and set(part) != {"."} for part in parts):
        return None
    paths = (folder.joinpath("manifests", *parts) for folder in ollama_folders())
    return next((path for path in paths if _is_file(path)), None)


def manifests() -> Iterator[tuple[str, Path]]:
    """The name and manifest of all models that Ollama has; raises OSError where a folder cannot be read."""
    for folder in ollama_folders():
        top = folder / "manifests"
        for path in sorted(top.glob("*/*/*/*")):
            host, namespace, model, tag = path.relative_to(top).parts
            before = (
                () if (host, namespace) == (HOST, NAMESPACE) else (namespace,) if host == HOST else (host, namespace)
            )
            yield "/".join((*before, f"{model}:{tag}")), path


def blob_of(manifest: Path) -> Path:
    """The GGUF file of a manifest; raises InputError where there is none."""
    try:
        layers = json.loads(manifest.read_text(encoding="utf-8"))["layers"]
        digests = [layer["digest"] for layer in layers if layer["mediaType"] == _MODEL_LAYER]
        hexes = [match[1] for match in map(_DIGEST.fullmatch, digests) if match]
    except OSError as error:
        raise InputError(f"cannot read {manifest}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{manifest} is no manifest of Ollama; pull the model again") from error
    if len(hexes) != 1:
        raise InputError(f"{manifest} names {len(hexes)} model layers; one GGUF file is needed, give it by its path")
    return manifest.parents[4] / "blobs" / f"sha256-{hexes[0]}"


def linked(name: str, blob: Path) -> Path:
    """A link to a blob that is named after the model, so that results are; it lies in the cache folder.

    Raises OutputError, and InputError where the system makes no links.
    """
    folder = cache_folder() / "ollama"
    link = folder / f"{re.sub('[/:]', '-', name.removesuffix(f':{TAG}'))}.gguf"
    if link.is_symlink() and Path(os.readlink(link)) == blob:
        return link
    make_folder(folder, parents=True)
    try:
        with private_folder(folder) as hidden:
            (hidden / link.name).symlink_to(blob)
            os.replace(hidden / link.name, link)
    except OSError as error:
        raise InputError(f"cannot link {link} to {blob}: {error.strerror}; copy it to a .gguf file") from error
    return link


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False
