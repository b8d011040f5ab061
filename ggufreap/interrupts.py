"""Ctrl-C at a moment that suits: work that must be whole is finished first."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def held(notice: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Raise KeyboardInterrupt only at the end of the block; `notice` is called at once, to make it end soon.

    Signals reach only the main thread; in others the block runs as it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed = []

    def keep(_signal: int, _frame: object) -> None:
        pressed.append(True)
        notice()

    previous = signal.signal(signal.SIGINT, keep)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if pressed:
        raise KeyboardInterrupt
