"""Bytes on their way to the disk: one buffer is filled while the disk takes the other."""

import errno
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from ggufreap.memory import memory

BUFFER = 8 << 20  # bytes, a multiple of BLOCK
SHARE = 1 / 4  # of the free memory: the source, and what llama.cpp makes of both, want to stay there too
BLOCK = 4096  # bytes: no disk asks for more where the page cache is passed by


class Sink:
    """Writes `nbytes` to the file `target`; leaving it without an exception puts them on the disk, or raises OSError.

    A file that would take more than a SHARE of the free memory passes the page cache by (O_DIRECT): there it would
    drive out its source and what is still to be read, and to copy it there takes most of the time. A smaller one stays
    in memory for those who read it next.
    """

    def __init__(self, target: int, nbytes: int) -> None:
        self._target = target
        there = memory()
        self._direct = bool(there and there.free is not None and nbytes > SHARE * there.free) and _pass_by_cache(target)
        self._buffers = [mmap.mmap(-1, BUFFER) for _ in range(2)]  # begins where a page does, as O_DIRECT wants it
        self._filled = self._written = 0
        self._pool = ThreadPoolExecutor(1)
        self._flushing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, __: TracebackType | None) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._pool.shutdown()

    def room(self) -> memoryview:
        """Where the next bytes are put, at least one; `filled` tells how many were."""
        if self._filled == BUFFER:
            self._flush()
        return memoryview(self._buffers[0])[self._filled :]

    def filled(self, nbytes: int) -> None:
        """So many bytes were put at the beginning of `room`."""
        self._filled += nbytes

    def write(self, data: bytes | memoryview) -> None:
        """Put `data`."""
        view = memoryview(data)
        while view:
            room = self.room()
            count = min(len(room), len(view))
            room[:count] = view[:count]
            self.filled(count)
            view = view[count:]

    def _flush(self) -> None:
        """Hand the first buffer to the disk, and take the other one when it is free."""
        self._wait()
        length = self._filled + -self._filled % BLOCK  # whole blocks; what the last one has too much is cut off again
        self._flushing = self._pool.submit(self._write_all, memoryview(self._buffers[0])[:length])
        self._written += self._filled
        self._filled = 0
        self._buffers.reverse()

    def _wait(self) -> None:
        if self._flushing:
            self._flushing.result()

    def _finish(self) -> None:
        self._flush()
        self._wait()
        os.ftruncate(self._target, self._written)
        os.fsync(self._target)

    def _write_all(self, view: memoryview) -> None:
        while view:
            try:
                view = view[os.write(self._target, view) :]
            except OSError as error:
                if error.errno != errno.EINVAL or not self._direct:
                    raise
                self._direct = False  # the file system did not keep its word
                _set_direct(self._target, False)


def _pass_by_cache(target: int) -> bool:
    """Whether the system takes O_DIRECT for this file; macOS and Windows have none, nor have some file systems."""
    if not hasattr(os, "O_DIRECT"):
        return False
    try:
        _set_direct(target, True)
    except OSError:
        return False
    return True


def _set_direct(target: int, direct: bool) -> None:
    import fcntl  # POSIX, as O_DIRECT is

    flags = fcntl.fcntl(target, fcntl.F_GETFL)
    fcntl.fcntl(target, fcntl.F_SETFL, flags | os.O_DIRECT if direct else flags & ~os.O_DIRECT)
