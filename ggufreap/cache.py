"""What is remembered between runs: small JSON values in the user's cache folder.

All of it can be found out again. So it may be deleted at any time, what cannot be read counts as absent, and where
nothing can be written nothing is remembered.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from ggufreap.errors import OutputError
from ggufreap.files import replacing


def cache_folder() -> Path:
    """The folder: XDG_CACHE_HOME/ggufreap where that is set, else where the system keeps caches. It need not exist."""
    home = Path(os.path.expanduser("~"))
    usual = {"darwin": home / "Library" / "Caches", "win32": Path(os.environ.get("LOCALAPPDATA", home))}
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))  # a relative one is to be ignored (XDG base directories)
    return (named if named.is_absolute() else usual.get(sys.platform, home / ".cache")) / "ggufreap"


def get(name: str) -> dict[str, Any] | None:
    """The value that was put under `name`, or None."""
    try:
        value = json.loads(_path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def put(name: str, value: dict[str, Any]) -> bool:
    """Remember a value in place of the former one, whole or not at all; tells whether that could be done."""
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        with replacing(_path(name), own=True) as file:
            file.write(json.dumps(value, indent=1).encode())
    except (OSError, OutputError):
        return False
    return True


def _path(name: str) -> Path:
    return cache_folder() / f"{name}.json"
