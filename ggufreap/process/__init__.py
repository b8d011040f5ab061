"""Child processes: started in isolation, fed, stopped, and asked for their last words.

A child is a Python that runs one module. It finds nothing in the current folder, which may be full of strangers' files,
it is of the very ggufreap that started it, and it ends with the process that started it, whatever killed that one
(see launcher).
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

LAUNCHER = Path(__file__).with_name("launcher.py")
NO_LIFELINE = -1
# What it means to die of a signal, in words that follow its name.
_MEANINGS = {
    "SIGSEGV": ": it touched memory that is not there",
    "SIGBUS": ": it read of a file what is no longer there, or of a broken disk",
    "SIGILL": ": it ran an instruction that this CPU does not have",
    "SIGFPE": ": it divided by zero",
    "SIGABRT": ": it gave itself up",
    "SIGKILL": ", as systems do that run out of memory",
}
_GIVEN_UP = ("GGML_ASSERT", "GGML_ABORT", "fatal error")  # ggml/include/ggml.h
_FOLDERS = re.compile(r"^\S*/")  # where this llama.cpp was built


@dataclass(frozen=True)
class Ending:
    """How a child ended: its exit `code`, or that of the signal below zero, as subprocess tells it.

    `seconds`: the time limit that it was killed for, where it was.
    """

    code: int
    seconds: float | None = None

    @property
    def ok(self) -> bool:
        """Whether it ended by itself and well."""
        return self.code == 0

    @property
    def signal(self) -> str | None:
        """The name of the signal that killed it."""
        if self.code >= 0:
            return None
        with suppress(ValueError):
            return signal.Signals(-self.code).name
        return f"signal {-self.code}"


@dataclass(frozen=True)
class Done:
    """A child that ended: how, and what it said."""

    ending: Ending
    out: str
    err: str


def last_words(ending: Ending, lines: Sequence[str] = ()) -> str:
    """How a child ended, as the rest of a sentence that begins with `it`: llama.cpp's assertion, or the signal, or its
    exit code and the last of the `lines` that it said."""
    if ending.seconds is not None:
        return f"took more than {ending.seconds:g} s"
    said = [stripped for line in lines if (stripped := line.strip())]
    assertion = next((line for line in said if any(word in line for word in _GIVEN_UP)), None)
    if assertion is not None:
        return f"stopped: {without_folders(assertion.rpartition('stopped: ')[2])}"
    if ending.signal is not None:
        return f"died of {ending.signal}{_MEANINGS.get(ending.signal, '')}"
    return f"ended with exit code {ending.code}, saying: {said[-1] if said else 'nothing'}"


def without_folders(line: str) -> str:
    """A line of llama.cpp without the folder in which it was built."""
    return _FOLDERS.sub("", line)


class Child(subprocess.Popen[str]):
    """A running child, talked to in lines; leaving it kills it, whatever it does, and buries it.

    `program`: a module, or the path of a script. A terminal tells Ctrl-C to all of us, and the one who started a child
    decides what becomes of it; only one that is `interruptible` hears it too. `variables` are added to its environment.
    The streams are those of subprocess.Popen.
    """

    def __init__(
        self,
        program: str | Path,
        *arguments: str,
        stdin: int | None = subprocess.PIPE,
        stdout: int | None = subprocess.PIPE,
        stderr: int | None = subprocess.DEVNULL,
        variables: Mapping[str, str] | None = None,
        interruptible: bool = False,
    ) -> None:
        # The child reads at one end of a pipe that nobody writes to: that read returns once we are gone.
        theirs, self._ours = os.pipe() if os.name == "posix" else (NO_LIFELINE, NO_LIFELINE)
        lifeline = () if theirs == NO_LIFELINE else (theirs,)
        try:
            super().__init__(
                _command(theirs, interruptible, program, arguments),
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                encoding="utf-8",
                errors="replace",
                env={**os.environ, **(variables or {})},
                pass_fds=lifeline,
            )
        except BaseException:
            self._let_go()
            raise
        finally:
            for end in lifeline:
                os.close(end)

    def __exit__(self, *_: object) -> None:
        self.stop()

    def tell(self, line: str) -> None:
        """Write a line; a child that is gone does not hear it, its ending says why."""
        assert self.stdin
        with suppress(BrokenPipeError):
            self.stdin.write(line + "\n")
            self.stdin.flush()

    def ending(self) -> Ending:
        """Wait until it ends."""
        return Ending(self.wait())

    def stop(self) -> None:
        """Kill it, and bury it; further calls do nothing."""
        self.kill()
        self.wait()
        for pipe in (self.stdin, self.stdout, self.stderr):
            with suppress(OSError):  # what could not be told to a dead process
                if pipe:
                    pipe.close()
        self._let_go()

    def _let_go(self) -> None:
        if self._ours != NO_LIFELINE:
            os.close(self._ours)
        self._ours = NO_LIFELINE


def become(program: str | Path, *arguments: str) -> int:
    """Run a program in the place of this process, as isolated as a child; where that cannot be, its exit code."""
    command = _command(NO_LIFELINE, True, program, arguments)
    if os.name == "posix":
        os.execv(command[0], command)
    return subprocess.run(command, check=False).returncode


def _command(lifeline: int, interruptible: bool, program: str | Path, arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-P", str(LAUNCHER), str(lifeline), str(int(interruptible)), str(program), *arguments]


def run(program: str | Path, *arguments: str, given: str = "", seconds: float | None = None) -> Done:
    """Run a child to its end, `given` on its standard input, and kill it after `seconds`."""
    with Child(program, *arguments, stderr=subprocess.PIPE) as child:
        try:
            out, err = child.communicate(given, timeout=seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            out, err = child.communicate()
            return Done(Ending(child.returncode, seconds), out, err)
        return Done(Ending(child.returncode), out, err)
