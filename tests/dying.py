"""A process that dies in the middle of its work: killed at the N-th call of one of the program's functions."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest


def die_at(function: str, number: int) -> None:
    """SIGKILL this process when `function`, `module:path`, is called for the `number`-th time."""
    module, _, path = function.partition(":")
    holder, calls = import_module(module), 0
    *inside, last = path.split(".")
    for part in inside:
        holder = getattr(holder, part)
    real: Callable[..., Any] = getattr(holder, last)

    def dying(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)

    setattr(holder, last, dying)


def killed(script: str, function: str, number: int, *arguments: object) -> None:
    """Run a Python script with its arguments in `sys.argv`, and see that it dies so."""
    begin = f"import sys\nfrom dying import die_at\ndie_at({function!r}, {number})\n"
    command = [sys.executable, "-c", begin + script, *map(str, arguments)]
    code = subprocess.run(command, cwd=Path(__file__).parent, check=False).returncode
    if code != -signal.SIGKILL:
        pytest.fail(f"ended with {code}: {function} was not called {number} times")
