"""What works on this machine: found out in processes that die of it, remembered, and heeded by every load."""

import json
import logging
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf

from ggufreap.architecture.layout import bind
from ggufreap.container import open_gguf
from ggufreap.engine import machine as room
from ggufreap.engine.machine import Machine, chooses_repack, find_out, machine
from ggufreap.engine.session import LlamaSession
from ggufreap.errors import EngineError
from ggufreap.memory import Memory
from ggufreap.options.engine import EngineSettings

pytestmark = pytest.mark.native

# The real trial, but for the ways of loading in which this machine is to die.
DYING = """
import io, json, os, signal, sys
job = sys.stdin.read()
way = json.loads(job)
if {condition}:
    os.kill(os.getpid(), signal.{number})
sys.stdin = io.StringIO(job)
from ggufreap.engine import machine_trial
machine_trial._main()
"""
GOOD = np.ones((3, 8), np.float32)


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine about which nothing is known."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    machine.cache_clear()
    yield tmp_path / "cache" / "ggufreap"
    machine.cache_clear()


def dying(
    folder: Path, monkeypatch: pytest.MonkeyPatch, condition: str = "way['extra_buffers']", number: str = "SIGSEGV"
) -> None:
    script = folder / "dying.py"
    script.write_text(DYING.format(condition=condition, number=number))
    monkeypatch.setattr(room, "_TRIAL", str(script))


def test_it_goes_without_what_dies_and_says_so_once(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dying(tmp_path, monkeypatch)
    assert not machine().extra_buffers
    died = "it died of SIGSEGV: it touched memory that is not there"
    line = f"llama.cpp's repacked buffers do not work on this machine: {died}; going without them"
    assert [(each.levelno, each.getMessage()) for each in caplog.records] == [(logging.WARNING, line)]
    machine.cache_clear()
    monkeypatch.setattr(room, "_trial", None)  # whoever tried again would fail
    assert not machine().extra_buffers
    assert len(caplog.records) == 1
    assert len(list(fresh.iterdir())) == 1


def test_a_load_heeds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dying(tmp_path, monkeypatch)
    file, asked = open_gguf(tiny_gguf.qwen3moe(tmp_path / "m.gguf")), []

    def load(_path: bytes, parameters: object) -> None:
        asked.append(parameters.use_extra_bufts)  # type: ignore[attr-defined]

    monkeypatch.setattr("llama_cpp.llama_cpp.llama_model_load_from_file", load)

    def loaded(repack: bool | None) -> bool:
        with pytest.raises(EngineError, match="does not load"):
            LlamaSession(file.path, bind(file).nodes, EngineSettings(n_ctx=64, repack=repack))
        return bool(asked[-1])

    assert not loaded(None)
    assert not loaded(False)
    with pytest.raises(EngineError, match=r"repacked buffers do not work .* died of SIGSEGV: .*; use --no-repack"):
        LlamaSession(file.path, bind(file).nodes, EngineSettings(n_ctx=64, repack=True))
    monkeypatch.setattr("ggufreap.engine.session.machine", lambda: Machine(True, False, gains=True))
    assert loaded(None)
    assert loaded(True)
    assert not loaded(False)
    monkeypatch.setattr(room, "memory", lambda: Memory(file.nbytes, 0, limited=True))
    assert not loaded(None)


def test_repacked_or_not_the_logits_agree(tmp_path: Path) -> None:
    from ggufreap.engine.machine_trial import MODEL

    tokens = np.arange(3, 67, dtype=np.int32)
    found = []
    for repack in (False, machine().extra_buffers):
        with LlamaSession(
            MODEL, bind(open_gguf(MODEL)).nodes, EngineSettings(n_ctx=64, n_threads=1, repack=repack)
        ) as engine:
            found.append(engine.logits(tokens))
    assert np.square(found[0] - found[1]).sum() < room.MAX_ERROR * np.square(found[0]).sum()


def test_a_machine_on_which_nothing_works_is_one_line(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying(tmp_path, monkeypatch, "True", "SIGILL")
    for _ in range(2):
        with pytest.raises(EngineError, match=r"died of SIGILL: .*; build it for this CPU: CMAKE_ARGS=\S+ pip install"):
            machine()
    assert not fresh.exists(), "it is tried again once llama.cpp was built anew"


@pytest.mark.parametrize(
    ("dies", "extra_buffers", "offload"),
    [
        ([], True, True),
        ([(True, True)], False, True),
        ([(True, True), (False, True)], True, False),
        ([(True, True), (False, True), (True, False)], False, False),
    ],
)
def test_what_is_tried_with_a_gpu(dies: list[tuple[bool, bool]], extra_buffers: bool, offload: bool) -> None:
    def trial(*way: bool) -> np.ndarray | str:
        return "died of SIGSEGV" if way in dies else GOOD

    found = find_out(trial, ["library"], "cpu", ["a GPU"])
    assert (found.extra_buffers, found.offload) == (extra_buffers, offload)
    assert found.reason == ("died of SIGSEGV" if dies else "")


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [(GOOD * np.nan, "computed what is no number"), (GOOD * 1.1, "computed something else, with an error of 1.0e-02")],
)
def test_what_computes_wrongly_does_not_work(wrong: np.ndarray, reason: str) -> None:
    found = find_out(lambda extra, _: wrong if extra else GOOD, ["library"], "cpu", [])
    assert (found.extra_buffers, found.reason) == (False, reason)
    assert find_out(lambda extra, _: GOOD * (1 + 1e-3 * extra), ["library"], "cpu", []).extra_buffers
    with pytest.raises(EngineError, match="its logits are no numbers"):
        find_out(lambda *_: GOOD * np.inf, ["library"], "cpu", [])


def test_a_gpu_that_dies_is_gone_without_unless_it_was_asked_for(tmp_path: Path) -> None:
    file = open_gguf(tiny_gguf.qwen3moe(tmp_path / "m.gguf"))
    broken = Machine(False, False, "died of SIGSEGV", devices=("a GPU",))
    settings = EngineSettings(n_ctx=64, n_threads=1)
    with LlamaSession(file.path, bind(file).nodes, settings, broken) as engine:
        assert np.isfinite(engine.logits(np.arange(8, dtype=np.int32))).all()
    with pytest.raises(EngineError, match="does not compute on a GPU: it died of SIGSEGV; use -ngl 0"):
        LlamaSession(file.path, bind(file).nodes, replace(settings, n_gpu_layers=9), broken)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"extra_buffers": 1, "offload": 0, "devices": []}', b"\xff"])
