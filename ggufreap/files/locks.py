"""Locks that end with the process that holds them, however it ends, and tell who that is.

They are flock's, of a file that holds the owner's name: the system gives them up at the owner's death, so nobody has to
guess whether a process is still alive. Windows has none, and some network file systems; there a run cannot see another
one, but what it writes is still whole, and what is not its own it still does not replace (ggufreap.files.publishing).
"""

import errno
import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from ggufreap.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_HELD = (errno.EAGAIN, errno.EACCES)
_LONGEST = 4096  # bytes of an owner's name


@dataclass(frozen=True)
class Owner:
    """A process that works somewhere; `since` in local time."""

    pid: int
    host: str
    since: str

    @classmethod
    def me(cls) -> Self:
        """This process, from now on."""
        import socket  # not at the start, where --help would wait for it

        return cls(os.getpid(), socket.gethostname(), time.strftime("%Y-%m-%d %H:%M:%S"))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


class Busy(OutputError):
    """Somebody else holds a lock; `owner` is None where its file does not tell."""

    def __init__(self, path: Path, owner: Owner | None) -> None:
        super().__init__(f"{path} is locked by {owner or 'another process'}")
        self.owner = owner


class Lock:
    """A held lock; `before` is the owner that died holding it, `sure` whether the system can lock here at all."""

    def __init__(self, path: Path) -> None:
        """Take the lock `path`, a file that is made for it; raises Busy, OSError."""
        self.path = path
        while True:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
            try:
                self.sure = _lock(self._handle)
                if self.sure is None:
                    raise Busy(path, _read(self._handle))
                if _is_at(self._handle, path):
                    break
            except BaseException:
                os.close(self._handle)
                raise
            os.close(self._handle)  # its owner removed it while we waited our turn
        self.before = _read(self._handle) if self.sure else None  # without locks it may well be alive
        with suppress(OSError):  # a full disk: it is locked all the same
            os.ftruncate(self._handle, 0)
            os.write(self._handle, json.dumps(asdict(Owner.me())).encode())

    def release(self) -> None:
        """Remove the file and give the lock up."""
        if fcntl is None:  # nobody waits for it, and Windows removes no file that is open
            self.close()
        with suppress(OSError):
            self.path.unlink()
        if fcntl is not None:
            self.close()

    def close(self) -> None:
        """Give the lock up, and leave the file."""
        os.close(self._handle)


def left_by_the_dead(path: Path, remove: bool = False) -> bool:
    """Whether the lock `path` has an owner that is gone, and then `remove` it; False in all doubt."""
    try:
        handle = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return False
    try:
        # Without a name its owner has made the file and not yet locked it.
        dead = bool(_lock(handle)) and _read(handle) is not None and _is_at(handle, path)
        if dead and remove:
            path.unlink()
        return dead
    except OSError:
        return False
    finally:
        os.close(handle)


def _lock(handle: int) -> bool | None:
    """True once it is locked, None if somebody else holds it, False where there are no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return None if error.errno in _HELD else False
    return True


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except OSError:
        return False


def _read(handle: int) -> Owner | None:
    """The owner that stands in the file; its position is left at the start."""
    try:
        os.lseek(handle, 0, os.SEEK_SET)
        return Owner(**json.loads(os.read(handle, _LONGEST)))
    except (OSError, ValueError, TypeError):
        return None
    finally:
        os.lseek(handle, 0, os.SEEK_SET)
