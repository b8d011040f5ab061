"""The folders where llama.cpp, Hugging Face, LM Studio and Ollama keep models, as their environments say."""

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

HUGGING_FACE = "Hugging Face"
# Variable -> what is appended to it, the first that is set counts (llama.cpp common/hf-cache.cpp, get_cache_directory;
# huggingface_hub has the same but for LLAMA_CACHE).
_HUB_CACHE = (
    ("HF_HUB_CACHE", ""),
    ("HUGGINGFACE_HUB_CACHE", ""),
    ("HF_HOME", "hub"),
    ("XDG_CACHE_HOME", "huggingface/hub"),
)
_NO_SNAPSHOT = re.compile(r"\.|(datasets|spaces|kernels)--|(blobs|refs)$")
_LM_STUDIO = (".lmstudio/models", ".cache/lm-studio/models")


@dataclass(frozen=True)
class Place:
    """A folder with models, and whose it is; folders below whose names match `skip` hold none."""

    owner: str
    folder: Path
    skip: re.Pattern[str] = re.compile(r"\.")


def home() -> Path:
    """The user's own folder."""
    return Path(os.path.expanduser("~"))


def hub_caches() -> list[Path]:
    """Where `-hf` of llama.cpp looks, and Hugging Face's own cache where that is another folder."""
    named = next((Path(os.environ[name]) / end for name, end in _HUB_CACHE if os.environ.get(name)), None)
    usual = named or home() / ".cache" / "huggingface" / "hub"
    llama = os.environ.get("LLAMA_CACHE")
    return list(dict.fromkeys([Path(llama), usual] if llama else [usual]))


def ollama_folders() -> list[Path]:
    """Where Ollama keeps manifests and blobs; the last is that of its service on Linux."""
    named = os.environ.get("OLLAMA_MODELS")
    service = Path("/usr/share/ollama/.ollama/models")
    return [Path(named)] if named else [home() / ".ollama" / "models", service]


def places() -> list[Place]:
    """All folders that hold models under names of their own; they need not exist."""
    hubs = [Place(HUGGING_FACE, folder, _NO_SNAPSHOT) for folder in hub_caches()]
    studio = [Place("LM Studio", home() / folder) for folder in _LM_STUDIO]
    return [Place("current folder", Path()), *hubs, Place("llama.cpp", _llama_cache()), *studio]


def _llama_cache() -> Path:
    """Where llama.cpp keeps what was not loaded with -hf (common/common.cpp, fs_get_cache_directory)."""
    if named := os.environ.get("LLAMA_CACHE"):
        return Path(named)
    usual = {"darwin": home() / "Library" / "Caches", "win32": Path(os.environ.get("LOCALAPPDATA", home()))}
    caches = usual.get(sys.platform) or Path(os.environ.get("XDG_CACHE_HOME") or home() / ".cache")
    return caches / "llama.cpp"
