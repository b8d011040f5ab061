"""How much memory a process here may use: that of the machine, or less where a container or a service is limited."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
# cgroups(7): version 2 has one hierarchy, version 1 one for memory. Name of the controller in /proc/self/cgroup ->
# folder, limit, use, and what of it can be freed (in memory.stat): pages of files, such as a model that was mapped.
_VERSIONS = {
    "": (_CGROUPS, "memory.max", "memory.current", ("inactive_file", "active_file")),
    "memory": (
        _CGROUPS / "memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
}


@dataclass(frozen=True)
class Memory:
    """In bytes; `free` counts what the system would drop from its caches, None where it does not tell."""

    total: int
    free: int | None
    limited: bool


def memory() -> Memory | None:
    """What this process may use; None where the system does not tell."""
    total, free = _of_machine()
    if total is None:
        return None
    limits = [*_limits()]
    limit = min((limit for limit, _ in limits), default=total)
    left = [left for _, left in limits] + ([free] if free is not None else [])
    return Memory(min(limit, total), min(left, default=None), limit < total)


def _of_machine() -> tuple[int | None, int | None]:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        with suppress(AttributeError, ValueError, OSError):  # no sysconf on Windows
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), None
        return None, None
    sizes = {key: 1024 * int(rest.split()[0]) for key, rest in (line.split(":", 1) for line in lines)}
    return sizes["MemTotal"], sizes.get("MemAvailable")


def _limits() -> Iterator[tuple[int, int]]:
    """(limit, what is left of it) of every limited group that this process is in."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            for controller in {*controllers.split(",")} & {*_VERSIONS}:
                root, limit, use, freeable = _VERSIONS[controller]
                inside = root / path.lstrip("/")
                for folder in (inside, *inside.parents):
                    if folder.is_relative_to(root):
                        yield from _limit(folder, limit, use, freeable)


def _limit(folder: Path, limit: str, use: str, freeable: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    with suppress(OSError, ValueError):  # no such file: no limit; "max" is none either
        most = int((folder / limit).read_text())
        used = int((folder / use).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        yield most, max(0, most - used + sum(int(stat.get(name, 0)) for name in freeable))
