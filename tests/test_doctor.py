"""What `doctor` says of machines and models, and what it takes to prune an architecture that no table knows."""

import json
import logging
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asked
import numpy as np
import pytest
import tiny_gguf
import tiny_unknown
from gguf import GGMLQuantizationType as Kind

from ggufreap import cache, memory, verbs
from ggufreap.architecture.layout import bind
from ggufreap.cli import main
from ggufreap.container import open_gguf
from ggufreap.engine.build import build
from ggufreap.errors import EngineError, OutputError, UnsupportedModel, VerificationFailed
from ggufreap.model import Model
from ggufreap.options.engine import EngineSettings
from ggufreap.options.output import Output
from ggufreap.planning import check_plan
from ggufreap.verbs.laws import shuffled, try_out

SMALL = {"n_embd": 64, "n_ff": 32, "types": Kind.Q8_0}
SETTINGS = EngineSettings(n_ctx=64, n_ubatch=64, n_threads=1)
TESTS = Path(__file__).parent


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder of the test's own; logging and signals as they were."""
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path / "cache" / "ggufreap")
    logger, on_kill = logging.getLogger("ggufreap"), signal.getsignal(signal.SIGTERM)
    before = logger.handlers[:], logger.level
    yield tmp_path / "cache"
    logger.handlers[:], logger.level = before
    signal.signal(signal.SIGTERM, on_kill)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.qwen3moe(tmp_path_factory.mktemp("model") / "m.gguf", **SMALL)


@pytest.fixture
def trials(tmp_path: Path) -> Path:
    """Where trial files go, and must not stay."""
    folder = tmp_path / "trials"
    folder.mkdir()
    return folder


# The machine.


