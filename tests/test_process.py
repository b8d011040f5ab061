"""Child processes: isolated, bound to the life of the one that started them, and clear about how they ended."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_gguf

from ggufreap import process
from ggufreap.process import Child, Ending, last_words

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and pipes of POSIX")


def program(folder: Path, text: str) -> Path:
    path = folder / "program.py"
    path.write_text(text)
    return path


PLANTED = "import pathlib\npathlib.Path(__file__).with_name('executed').touch()\nraise SystemExit(7)\n"


@pytest.mark.native
@pytest.mark.parametrize("module", ["ggufreap.engine.quantizer", "ggufreap.engine.footprint"])
def test_what_lies_in_the_current_folder_is_not_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    for name in ("numpy", "llama_cpp", "json", "ggufreap"):
        (tmp_path / f"{name}.py").write_text(PLANTED)
    monkeypatch.chdir(tmp_path)
    process.run(module, given="")
    assert not (tmp_path / "executed").exists()


def test_what_takes_our_place_executes_nothing_of_the_current_folder_either(tmp_path: Path) -> None:
    for name in ("numpy", "argparse", "json", "ggufreap"):
        (tmp_path / f"{name}.py").write_text(PLANTED)
    line = "from ggufreap.process import become; raise SystemExit(become('ggufreap', '--version'))"
    own = str(Path(process.__file__).parents[2])
    path = os.pathsep.join(filter(None, [own, os.environ.get("PYTHONPATH")]))  # nothing would be the current folder
    command = [sys.executable, "-P", "-c", line]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.split()[0]) == (0, "ggufreap"), done.stderr
    assert not (tmp_path / "executed").exists()


def test_a_child_has_the_ggufreap_of_its_parent_and_finds_what_pythonpath_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "asked.py").write_text("import sys, ggufreap\nprint(ggufreap.__file__, sys.argv[1:])\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = process.run("asked", "a b", "-c")
    import ggufreap

    assert done.out.strip() == f"{ggufreap.__file__} ['a b', '-c']", done.err


@pytest.mark.parametrize(
    ("number", "words"),
    [
        ("SIGSEGV", "died of SIGSEGV: it touched memory that is not there"),
        ("SIGBUS", "died of SIGBUS: it read of a file what is no longer there, or of a broken disk"),
        ("SIGILL", "died of SIGILL: it ran an instruction that this CPU does not have"),
        ("SIGABRT", "died of SIGABRT: it gave itself up"),
        ("SIGKILL", "died of SIGKILL, as systems do that run out of memory"),
        ("SIGUSR1", "died of SIGUSR1"),
    ],
)
def test_a_death_in_words(tmp_path: Path, number: str, words: str) -> None:
    dying = program(tmp_path, f"import os, signal\nprint('about to die')\nos.kill(os.getpid(), signal.{number})\n")
    done = process.run(dying)
    assert (done.ending.signal, done.ending.ok) == (number, False)
    assert last_words(done.ending, done.out.splitlines()) == words


def test_other_endings_in_words(tmp_path: Path) -> None:
    assert last_words(Ending(3), ["one", "the last", " "]) == "ended with exit code 3, saying: the last"
    assert last_words(Ending(1)) == "ended with exit code 1, saying: nothing"
    assertion = "/home/build/llama.cpp/src/llama-model.cpp:7: GGML_ASSERT(n > 0) failed"
    assert last_words(Ending(-6), ["x", assertion, "y"]) == "stopped: llama-model.cpp:7: GGML_ASSERT(n > 0) failed"
    done = process.run(program(tmp_path, "import time\ntime.sleep(60)\n"), seconds=0.5)
    assert last_words(done.ending) == "took more than 0.5 s"
    assert process.run(program(tmp_path, "raise SystemExit(5)")).ending == Ending(5)


@pytest.mark.native
def test_an_assertion_of_llama_cpp_itself_is_told_without_the_folders_of_its_build(tmp_path: Path) -> None:
    import numpy as np

    model = tiny_gguf.qwen3moe(tmp_path / "m.gguf", metadata={"qwen3moe.rope.dimension_count": np.uint32(2**31)})
    script = f"""
import sys
from pathlib import Path
from ggufreap.architecture.nodes import RoutingNodes
from ggufreap.engine.session import LlamaSession
from ggufreap.options.engine import EngineSettings
nodes = RoutingNodes((), 0, weighted_input=False, causal=True, headless=False)
LlamaSession(Path({str(model)!r}), nodes, EngineSettings(n_ctx=64))
"""
    done = process.run(program(tmp_path, script))
    assert done.ending == Ending(1), "our own callback ended it, not abort()"
    (line,) = done.err.splitlines()
    assert line == "ggufreap: llama.cpp stopped: qwen3moe.cpp:66: GGML_ASSERT(n_embd_head == n_rot) failed"


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(pid)


@pytest.mark.parametrize("work", ["while True: pass", "time.sleep(600)", "ctypes.CDLL(None).sleep(600)"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_ends_with_its_parent_whatever_killed_that_one(
    tmp_path: Path, work: str, number: signal.Signals
) -> None:
    busy = program(tmp_path, f"import ctypes, time\nprint('works', flush=True)\n{work}\n")
    parent = (
        "import sys\nfrom ggufreap.process import Child\n"
        "child = Child(sys.argv[1])\nchild.stdout.readline()\nprint(child.pid, flush=True)\nchild.wait()\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent, str(busy)], stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout
        pid = int(started.stdout.readline())
        assert alive(pid)
        started.send_signal(number)
    wait_until_gone(pid)


def test_leaving_kills_and_buries(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    with Child(program(tmp_path, "import time\nprint('works', flush=True)\ntime.sleep(600)\n")) as child:
        assert child.stdout
        assert child.stdout.readline() == "works\n"
    assert child.returncode == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)
    child.stop()
    assert not before or len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(("interruptible", "ending"), [(False, Ending(0)), (True, Ending(-signal.SIGINT))])
def test_ctrl_c_is_for_the_one_who_started_it(tmp_path: Path, interruptible: bool, ending: Ending) -> None:
    waiting = program(tmp_path, "print('works', flush=True)\ninput()\n")
    with Child(waiting, interruptible=interruptible) as child:
        assert child.stdout
        child.stdout.readline()
        child.send_signal(signal.SIGINT)
        time.sleep(0.2)
        child.tell("go on")
        assert child.ending() == ending


def test_a_dead_child_hears_nothing_and_says_why(tmp_path: Path) -> None:
    with Child(program(tmp_path, "raise SystemExit(9)")) as child:
        assert child.ending() == Ending(9)
        child.tell("anyone there?")
