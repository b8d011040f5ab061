"""What was found out about files, believed for as long as nothing touches them, in this run and in later ones."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ggufreap import cache

# Seconds since a file was last touched: changed again within one tick of its clock (2 s on FAT) it would look the same.
SETTLED = 3.0
_known: dict[str, str] = {}  # a verb opens its model several times


def of_unchanged(question: str, files: Sequence[Path], find_out: Callable[[], str]) -> str:
    """The answer to `question`, as `find_out` gives it or gave it of the very same files.

    A file is the same with its device, inode, size and times of change, of which the second cannot be set by anybody.
    """
    state = _state(files)
    key = f"file-{hashlib.sha256(json.dumps([question, state]).encode()).hexdigest()[:32]}"
    if key in _known:
        return _known[key]
    answer = (cache.get(key) or {}).get("answer")
    if not isinstance(answer, str):
        answer = find_out()
        if _state(files) != state:
            return answer
        if time.time_ns() - max(max(each[3:]) for each in state) > SETTLED * 1e9:
            cache.put(key, {"answer": answer})
    _known[key] = answer
    return answer


def _state(files: Sequence[Path]) -> list[tuple[int, ...]]:
    stats = (path.stat() for path in files)
    return [(each.st_dev, each.st_ino, each.st_size, each.st_mtime_ns, each.st_ctime_ns) for each in stats]