@pytest.mark.native
def test_a_machine_that_works_is_ready(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[-1] == "this machine is ready"
    assert all(line.startswith(("ok  ", "note")) for line in lines[:-1])
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert (told["ok"], told["verdict"], told["laws"]) == (True, "this machine is ready", [])
    names = {finding["name"] for finding in told["findings"]}
    assert names >= {"ggufreap", "numpy", "gguf", "llama-cpp-python", "llama.cpp", "device", "memory", "disk"}
    told_sizes = [finding["found"] for finding in told["findings"] if finding["name"] in ("device", "memory", "disk")]
    assert all(re.search(r"\d [kMGT]?B\b", found) and "bytes" not in found for found in told_sizes), told_sizes


@pytest.mark.native
def test_llama_cpp_tells_what_it_computes_on() -> None:
    found = build()
    assert "CPU" in found.system
    (cpu,) = [device for device in found.devices if device.kind == "CPU"]
    total = memory._of_machine()[0]
    assert total is not None
    assert cpu.total == pytest.approx(total, rel=0.01)
    assert not cpu.is_gpu


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("raise ImportError('no libllama')", r"llama-cpp-python does not load \(no libllama\); reinstall it"),
        ("import os; os.kill(os.getpid(), 11)", r"llama.cpp died .*(exit -11|SIGSEGV)"),
    ],
)
def test_a_llama_cpp_that_does_not_load_prevents_work(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, program: str, said: str
) -> None:
    (tmp_path / "llama_cpp.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    with pytest.raises(EngineError, match=said):
        build()
    for found in (verbs.doctor(), verbs.doctor(model)):
        assert found.exit_code == 1
        assert [finding.name for finding in found.obstacles] == ["llama.cpp"]
        assert not found.laws


def test_a_limited_group_has_less_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = tmp_path / "outer" / "inner"
    group.mkdir(parents=True)
    files = {"max": "max", "current": "700", "stat": "anon 400\ninactive_file 150\nactive_file 50\n"}
    for folder, limit in ((group, "max"), (group.parent, "1000")):
        for name, text in (files | {"max": limit}).items():
            (folder / f"memory.{name}").write_text(text)
    version = (tmp_path, *memory._VERSIONS[""][1:])
    assert [*memory._limit(group, *version[1:])] == []
    assert [*memory._limit(group.parent, *version[1:])] == [(1000, 500)]
    monkeypatch.setattr(memory, "_limits", lambda: memory._limit(group.parent, *version[1:]))
    assert memory.memory() == memory.Memory(1000, 500, limited=True)
    monkeypatch.setattr(memory, "_limits", lambda: iter([(1 << 62, 1 << 62)]))
    unlimited = memory.memory()
    assert unlimited is not None
    assert (unlimited.total, unlimited.limited) == (memory._of_machine()[0], False)


# Models.


@pytest.mark.native
def test_a_sound_model_is_safe_and_nothing_is_left(
    model: Path, trials: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", str(model), "-o", str(trials), "-t", "1"]) == 0
    said = capfd.readouterr()
    assert said.out.splitlines()[-1] == "pruning this model is safe: all laws hold"
    assert "holds  identity: keeping all experts writes the same" in said.out
    assert "holds  permutation and masking, logits: " in said.out
    assert f"bytes in {trials}" in said.err
    assert not list(trials.iterdir())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def nothing_but_nan(path: Path) -> None:
    record = open_gguf(path).by_name["blk.1.attn_norm.weight"]
    np.memmap(path, np.float32, "r+", record.offset, record.shape)[:] = np.nan


@pytest.mark.native
@pytest.mark.parametrize(
    ("damage", "code", "verdict"),
    [
        (cut, 1, "nothing was shown about this model: model: .*it is truncated"),
        (nothing_but_nan, 3, "pruning this model is NOT safe: permutation and masking, "),
    ],
)
def test_a_damaged_model_is_told(
    model: Path, tmp_path: Path, trials: Path, damage: Callable[[Path], None], code: int, verdict: str
) -> None:
    copy = tmp_path / "damaged.gguf"
    copy.write_bytes(model.read_bytes())
    damage(copy)
    found = verbs.doctor(copy, tmp_dir=trials, settings=SETTINGS)
    assert found.exit_code == code
    assert re.match(verdict, found.verdict)
    assert not list(trials.iterdir())


def test_where_there_is_no_room_nothing_is_tried(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match=r"the folder .*nowhere does not exist"):
        try_out(model, tmp_dir=tmp_path / "nowhere")
    full = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: full)
    found = verbs.doctor(model, tmp_dir=tmp_path)
    assert found.exit_code == 1
    assert "needs" in found.verdict
    assert not found.laws


def test_groups_are_shuffled_each_for_itself(tmp_path: Path) -> None:
    groups: dict[str, Any] = {"qwen3moe.expert_group_count": 4, "qwen3moe.expert_group_used_count": 2}
    path = tiny_gguf.qwen3moe(tmp_path / "m.gguf", **SMALL, metadata=groups)
    model = Model.open(path)
    plan = shuffled(model)
    check_plan(plan, model.identity, model.layout)
    assert plan.n_keep == 12
    kept = plan.keep[0]
    assert kept != tuple(sorted(kept))
    assert kept != plan.keep[1]


def test_where_fewer_experts_do_not_do_all_are_shuffled(tmp_path: Path) -> None:
    plan = shuffled(Model.open(tiny_gguf.qwen3moe(tmp_path / "m.gguf", **SMALL, n_used=16)))
    assert plan.n_keep == 16
    assert plan.keep[0] != tuple(range(16))


# An architecture that no table knows.


@pytest.fixture
def unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of it, and a llama.cpp that knows it, in this process and those that it starts."""
    from llama_cpp import llama_cpp

    load = "llama_model_load_from_file"
    monkeypatch.setattr(llama_cpp, load, tiny_unknown.learned(getattr(llama_cpp, load)))
    folders = (TESTS / "unknown_architecture", TESTS, TESTS.parent)
    monkeypatch.setenv("PYTHONPATH", ":".join(map(str, folders)))
    return tiny_unknown.write(tmp_path / "unknown.gguf")


@pytest.mark.native
def test_an_unknown_architecture_is_pruned_once_the_laws_held(
    unknown: Path, tmp_path: Path, trials: Path, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert not verbs.inspect(unknown).proven
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog " * 40)
    verbs.calibrate(unknown, tmp_path / "S.npz", text, settings=SETTINGS)
    plan = asked.plan(unknown, stats=tmp_path / "S.npz", ratio="0.25")
    assert "no table knows the architecture 'qwen9moe', so pruning it is unproven" in caplog.text
    assert verbs.apply(unknown, plan, Output(tmp_path / "out.gguf", dry_run=True)).nbytes
    with pytest.raises(UnsupportedModel, match=f"is unproven; .*ggufreap doctor {unknown}"):
        verbs.apply(unknown, plan, tmp_path / "out.gguf")
    found = verbs.doctor(unknown, tmp_dir=trials, settings=SETTINGS)
    assert found.verdict == "pruning this model is safe: all laws hold"
    assert [finding.name for finding in found.findings if "in no table" in finding.found] == ["architecture"]
    caplog.clear()
    assert asked.plan(unknown, stats=tmp_path / "S.npz", ratio="0.25") == plan
    assert "unproven" not in caplog.text
    verbs.apply(unknown, plan, tmp_path / "out.gguf")
    verbs.verify(unknown, tmp_path / "out.gguf", plan, settings=SETTINGS).require()
    (remembered,) = (home / "ggufreap").glob("laws-*")
    cache.put(remembered.stem, {"nbytes": unknown.stat().st_size, "llama-cpp-python": "0.0.1"})
    with pytest.raises(UnsupportedModel, match="is unproven"):
        verbs.apply(unknown, plan, tmp_path / "out.gguf")


@pytest.mark.native
def test_prune_tries_an_unknown_architecture_out_by_itself(
    unknown: Path, tmp_path: Path, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["prune", str(unknown), "--keep", "12", "--method", "random", "--quant", "keep", "-t", "1"]
    assert main([*command, "--dry-run", "-o", str(out)]) == 0
    assert not home.exists()
    for trial in (True, False):
        capfd.readouterr()
        assert main([*command, "-o", str(out)]) == 0
        assert ("is unproven: the laws are tried out on it first" in capfd.readouterr().err) is trial
    assert sorted(path.name.rpartition("-")[2] for path in out.iterdir()) == [
        "0.25.Modelfile",
        "0.25.gguf",
        "0.25.plan.json",
    ]


@pytest.mark.native
def test_a_home_that_cannot_be_written_is_said_and_prune_works_all_the_same(
    unknown: Path, tmp_path: Path, home: Path
) -> None:
    home.write_text("a file in the way")
    found = verbs.doctor(unknown, settings=SETTINGS)
    assert found.exit_code == 0
    assert found.findings[-1].advice == "apply will refuse this model; use prune instead"
    pruned = asked.prune(unknown, keep=12, method="random", quant=("keep",), out=tmp_path / "out", settings=SETTINGS)
    assert pruned.verification
    assert pruned.verification.ok


@pytest.mark.native
@pytest.mark.parametrize("law", [law for law in tiny_unknown.LAWS if law])
def test_an_unknown_architecture_that_breaks_a_law_is_refused(
    unknown: Path, tmp_path: Path, trials: Path, monkeypatch: pytest.MonkeyPatch, law: str
) -> None:
    monkeypatch.setenv(tiny_unknown.LAW, law)
    assert main(["doctor", str(unknown), "-o", str(trials), "-t", "1"]) == 3
    found = verbs.doctor(unknown, tmp_dir=trials, settings=SETTINGS)
    assert found.broken
    assert found.broken.name.startswith("permutation and masking, ")
    assert [law.ok for law in found.laws[:4]] == [True] * 4
    assert found.verdict.startswith("pruning this model is NOT safe: permutation and masking, ")
    out = tmp_path / "out"
    with pytest.raises(VerificationFailed, match=r"not safe, permutation and masking, .* does not hold: .*nothing was"):
        asked.prune(unknown, keep=12, method="random", quant=("keep",), out=out, settings=SETTINGS)
    assert not list(out.iterdir())
    plan = asked.plan(unknown, keep=12, method="random")
    with pytest.raises(UnsupportedModel, match="is unproven"):
        verbs.apply(unknown, plan, tmp_path / "out.gguf")


def test_mtp_blocks_of_an_unknown_architecture_are_not_dropped(tmp_path: Path) -> None:
    path = tiny_unknown.write(tmp_path / "m.gguf")
    assert bind(open_gguf(path)).architecture.mtp_drop_refuse
