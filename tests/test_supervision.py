"""Whatever native code does to a verb: one line, exit code 1, nothing left behind, and the same command goes on."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf

from ggufreap import activity, cli, interrupts, supervision, verbs
from ggufreap.activity import Activity
from ggufreap.observation import load
from ggufreap.options.engine import EngineSettings
from ggufreap.process import Ending

pytestmark = [pytest.mark.native, pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")]

# The command line, with another program for the child.
PARENT = "import sys\nfrom ggufreap.__main__ import main\nsys.exit(main(sys.argv.pop(1)))\n"
# A child that dies inside native work: at a decode, or once the quantiser writes, or another process is to run a model.
DYING = """
import ctypes, os, sys, time
from functools import partial
from itertools import count
from ggufreap import verbs
from ggufreap.observation import chunkwise
from ggufreap.__main__ import main
from ggufreap.engine import subprocess_probe
from ggufreap.engine.quantizer import Quantizer
from ggufreap.engine.session import LlamaSession

DEATHS = {{
    "SIGSEGV": lambda: ctypes.string_at(0),
    "SIGABRT": os.abort,
    "SIGKILL": lambda: os.kill(os.getpid(), 9),
    "SIGILL": lambda: os.kill(os.getpid(), 4),
    "never": lambda: None,
    "sleep": lambda: time.sleep(600),
}}
die, numbers = DEATHS[{death!r}], count(1)

def decode(self, *arguments, before=LlamaSession.decode, **named):
    if next(numbers) == {after}:
        die()
    return before(self, *arguments, **named)

def quantise(self, call, on_line, importance=None, folder=None, before=Quantizer.run):
    def dying(line):
        on_line(line)
        if not call.dry_run and "blk.1." in line:
            die()
    return before(self, call, dying, importance, folder)

def probed(*arguments, before=subprocess_probe.run):
    die()
    return before(*arguments)

