"""What every child runs first: it ties its life to the process that started it, then runs the program it was told.

Run by its path, with the number of the lifeline, whether Ctrl-C is for the child too (0 or 1), a module or the path of
a script, and the arguments of that.
"""

import importlib.util
import os
import runpy
import signal
import sys
import threading
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def _tie(lifeline: int) -> None:
    """Let a thread wait for the end of the parent; signals are left to the main thread, whose waiting they end."""
    os.set_inheritable(lifeline, False)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent(lifeline: int) -> None:
    os.read(lifeline, 1)  # nobody writes: it returns when the last process that holds the other end is gone
    os._exit(1)


def _import_own_package() -> None:
    """Be of the ggufreap that started us, wherever that one was found."""
    spec = importlib.util.spec_from_file_location(
        PACKAGE.name, PACKAGE / "__init__.py", submodule_search_locations=[str(PACKAGE)]
    )
    assert spec
    assert spec.loader
    package = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE.name] = package
    spec.loader.exec_module(package)


def _main() -> None:
    lifeline, interruptible, program = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    del sys.argv[:3]
    if not interruptible:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if lifeline >= 0:
        _tie(lifeline)
    if program.endswith(".py"):
        runpy.run_path(program, run_name="__main__")
    else:
        _import_own_package()
        runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
