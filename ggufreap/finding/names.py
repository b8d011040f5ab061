"""A model as people name it: a file, `hf:user/repo[:quant]` for llama.cpp's -hf, or a name of Ollama."""

import logging
from dataclasses import dataclass
from pathlib import Path

from ggufreap.errors import InputError
from ggufreap.finding import download as downloading
from ggufreap.finding import hub, ollama
from ggufreap.finding.hub import HubName
from ggufreap.finding.places import hub_caches, ollama_folders
from ggufreap.progress import Progress, silent

HUB = "hf:"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Located:
    """The file of a model; `foreign`: it lies in the cache of Hugging Face or Ollama, where nothing of ours belongs."""

    path: Path
    foreign: bool


def names_model(text: str) -> bool:
    """Whether an argument can only be meant as a model."""
    is_file = text.endswith(".gguf") or "/" in text or Path(text).is_file()
    return is_file or text.startswith(HUB) or ollama.manifest_of(text) is not None


def located(text: str, download: bool = False, progress: Progress = silent) -> Located:
    """Find the model that `text` names, any file first; raises InputError where -hf names none that is here.

    `download`: fetch it then. What is neither a file nor known to Ollama is taken for a path.
    """
    if text.startswith(HUB):
        name = HubName.parse(text.removeprefix(HUB))
        return Located(_of_hub(name, download, progress), foreign=True)
    manifest = None if Path(text).exists() else ollama.manifest_of(text)
    if manifest is None:
        path = Path(text)
        return Located(path, any(path.absolute().is_relative_to(each) for each in (*hub_caches(), *ollama_folders())))
    blob = ollama.blob_of(manifest)
    _LOG.info("%s of Ollama: %s", text, blob)
    return Located(ollama.linked(text, blob), foreign=True)


def _of_hub(name: HubName, download: bool, progress: Progress) -> Path:
    path = hub.cached(name)
    if path is not None:
        _LOG.info("-hf %s: %s", name, path)
        return path
    if download:
        return downloading.download(name, progress)
    caches = " nor in ".join(map(str, hub_caches()))
    raise InputError(f"-hf {name} is not in {caches}; --download fetches it there")