LlamaSession.decode, Quantizer.run, subprocess_probe.run = decode, quantise, probed
sys.modules["ggufreap.verbs.calibrate"].observe = partial(chunkwise.observe, checkpoint_seconds=0)
sys.exit(main())
"""
FLAGS = ("-c", "64", "-ub", "64", "-t", "1")
SETTINGS = EngineSettings(n_ctx=64, n_ubatch=64, n_threads=1)


@dataclass(frozen=True)
class Made:
    """A model, a text, and what is made of them."""

    model: Path
    text: Path
    stats: Path
    plan: Path
    pruned: Path
    questions: Path
    prompts: Path
    wide: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    names = ("Tiny-F32.gguf", "text.txt", "S.npz", "P.json", "pruned.gguf", "q.jsonl", "prompts.txt", "Wide-F32.gguf")
    made = Made(*(folder / name for name in names))
    tiny_gguf.qwen3moe(made.model, n_embd=64, n_ff=32)
    tiny_gguf.qwen3moe(made.wide, n_embd=256, n_ff=64)
    made.text.write_text("".join(f"{line * 7919} brown foxes jump over {line} lazy dogs.\n" for line in range(40)))
    made.prompts.write_text("the quick brown\n")
    made.questions.write_text(json.dumps({"context": "a fox", "choices": [" jumps", " sings"], "answer": 0}) + "\n")
    verbs.calibrate(made.model, made.stats, data=str(made.text), settings=SETTINGS)
    assert cli.main(list(map(str, ["plan", made.model, "--stats", made.stats, "--keep", 8, "-o", made.plan]))) == 0
    verbs.apply(made.model, made.plan, made.pruned)
    return made


def commands(made: Made, out: Path) -> dict[str, list[object]]:
    """Every supervised verb, with its outputs in `out`."""
    model, text = made.model, made.text
    return {
        "calibrate": ["calibrate", model, "-f", text, "-o", out / "S.npz", *FLAGS],
        "verify": ["verify", model, made.pruned, "--plan", made.plan, "-t", 1],
        "frontier": ["frontier", model, "--stats", made.stats, "-f", text, "--steps", 2, *FLAGS],
        "narrow": ["narrow", made.wide, "-f", text, "--width-ratio", 0.5, "-o", out / "narrow.gguf", *FLAGS],
        "preview": ["preview", model, "--stats", made.stats, "-f", text, "--ratios", "0.25", *FLAGS],
        "eval": ["eval", made.pruned, "--reference", model, "-f", text, *FLAGS],
        "report": [*("report", model, made.pruned, "--plan", made.plan, "-f", text, "-o", out / "report", *FLAGS)],
        "probe": ["probe", model, "--prompts", made.prompts, "-n", 2, "--temp", 0, "-t", 1],
        "tasks": ["tasks", model, "--jsonl", made.questions, "-t", 1],
        "bench": ["bench", model, "-p", 16, "-n", 2, "-np", 1, "-r", 1, "-t", 1],
        "prune": ["prune", model, "--keep", 8, "-f", text, "-o", out, *FLAGS],
        "run": ["run", "tiny", made.wide, "-f", text, "-o", out, "-t", 1],
        "demo": ["demo", "-o", out / "demo", "-t", 1],
        "quantize": ["quantize", model, "--type", "Q8_0", "-o", out / "q.gguf", "-t", 1],
    }


@dataclass(frozen=True)
class Ran:
    """A supervised command that ended."""

    code: int
    out: str
    err: str
    left: list[str]  # in the folder for temporary files

    @property
    def line(self) -> str:
        """The one line of the failure; notes of the verb may stand before it."""
        lines = self.err.splitlines()
        assert sum(line.startswith("ggufreap: ") for line in lines) == 1, self.err
        assert "Traceback" not in self.err
        assert lines[-1].startswith("ggufreap: ")
        return lines[-1]


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[subprocess.Popen[str], Path]]:
    folder = tmp_path_factory.mktemp("child")

    def start(
        command: Sequence[object], death: str = "never", after: int = 2, **popen: object
    ) -> tuple[subprocess.Popen[str], Path]:
        program, temporary = folder / "program.py", folder / "tmp"
        program.write_text(DYING.format(death=death, after=after))
        temporary.mkdir(exist_ok=True)
        process = subprocess.Popen(  # type: ignore[call-overload]
            [sys.executable, "-c", PARENT, str(program), *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"TMPDIR": str(temporary)},
            **popen,
        )
        return process, temporary

    return start


@pytest.fixture
def run(start: Callable[..., tuple[subprocess.Popen[str], Path]]) -> Callable[..., Ran]:
    def run(*arguments: object, **named: object) -> Ran:
        process, temporary = start(*arguments, **named)
        out, err = process.communicate(timeout=120)
        return Ran(process.returncode, out, err, os.listdir(temporary))

    return run


WORDS = {
    "SIGSEGV": "the process died of SIGSEGV: it touched memory that is not there",
    "SIGABRT": "the process died of SIGABRT: it gave itself up",
    "SIGKILL": "the process died of SIGKILL, as systems do that run out of memory",
}


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# Every verb dies once. How it died is told in one place, so of the other deaths one verb dies of each kind of work:
# its own, the quantiser's, and a model's in another process.
DEATHS = [
    *((verb, "SIGKILL") for verb in sorted(cli.WITH_ENGINE)),
    *((verb, death) for verb in ("calibrate", "quantize", "verify") for death in ("SIGSEGV", "SIGABRT")),
]


@pytest.mark.parametrize(("verb", "death"), DEATHS)
def test_a_death_is_one_line_and_leaves_nothing(
    made: Made, tmp_path: Path, run: Callable[..., Ran], verb: str, death: str
) -> None:
    ran = run(commands(made, tmp_path)[verb], death)
    assert ran.code == 1, ran.err
    assert re.match(r"ggufreap: while \w+", ran.line)
    assert WORDS[death] in ran.line
    assert ".gguf" in ran.line, "it names the file"
    assert ran.left == []
    kept = [name for name in files(tmp_path) if name.endswith(".checkpoint")]
    assert not [name for name in files(tmp_path) if "partial" in name or "unpruned" in name]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("ggufreap-")]
    for name in kept:
        assert f"what was done so far is in {tmp_path / name}, the same command goes on from there" in ran.line
    assert bool(kept) == (verb in {"calibrate", "prune", "run", "demo"})
    if death == "SIGKILL" and verb != "demo":  # which takes its time, and is the same as prune
        again = run(commands(made, tmp_path)[verb])
        assert again.code == 0, again.err
        assert not [name for name in files(tmp_path) if name.endswith((".checkpoint", ".partial"))]


def test_a_death_beside_the_files_of_the_user_leaves_none(made: Made, tmp_path: Path, run: Callable[..., Ran]) -> None:
    before = files(made.pruned.parent)
    ran = run(
        [*commands(made, tmp_path)["report"], "--compare"], "SIGSEGV", after=10**9
    )  # the rival dies while it is quantised
    assert re.match(rf"ggufreap: while quantising {made.model}, the process died of SIGSEGV", ran.line)
    assert files(made.pruned.parent) == before
    assert {path.name for path in made.pruned.parent.iterdir()} == set(before)


def test_calibration_after_a_death_is_bit_identical(made: Made, tmp_path: Path, run: Callable[..., Ran]) -> None:
    command = commands(made, tmp_path)["calibrate"]
    assert run(command, "SIGSEGV", after=5).code == 1
    assert load(tmp_path / "S.npz.checkpoint")[0].n_chunks == 16, "four decodes of four chunks"
    assert run(command).code == 0
    with np.load(tmp_path / "S.npz") as ours, np.load(made.stats) as theirs:
        names = [name for name in theirs.files if theirs[name].dtype.kind in "iuf"]
        assert names
        for name in names:
            assert np.array_equal(ours[name], theirs[name]), name


def test_what_to_try_is_what_the_verb_has(made: Made, tmp_path: Path, run: Callable[..., Ran]) -> None:
    assert run(commands(made, tmp_path)["eval"], "SIGILL").line.endswith("try --no-repack or -ngl 0 or a smaller -ub")
    assert run(commands(made, tmp_path)["quantize"], "SIGILL").line.endswith(
        "an instruction that this CPU does not have"
    )
    flags = ["repack", "n_ubatch", "n_ctx"]
    explained = supervision._explained
    doing = Activity([("loading", "m.gguf", ""), ("calibrating with", "m.gguf", "/nowhere/S.checkpoint")])
    assert explained(Ending(-signal.SIGFPE), doing, flags) == (
        "while calibrating with m.gguf, the process died of SIGFPE: it divided by zero; "
        "try --no-repack or a smaller -ub"
    )
    assert explained(Ending(-signal.SIGKILL), Activity(), flags) == (
        "while starting, the process died of SIGKILL, as systems do that run out of memory; "
        "free some memory or try a smaller -ub or a smaller -c"
    )


REFUSED = {
    "alignment": ({"general.alignment": np.uint32(8)}, "buffer pointer must be aligned"),
    "tokens": ({"tokenizer.ggml.tokens": [f"<{index // 2}>" for index in range(320)]}, "id_to_token.size()"),
    "rope": ({"qwen3moe.rope.dimension_count": np.uint32(2**31)}, "n_embd_head == n_rot"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_assertion_at_a_load_is_one_line(made: Made, tmp_path: Path, run: Callable[..., Ran], case: str) -> None:
    metadata, assertion = REFUSED[case]
    model = tiny_gguf.qwen3moe(tmp_path / "m.gguf", n_embd=64, n_ff=32, metadata=metadata)
    ran = run(["calibrate", model, "-f", made.text, "-o", tmp_path / "S.npz", *FLAGS])
    assert (ran.code, ran.out, ran.left) == (1, "", [])
    cause = rf"[\w-]+\.cpp:\d+: GGML_ASSERT\(.*{re.escape(assertion)}.* failed"
    hint = "see that the file is whole, or convert it again"
    assert re.match(rf"ggufreap: while loading {model}, llama\.cpp stopped: {cause}; {hint}", ran.line)
    assert files(tmp_path) == ["m.gguf"]


def test_a_file_cut_while_it_is_read(tmp_path: Path, made: Made, start: Callable[..., object]) -> None:
    model, out = tmp_path / "m.gguf", tmp_path / "S.npz"
    tiny_gguf.qwen3moe(model, n_embd=256, n_ff=128)
    whole = model.read_bytes()
    command = ["calibrate", model, "-f", made.text, "-o", out, *FLAGS]
    process, temporary = start(command)  # type: ignore[misc]
    wait_for(Path(f"{out}.checkpoint"), process)
    os.truncate(model, len(whole) // 2)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert said.splitlines()[-1] == (
        f"ggufreap: while calibrating with {model}, the process died of SIGBUS: it read of a file what is no longer "
        f"there, or of a broken disk; what was done so far is in {out}.checkpoint, the same command goes on from "
        "there; "
        "the file changed or was cut while it was read: see that it is whole"
    )
    assert not os.listdir(temporary)
    model.write_bytes(whole)
    process, _ = start(command)  # type: ignore[misc]
    assert process.communicate(timeout=120)[1] is not None
    assert process.returncode == 0
    verbs.calibrate(model, tmp_path / "R.npz", data=str(made.text), settings=SETTINGS)
    with np.load(out) as ours, np.load(tmp_path / "R.npz") as theirs:
        assert all(np.array_equal(ours[n], theirs[n]) for n in theirs.files if theirs[n].dtype.kind in "iuf")


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("whom", ["the parent", "the group", "the background"])
def test_signals_end_as_ctrl_c_does(
    made: Made, tmp_path: Path, start: Callable[..., object], number: signal.Signals, whom: str
) -> None:
    if whom == "the background" and number == signal.SIGINT:
        pytest.skip("there it is ignored")
    ignoring = (lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if whom == "the background" else None
    command = commands(made, tmp_path)["calibrate"]
    process, temporary = start(command, "sleep", 4, start_new_session=True, preexec_fn=ignoring)  # type: ignore[misc]
    wait_for(tmp_path / "S.npz.checkpoint", process)
    time.sleep(0.3)
    if whom == "the group":
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "ggufreap: interrupted; nothing is lost, the same command goes on from here"
    assert "Traceback" not in err
    assert files(tmp_path) == ["S.npz.checkpoint"]
    assert not os.listdir(temporary)


def test_what_shall_be_ignored_stays_ignored(made: Made, tmp_path: Path, start: Callable[..., object]) -> None:
    def ignoring() -> None:
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)

    command = commands(made, tmp_path)["calibrate"]
    process, _ = start(command, start_new_session=True, preexec_fn=ignoring)  # type: ignore[misc]
    for _ in range(20):
        os.killpg(process.pid, signal.SIGHUP)
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.02)
    assert process.wait(120) == 0
    process.communicate()


def test_the_child_ends_when_the_parent_is_killed(made: Made, tmp_path: Path, start: Callable[..., object]) -> None:
    command = commands(made, tmp_path)["calibrate"]
    process, _ = start(command, "sleep", 3)  # type: ignore[misc]
    wait_for(tmp_path / "S.npz.checkpoint", process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        pytest.skip("this system does not tell of children")
    (child,) = map(int, children.read_text().split())
    process.kill()
    process.communicate(timeout=10)  # ends once the child has let go of the streams
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{child}").exists()


def test_exit_codes_streams_and_the_command_pass_through(made: Made, tmp_path: Path, run: Callable[..., Ran]) -> None:
    gone = run(["calibrate", tmp_path / "gone.gguf", "-o", tmp_path / "S.npz"])
    assert gone.code == 1
    assert re.fullmatch(r"ggufreap: .*gone\.gguf.*\n", gone.err)
    failing = run(["eval", made.model, "-f", made.text, "--fail-if", "ppl>1", "--json", *FLAGS])
    assert failing.code == 4
    assert json.loads(failing.out)
    assert run(["calibrate"]).code == 2
    assert run(["inspect", made.model], "SIGKILL").code == 0


def test_the_supervisor_loads_nothing_heavy(made: Made, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom ggufreap.__main__ import main\nmain()\n"
        "print([name for name in ('numpy', 'gguf', 'llama_cpp', 'rich', 'tqdm') if name in sys.modules])"
    )
    command = [sys.executable, "-c", script, *map(str, commands(made, tmp_path)["calibrate"])]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_standard_input_is_the_childs(made: Made, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ggufreap", "calibrate", made.model, "-f", "-", "-o", tmp_path / "S.npz", *FLAGS]
    done = subprocess.run(list(map(str, command)), input=made.text.read_bytes(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert load(tmp_path / "S.npz")[0].n_chunks == load(made.stats)[0].n_chunks


def test_a_planted_module_is_not_executed(made: Made, tmp_path: Path) -> None:
    """By the command; `python -m` itself looks in the current folder first, before anything of ours runs."""
    (tmp_path / "numpy.py").write_text("open('executed', 'w')\nraise SystemExit(7)\n")
    script = "import sys; sys.path.remove(''); from ggufreap.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-c", script, "calibrate", made.model, "-f", made.text, "-o", "S.npz", *FLAGS]
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path) == ["S.imatrix.gguf", "S.npz", "numpy.py"]


# Notes.


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "notes.json"
    monkeypatch.setenv(activity.VARIABLE, str(path))
    assert activity.adopt()
    yield path
    activity.adopt()


def test_notes_are_read_as_they_stand(notes: Path, tmp_path: Path) -> None:
    with activity.doing("loading", "m.gguf"), activity.temporary(tmp_path / "a.partial"):
        with activity.doing("calibrating with", "m.gguf", kept=tmp_path / "c"):
            assert activity.gave_up("GGML_ASSERT(x)")
        found = activity.read(notes)
        assert [tuple(each) for each in found.doing] == [("loading", "m.gguf", "")]
        assert found.temporary == [str(tmp_path / "a.partial")]
    assert activity.read(notes) == Activity()
    assert activity.VARIABLE not in os.environ, "the processes started from here are not asked"
    notes.write_text("{")
    assert activity.read(notes) == Activity()


def test_without_a_supervisor_nothing_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not activity.adopt()
    with activity.doing("loading", "m.gguf"), activity.temporary("x"):
        assert not activity.gave_up("GGML_ASSERT(x)")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("assertion", "advice"),
    [
        ("ggml-rpc.cpp:566: Remote RPC server crashed or returned malformed response", "see that the servers of --rpc"),
        ("ggml.c:1: GGML_ASSERT(x) failed", "see that the file is whole"),
    ],
)
def test_what_another_machine_did_is_not_blamed_on_the_file(assertion: str, advice: str) -> None:
    told = Activity([(activity.LOADING, "m.gguf", "")], [], assertion)
    line = supervision._explained(Ending(1), told, ("n_ubatch",))
    assert line.startswith(f"while loading m.gguf, llama.cpp stopped: {assertion}; {advice}")


def test_a_stop_while_a_class_is_made_is_a_stop() -> None:
    class Interrupted:
        def __set_name__(self, owner: type, name: str) -> None:
            raise interrupts.Stopped

    with pytest.raises(interrupts.Stopped), interrupts.unwrapped():
        type("Made", (), {"field": Interrupted()})


def test_stops_that_come_together_are_one() -> None:
    with interrupts.as_ctrl_c():
        with pytest.raises(KeyboardInterrupt), interrupts.held():
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        time.sleep(interrupts._TOGETHER)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGHUP)


def test_a_stop_while_a_dataclass_is_made_ends_with_the_same_code(tmp_path: Path) -> None:
    """Python runs text to make one, and kills itself in the end where a KeyboardInterrupt came meanwhile."""
    (tmp_path / "stopped.py").write_text(
        "import os, signal, sys\n"
        "from ggufreap.interrupts import as_ctrl_c\n"
        "with as_ctrl_c():\n"
        "    try:\n"
        "        exec(f'os.kill({os.getpid()}, signal.SIGINT)')\n"
        "    except KeyboardInterrupt:\n"
        "        sys.exit(130)\n"
    )
    root = Path(supervision.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(tmp_path)])}
    assert subprocess.run([sys.executable, "-m", "stopped"], env=environment, check=False).returncode == 130


def test_a_handler_of_somebody_else_s_is_left_alone() -> None:
    heard = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: heard.set())
    try:
        with interrupts.held():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard.is_set()


@pytest.mark.parametrize(
    ("patient", "own", "expected"),
    [(True, {}, "1000"), (False, {}, None), (True, {"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_sleep_where_they_would_spin_unless_the_user_says_how_they_wait(
    monkeypatch: pytest.MonkeyPatch, patient: bool, own: dict[str, str], expected: str | None
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    given: dict[str, str] = {}

    def run(_program: str, _arguments: object, variables: dict[str, str]) -> tuple[Ending, bool]:
        given.update(variables)
        return Ending(0), False

    monkeypatch.setattr(supervision, "_run", run)
    assert supervision.supervise([], (), patient=patient) == 0
    assert given.get("GOMP_SPINCOUNT") == expected