def test_a_damaged_memory_is_none(fresh: Path, damage: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    first = machine()
    (memory,) = fresh.iterdir()
    memory.write_bytes(damage)
    machine.cache_clear()
    assert machine() == first
    assert json.loads(memory.read_bytes())["cpu"] == first.cpu


def test_without_a_place_to_remember_it_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    asked = []

    def trial(*way: bool) -> np.ndarray:
        asked.append(way)
        return GOOD

    monkeypatch.setattr(room, "_trial", trial)
    for times in (1, 2):
        machine.cache_clear()
        assert machine().extra_buffers
        assert len(asked) == 2 * times
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_another_library_or_cpu_is_another_machine(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_trial", lambda *_: GOOD)
    for number, (name, value) in enumerate(
        [("_library", ["1.0"]), ("_library", ["1.0", ("libggml-cpu.so", 5, 6)]), ("_cpu", ["a CPU", "avx amx"])], 1
    ):
        monkeypatch.setattr(room, name, lambda value=value: value)
        machine.cache_clear()
        machine()
        assert len(list(fresh.iterdir())) == number


def test_first_runs_at_the_same_time_are_safe(fresh: Path) -> None:
    ask = "from ggufreap.engine.machine import machine; print(machine())"
    running = [
        subprocess.Popen([sys.executable, "-c", ask], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = [process.communicate(timeout=120) for process in running]
    assert len(set(said)) == 1
    assert said[0] == (f"{machine()}\n", "")
    assert len(list(fresh.iterdir())) == 1


def test_repacking_takes_twice_the_memory_of_the_machine_and_no_question_of_what_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "memory", lambda: Memory(1000, 0, limited=False))
    works = Machine(True, True, gains=True)
    assert chooses_repack(500, None, works)
    assert not chooses_repack(501, None, works)
    assert chooses_repack(501, True, works)
    assert not chooses_repack(1, False, works)
    assert not chooses_repack(1, None, Machine(False, True, gains=True))
    assert not chooses_repack(1, None, Machine(True, True)), "where nothing is gained"


def test_a_trial_that_hangs_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hanging.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setattr(room, "_TRIAL", str(tmp_path / "hanging.py"))
    monkeypatch.setattr(room, "SECONDS", 0.5)
    with pytest.raises(EngineError, match=r"it took more than 0\.5 s"):
        machine()


def test_a_trial_that_was_killed_says_nothing_of_the_machine(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying(tmp_path, monkeypatch, number=signal.SIGKILL.name)
    with pytest.raises(
        EngineError, match=r"but the trial died of SIGKILL, .* run out of memory; run the same command again"
    ):
        machine()
    assert not fresh.exists()
