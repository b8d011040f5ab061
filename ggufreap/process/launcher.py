"""What every child runs first: it ties its life to the process that started it, then runs the program it was told.

Run by its path, with the number of the lifeline, a module or the path of a script, and the arguments of that.
"""

import importlib.util
import os
import runpy
import sys
import threading
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


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
    lifeline, program = int(sys.argv[1]), sys.argv[2]
    del sys.argv[:2]
    if lifeline >= 0:
        os.set_inheritable(lifeline, False)
        threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()
    if program.endswith(".py"):
        runpy.run_path(program, run_name="__main__")
    else:
        _import_own_package()
        runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
