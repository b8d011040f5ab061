"""The method best, from calibration to plan: judged on the model, remembered, said, and refused where it cannot be."""

import itertools
import json
import logging
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_gguf
from asked import plan, preview, prune

from ggufreap import calibrate, cli, verbs
from ggufreap.errors import InputError
from ggufreap.observation import load
from ggufreap.options.engine import EngineSettings
from ggufreap.planning import load_plan, save_plan
from ggufreap.selection.choosing import choose
from ggufreap.selection.judging import judge
from ggufreap.selection.portfolio import CONTENDERS
from ggufreap.verbs.best import ledger_beside

pytestmark = pytest.mark.native

SETTINGS = EngineSettings(n_ctx=32, n_ubatch=32, n_threads=1, n_gpu_layers=0)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("best")
    model = tiny_gguf.qwen3moe(folder / "m.gguf", n_expert=8, n_used=2)
    np.save(folder / "ids.npy", np.random.default_rng(0).integers(0, 320, (8, 32)))
    calibrate(model, folder / "s.npz", folder / "ids.npy", settings=SETTINGS)
    return model, folder / "s.npz"


def test_what_stays_is_what_the_winner_chooses_from_all_text(calibrated: tuple[Path, Path], tmp_path: Path) -> None:
    model, stats = calibrated
    chosen = plan(model, stats=stats, ratio="0.5", method="best", budget=0, settings=SETTINGS)
    assert (chosen.method, chosen.label) == ("best", "BEST-0.50")
    winner = next(each for each in CONTENDERS if (each.method, each.blend) == (chosen.criterion, chosen.blend))
    statistics, _ = load(stats)
    assert tuple(chosen.keep.values()) == choose(statistics, winner.method, winner.blend, 4).rows
    assert f"{winner.name} loses" in chosen.note
    assert "of reap on held-back text" in chosen.note
    assert "on 8 chunks" in chosen.note
    save_plan(tmp_path / "p.json", chosen)
    assert load_plan(tmp_path / "p.json") == chosen
    assert verbs.coverage(stats, chosen).domains[0].domain == "tokens"


def test_what_was_judged_is_not_judged_again(calibrated: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model, stats = calibrated
    first = plan(model, stats=stats, ratio="0.25", method="best", settings=SETTINGS)
    known = json.loads(ledger_beside(stats).read_text())["judged"]
    assert all(len(chunks) >= 2 for chunks in known.values())

    def never(*_: object) -> None:
        raise AssertionError("it was judged again")

    monkeypatch.setattr("ggufreap.selection.judging.compare", never)
    assert plan(model, stats=stats, ratio="0.25", method="best", settings=SETTINGS) == first
    with pytest.raises(AssertionError, match="judged again"):
        plan(model, stats=stats, ratio="0.5", method="best", settings=EngineSettings(n_ubatch=16, n_threads=1))


def test_where_it_cannot_be_it_is_refused(calibrated: tuple[Path, Path], tmp_path: Path) -> None:
    model, stats = calibrated
    with pytest.raises(InputError, match="chooses the blend too"):
        plan(model, stats=stats, ratio="0.5", method="best", blend="tokens")
    with pytest.raises(InputError, match="needs statistics"):
        plan(model, ratio="0.5", method="best")
    (tmp_path / "t.txt").write_text("text " * 100)
    with pytest.raises(InputError, match="compares methods itself"):
        preview(model, files=[str(tmp_path / "t.txt")], stats=stats, methods=["best"])
    np.save(tmp_path / "ids.npy", np.random.default_rng(0).integers(0, 320, (1, 32)))
    calibrate(model, tmp_path / "few.npz", tmp_path / "ids.npy", settings=SETTINGS)
    with pytest.raises(InputError, match="does not hold two halves of tokens"):
        plan(model, stats=tmp_path / "few.npz", ratio="0.5", method="best", settings=SETTINGS)
    with pytest.raises(InputError, match="searched with one method"):
        prune(model, tmp_path / "ids.npy", ratio="auto", method="best", eval_file=[str(tmp_path / "t.txt")])


@pytest.mark.parametrize("method", ["gram", "best"])
def test_prune_takes_it(
    calibrated: tuple[Path, Path], tmp_path: Path, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    model, stats = calibrated
    done = prune(
        model, stats.with_name("ids.npy"), ratio="0.5", method=method, out=tmp_path, quant=("keep",), settings=SETTINGS
    )
    assert done.plan.method == method
    assert done.verification is not None
    assert done.verification.ok
    assert verbs.coverage(done.statistics_path, done.plan) == done.coverage  # type: ignore[arg-type]
    assert method.upper().replace("_", "-") in done.script.files[0].path.name


def test_a_report_draws_other_ratios_by_what_it_settled_on(calibrated: tuple[Path, Path], tmp_path: Path) -> None:
    model, stats = calibrated
    (tmp_path / "held.txt").write_text("some text that nobody calibrated on " * 40)
    done = prune(
        model,
        stats.with_name("ids.npy"),
        ratio="0.5",
        method="best",
        out=tmp_path / "out",
        quant=("keep",),
        eval_file=[f"held={tmp_path}/held.txt"],
        eval_chunks=1,
        report_out=tmp_path / "report",
        settings=SETTINGS,
    )
    told = json.loads((tmp_path / "report" / "report.json").read_text())
    own = next(each for each in told["curve"] if each["n_keep"] == done.plan.n_keep)
    assert {each["method"] for each in told["curve"]} == {"best"} == {told["plan"]["method"]}
    assert own["domains"][0]["kld"]["value"] == pytest.approx(done.account.files[0].comparison.mean.kld, rel=1e-3)
    assert len({each["n_keep"] for each in told["curve"]}) > 2


def test_a_budget_that_was_up_is_said(
    calibrated: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    model, stats = calibrated
    caplog.set_level(logging.INFO)
    clock = itertools.count(0, 100)
    monkeypatch.setattr("ggufreap.verbs.best.judge", partial(judge, clock=lambda: next(clock)))
    plan(model, stats=stats, ratio="0.5", method="best", budget=1, settings=SETTINGS)
    assert "judged methods on 2 of 8 held-back chunks: --budget 1 was up" in caplog.text


def test_on_the_command_line_it_is_supervised_and_says_what_it_chose(
    calibrated: tuple[Path, Path], tmp_path: Path
) -> None:
    model, stats = calibrated
    words = ["plan", str(model), "--stats", str(stats), "--ratio", "0.5", "-o", str(tmp_path / "p.json"), "-t", "1"]
    assert not cli.starts_engine(cli.parse(words))
    assert cli.starts_engine(cli.parse([*words, "--method", "best"]))
    command = [sys.executable, "-m", "ggufreap", *words, "--method", "best", "--budget", "0"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "of reap on held-back text" in " ".join(ran.stdout.split())
    assert load_plan(tmp_path / "p.json").method == "best"
