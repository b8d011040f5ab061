"""The whole job: how often it opens, loads and reads what it works with, and what its files are called."""

import subprocess
import sys
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_gguf
from asked import prune
from gguf import GGMLQuantizationType as Kind

from ggufreap.container import gguf_file
from ggufreap.engine import subprocess_probe
from ggufreap.engine.session import LlamaSession
from ggufreap.errors import InputError, OutputError
from ggufreap.judging import passes
from ggufreap.observation import Stored
from ggufreap.options.engine import EngineSettings

SETTINGS = EngineSettings(n_ctx=64, n_ubatch=64, n_threads=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_gguf.qwen3moe(tmp_path / "Tiny-Q8_0.gguf", n_embd=256, n_ff=256, types=Kind.Q8_0)
    random = np.random.default_rng(0)
    for name in ("calib", "held", "other"):
        words = random.integers(97, 123, (500, 5)).astype(np.uint8)
        (tmp_path / f"{name}.txt").write_text(" ".join(bytes(word).decode() for word in words))
    return tmp_path


class Counts:
    """How often files are opened, loaded, probed and read, by name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened: Counter[str] = Counter()
        self.loaded: Counter[str] = Counter()
        self.probed: Counter[str] = Counter()
        self.read: Counter[str] = Counter()
        self._count(monkeypatch, gguf_file, "read_header", self.opened)
        self._count(monkeypatch, subprocess_probe, "run", self.probed)
        load, read = LlamaSession._load, Stored.__dict__["_domain_statistics"].func

        def loading(session: LlamaSession, path: Path, *rest: Any) -> Any:
            self.loaded[path.name] += 1
            return load(session, path, *rest)

        def reading(stored: Stored) -> Any:
            self.read[stored.path.name] += 1
            return read(stored)

        counted = cached_property(reading)
        counted.__set_name__(Stored, "_domain_statistics")
        monkeypatch.setattr(LlamaSession, "_load", loading)
        monkeypatch.setattr(Stored, "_domain_statistics", counted)

    @staticmethod
    def _count(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, counts: Counter[str]) -> None:
        before = getattr(module, name)

        def counting(path: Path, *rest: Any) -> Any:
            counts[Path(path).name] += 1
            return before(path, *rest)

        monkeypatch.setattr(module, name, counting)


@pytest.mark.native
def test_nothing_is_opened_loaded_or_read_more_often_than_the_work_needs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judged(ratio: str, compare: bool) -> Counts:
        counts = Counts(monkeypatch)
        made = prune(
            folder / "Tiny-Q8_0.gguf",
            folder / "calib.txt",
            ratio=ratio,
            quant=["keep", "Q4_K_M"],
            out=folder / "out",
            eval_file=[f"{folder}/held.txt", f"{folder}/other.txt"],
            eval_chunks=2,
            compare=compare,
            report_out=folder / f"report-{ratio}",
            settings=SETTINGS,
        )
        assert made.account
        assert bool(made.account.equal_size) == compare
        return counts

    counts = judged("0.25", compare=True)
    model, pruned = "Tiny-Q8_0.gguf", "Tiny-RANK-AVERAGE-0.25-Q8_0.gguf"
    rival = next(name for name in counts.loaded if name.startswith("unpruned"))
    assert counts.opened[model] == 1
    # To calibrate, and to judge; every other file to be judged, once.
    assert counts.loaded == {model: 2, pruned: 1, "Tiny-RANK-AVERAGE-0.25-Q4_K_M.gguf": 1, rival: 1}
    assert counts.probed == {model: 1, pruned: 1}  # to verify, in processes of their own
    assert counts.read == {"Tiny-Q8_0.stats.npz": 1}
    monkeypatch.undo()
    again = judged("0.5", compare=False)  # calibrated already
    assert again.opened[model] == again.loaded[model] == 1
    assert again.read == {"Tiny-Q8_0.stats.npz": 1}


SECOND_RATIO = """
import sys, time
from importlib import import_module
from ggufreap import Output, Quantisation, Target, prune
from ggufreap.engine.session import LlamaSession
from ggufreap.options.engine import EngineSettings

job = import_module("ggufreap.verbs.exact")

def loading(*_):
    raise AssertionError("the model was loaded")

def writing(*arguments, before=job.execute):
    print(time.process_time())
    return before(*arguments)

LlamaSession.__init__, job.execute = loading, writing
model, text, out = sys.argv[1:]
prune(
    model,
    text,
    target=Target("0.5"),
    quantisation=Quantisation(("keep",)),
    output=Output(out, verify=False),
    settings=EngineSettings(n_ctx=64, n_ubatch=64, n_threads=1),
)
"""


@pytest.mark.native
def test_a_second_ratio_writes_at_once_and_loads_nothing(folder: Path) -> None:
    model, text, out = folder / "Tiny-Q8_0.gguf", folder / "calib.txt", folder / "out"
    prune(model, text, ratio="0.25", quant=["keep"], out=out, verification=False, settings=SETTINGS)
    ran = subprocess.run(
        [sys.executable, "-c", SECOND_RATIO, model, text, out], capture_output=True, text=True, check=True
    )
    assert float(ran.stdout) < 1, "seconds of processor time from the start to the first byte"
    assert (out / "Tiny-RANK-AVERAGE-0.50-Q8_0.gguf").exists()


@pytest.mark.native
def test_without_room_for_the_logits_each_file_is_compared_beside_the_original(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"ratio": "0.25", "quant": ["keep", "Q4_K_M"], "verification": False, "settings": SETTINGS}
    options |= {"eval_file": [f"{folder}/held.txt"], "eval_chunks": 2, "out": folder / "out"}
    spilled = prune(folder / "Tiny-Q8_0.gguf", folder / "calib.txt", **options).account
    monkeypatch.setattr(passes, "SHARE_OF_DISK", 0)
    beside = prune(folder / "Tiny-Q8_0.gguf", folder / "calib.txt", **options).account
    assert "each file is loaded beside the original instead" in caplog.text
    assert spilled
    assert beside
    assert [each.comparison for each in spilled.files] == [each.comparison for each in beside.files]


def names_of(folder: Path, **target: Any) -> tuple[str, int]:
    made = prune(folder / "m.gguf", **target, method="random", quant=["keep"], out=folder / "out", dry_run=True)
    return made.script.files[0].path.name, made.plan.n_keep


def test_other_counts_have_other_names(tmp_path: Path) -> None:
    tiny_gguf.qwen3moe(tmp_path / "m.gguf", n_expert=256, n_embd=32, n_ff=32, n_block=1)
    assert names_of(tmp_path, keep=205) == names_of(tmp_path, ratio="0.2") == ("m-RANDOM-0.20.gguf", 205)
    assert names_of(tmp_path, keep=206) == names_of(tmp_path, ratio="0.196") == ("m-RANDOM-0.196.gguf", 206)
    names = [names_of(tmp_path, keep=keep)[0] for keep in range(160, 257)]
    assert len(set(names)) == len(names)


@pytest.mark.native
def test_the_file_of_another_plan_is_not_overwritten(folder: Path) -> None:
    model, out = folder / "Tiny-Q8_0.gguf", folder / "out"
    options = {"quant": ["keep"], "out": out, "verification": False, "settings": SETTINGS, "ratio": "0.25"}
    first = prune(model, method="random", **options)
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert prune(model, method="random", **options).plan == first.plan
    with pytest.raises(OutputError, match=r"RANDOM-0\.25-Q8_0\S* is there already and is not of this very work"):
        prune(model, method="random", seed=1, **options)
    prune(model, folder / "calib.txt", **options)
    with pytest.raises(OutputError, match=r"RANK-AVERAGE-0\.25-Q8_0\S* is there already and is not of this very work"):
        prune(model, folder / "calib.txt", blend="uniform", **options)
    assert all(path.read_bytes() == data for path, data in before.items())


def test_a_limit_that_nothing_can_keep_is_refused_at_once(folder: Path) -> None:
    with pytest.raises(InputError, match=r"--max-kld 0\.0: it is the mean KLD in nats"):
        prune(folder / "Tiny-Q8_0.gguf", ratio="auto", max_kld=0.0, eval_file=[f"{folder}/held.txt"])
    assert not list(folder.glob("*.npz"))
