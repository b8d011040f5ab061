"""Ctrl-C at a moment that suits: work that must be whole is finished first."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# SIGTERM is `kill` and `timeout`, SIGHUP a terminal that closes; Windows has no SIGHUP.
STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_TOGETHER = 1.0  # seconds
_stopped = -_TOGETHER  # when it last was


class Stopped(KeyboardInterrupt):
    """The user, or the system, wants an end; says what becomes of the work where that is known.

    Not KeyboardInterrupt itself: where that comes while Python runs code that is text, as it does to make a dataclass,
    it notes it and kills itself at the end, however it was answered (Python/pythonrun.c, run_eval_code_obj).
    """


@contextmanager
def as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM and SIGHUP stop as Ctrl-C does: nothing half-written stays behind.

    Signals that come together are one: a terminal tells all processes of a group, and a supervisor passes on what it
    hears. What is ignored, such as SIGINT in the background of a shell and SIGHUP under nohup, stays ignored.
    """
    before = {number: signal.getsignal(number) for number in STOPS}
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])


@contextmanager
def unwrapped() -> Iterator[None]:
    """Raise Stopped itself where Python makes another error of it: before 3.12, one in __set_name__, as for a class
    that is being made."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__cause__, Stopped):
            raise error.__cause__ from None
        raise


def hear() -> None:
    """Hear what a supervisor has held back until it can be answered: raises Stopped if that was a stop."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*STOPS, signal.SIGCHLD})


def _stop(_signal: int, _frame: object) -> None:
    global _stopped
    now = time.monotonic()
    if now - _stopped >= _TOGETHER:
        _stopped = now
        raise Stopped


@contextmanager
def held(notice: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Raise Stopped only at the end of the block; `notice` is called at once, to make it end soon.

    Signals reach only the main thread; in others the block runs as it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed = []

    def put_off(_signal: int, _frame: object) -> None:
        global _stopped
        _stopped = time.monotonic()
        pressed.append(True)
        notice()

    handlers = {number: signal.getsignal(number) for number in STOPS}
    # Ctrl-C, and whatever stops as it does; a handler of somebody else's is not ours to replace.
    previous = {n: each for n, each in handlers.items() if each is _stop or (n == signal.SIGINT and callable(each))}
    for number in previous:
        signal.signal(number, put_off)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if pressed:
        raise Stopped
