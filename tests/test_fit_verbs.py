"""The best file that fits a memory, made and measured; and the frontier that it comes from."""

import json
import logging
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_gguf
from asked import taken
from gguf import GGMLQuantizationType as Kind

from ggufreap import console, verbs
from ggufreap.cache import cache_folder
from ggufreap.cli import main
from ggufreap.errors import InfeasiblePlan, InputError, OutputError
from ggufreap.model import Model
from ggufreap.options.engine import EngineSettings
from ggufreap.options.fit import Fit
from ggufreap.options.judgement import HeldOut, Judgement
from ggufreap.options.output import Output
from ggufreap.options.quantisation import Quantisation, Quantiser
from ggufreap.options.target import Target
from ggufreap.verbs import contest

pytestmark = pytest.mark.native
SETTINGS = EngineSettings(n_ctx=64, n_ubatch=64, n_threads=1)
ENOUGH, TIGHT, NONE = 40_000_000, 4_500_000, 1_500_000
FLAGS = ["--fit-margin", "0", "--fit-ctx", "256", "-c", "64", "-ub", "64", "-t", "1"]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fit")
    tiny_gguf.qwen3moe(folder / "Tiny-F16.gguf", n_embd=256, n_ff=256, types=Kind.F16)
    tiny_gguf.qwen3moe(folder / "Low-Q4_K.gguf", n_embd=256, n_ff=256, types=Kind.Q4_K)
    random = np.random.default_rng(0)
    for name in ("calib", "held"):
        words = random.integers(97, 123, (500, 5)).astype(np.uint8)
        (folder / f"{name}.txt").write_text(" ".join(bytes(word).decode() for word in words))
    return folder


@pytest.fixture
def folder(material: Path, tmp_path: Path) -> Path:
    return shutil.copytree(material, tmp_path / "own")


def fitted(
    folder: Path,
    size: int | str,
    model: str = "Tiny-F16.gguf",
    text: bool = True,
    calibrated: bool = True,
    **asked: Any,
) -> verbs.Fitted:
    held = {"eval_file": [f"held={folder}/held.txt"], "eval_chunks": 2} if text else {}
    usual = {"margin": 0, "ctx": 256, "out": folder / "out", "verification": False}
    asked = {**usual, **held, **asked, "fit": size}
    target = taken(Target, asked)
    options = {name: taken(kind, asked) for name, kind in (("fit", Fit), ("quantisation", Quantisation))}
    judged, output = taken(Judgement, asked), taken(Output, asked)
    return verbs.fit(
        *(folder / model, folder / "calib.txt" if calibrated else None),
        target=target,
        judgement=judged,
        output=output,
        settings=SETTINGS,
        **options,
        **asked,
    )


def left(folder: Path) -> set[str]:
    found = {path.name for path in (folder / "out").glob("*.gguf")}
    return {name for name in found if "imatrix" not in name and not name.endswith(".downs.gguf")}


@pytest.fixture(scope="module")
def done(material: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, verbs.Fitted]:
    """A folder in which the best was found, and the result."""
    folder = shutil.copytree(material, tmp_path_factory.mktemp("done") / "own")
    asked = {"report_out": folder / "report", "fail_if": ["worst_domain.kld>1e-9"]}
    return folder, fitted(folder, TIGHT, verification=True, **asked)


def test_the_best_of_what_was_measured_stays_and_fits(done: tuple[Path, verbs.Fitted]) -> None:
    folder, result = done
    assert result.curve.measured
    assert len(result.made) == 3
    assert {each.prospect.kind for each in result.made} == {"unpruned", "pruned", "narrowed"}
    losses = [each.comparison.mean.kld for each in result.made if each.comparison]
    assert losses == sorted(losses)
    assert len(losses) == 3
    best = result.best
    assert best.path.stat().st_size == best.prospect.nbytes <= result.budget.room
    assert result.budget.total == TIGHT
    assert left(folder) == {best.path.name}
    assert len(list((folder / "out").glob("*.plan.json"))) == best.prospect.pruned
    assert len(list((folder / "out").glob("*.narrowing.*"))) == 2 * best.prospect.narrowed
    assert not result.not_narrowed
    (narrow,) = (each for each in result.made if each.prospect.narrowed)
    assert narrow.pruned
    assert narrow.pruned.narrowing
    assert narrow.pruned.narrowing.width == narrow.prospect.width < 256
    assert narrow.pruned.narrowing.label in narrow.path.name
    for each in result.made:
        assert each.proven
        assert each.pruned is None or each.pruned.verification is not None


def test_what_was_made_is_told_as_json(done: tuple[Path, verbs.Fitted], capsys: pytest.CaptureFixture[str]) -> None:
    console.show(done[1], as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert [made["path"] == told["path"] for made in told["made"]] == [True, False, False]
    assert told["made"][0]["comparison"]["mean"]["kld"] <= told["made"][1]["comparison"]["mean"]["kld"]
    assert told["budget"]["room"] >= told["made"][0]["nbytes"]


@pytest.fixture
def forgetful(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that was measured is remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_same_again_makes_the_best_alone(
    done: tuple[Path, verbs.Fitted],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, before = done
    mine = shutil.copytree(folder, tmp_path / "again")
    (mine / "out" / before.best.path.name).unlink()
    monkeypatch.setattr(contest, "compare_files", lambda *_, **__: pytest.fail("measured again"))
    with caplog.at_level(logging.INFO, "ggufreap"):
        again = fitted(mine, TIGHT)
    assert "3 of 3 files were measured before, and are made only to be kept" in caplog.text
    assert [(each.prospect, each.comparison, each.path.name) for each in again.made] == [
        (each.prospect, each.comparison, each.path.name) for each in before.made
    ]
    assert left(mine) == {before.best.path.name}
    (remembered,) = cache_folder().glob("contest-*.json")
    remembered.write_text(remembered.read_text().replace('"kld": ', '"kld": "no number", "was": '))
    monkeypatch.setattr(import_module("ggufreap.verbs.fit"), "_made", lambda *_: pytest.fail("made again"))
    with pytest.raises(pytest.fail.Exception, match="made again"):
        fitted(mine, TIGHT)


@pytest.mark.usefixtures("forgetful")
def test_the_same_again_leaves_what_others_made_and_removes_its_own(
    done: tuple[Path, verbs.Fitted], tmp_path: Path
) -> None:
    """Statistics and the winner are found; an equal file of another run is nobody's to remove."""
    folder, before = done
    mine = shutil.copytree(folder, tmp_path / "again")
    unpruned = next(each for each in before.made if not each.prospect.pruned)
    types = unpruned.prospect.mix.variant(Model.open(mine / "Tiny-F16.gguf").layout).tensor_types
    verbs.quantize(
        *(mine / "Tiny-F16.gguf", mine / "out" / unpruned.path.name, str(unpruned.prospect.mix.type)),
        Quantiser(mine / "out" / "Tiny-F16.imatrix.gguf", tuple(map("=".join, types))),
    )
    again = fitted(mine, TIGHT)
    assert [each.prospect for each in again.made] == [each.prospect for each in before.made]
    assert left(mine) == {before.best.path.name, unpruned.path.name}


@pytest.mark.usefixtures("forgetful")
def test_a_file_of_other_work_is_neither_replaced_nor_removed(done: tuple[Path, verbs.Fitted], tmp_path: Path) -> None:
    folder, before = done
    mine = shutil.copytree(folder, tmp_path / "again")
    loser = mine / "out" / before.made[1].path.name
    loser.write_bytes(b"somebody's")
    with pytest.raises(OutputError, match="is there already"):
        fitted(mine, TIGHT)
    assert loser.read_bytes() == b"somebody's"


def test_fast_makes_the_lowest_estimate_and_measures_no_file(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ggufreap"):
        result = fitted(folder, TIGHT, text=False, fast=True)
    (best,) = result.made
    assert ("the text runs once more" in caplog.text) == best.prospect.narrowed
    assert best.comparison is None
    assert not result.curve.measured
    assert best.loss == best.prospect.loss
    assert left(folder) == {best.path.name}


def test_a_model_that_fits_is_left_as_it_is(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    result = fitted(folder, ENOUGH, report_out=folder / "report", compare=True)
    assert "--report, --compare: no effect" in caplog.text
    assert result.best.path == folder / "Tiny-F16.gguf"
    assert result.best.prospect.loss == 0
    assert not (folder / "out").exists()


def test_of_few_bits_only_experts_go(folder: Path) -> None:
    result = fitted(folder, 5_200_000, "Low-Q4_K.gguf")
    assert all(set(each.prospect.mix.routed) <= {"Q4_K"} for each in result.made)
    assert "down is Q4_K" in result.not_narrowed
    assert result.best.path.stat().st_size == result.best.prospect.nbytes <= result.budget.room


def test_byte_exact_prospects_keep_their_bytes(folder: Path) -> None:
    result = fitted(folder, 4_200_000, "Low-Q4_K.gguf", False, False, fast=True, method="weight_norm")
    assert result.best.prospect.nbytes == result.best.path.stat().st_size
    assert not result.best.prospect.mix.needs_importance
    assert result.not_narrowed


def test_impossible_budgets_are_one_line_before_any_work(folder: Path) -> None:
    with pytest.raises(InfeasiblePlan, match=r"the smallest file has .* of 16 experts.*; give at least"):
        fitted(folder, NONE)
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"text": False}, "measures them on held-out text"),
        ({"quant": ["Q8_0"]}, "without --quant"),
        ({"keep_intermediate": True}, "without --keep-intermediate"),
        ({"split_max_size": "1G"}, "without --split-max-size"),
        ({"dry_run": True}, "ggufreap frontier tells"),
        ({"out": "best.gguf"}, "name a folder"),
        ({"ratio": 0.5}, "neither --ratio nor --keep"),
    ],
)
def test_what_means_nothing_with_a_size_is_refused(folder: Path, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        fitted(folder, TIGHT, **asked)


def test_reports_and_gates_tell_of_the_one_that_stays(done: tuple[Path, verbs.Fitted]) -> None:
    folder, result = done
    assert result.best.prospect.pruned
    assert result.account
    assert not result.account.ok
    assert [each.path for each in result.account.files] == [result.best.path]
    told = json.loads((folder / "report" / "report.json").read_text())
    assert told["model"]["n_expert_after"] == result.best.prospect.n_keep


def test_the_command_line_makes_it_and_tells_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "prune",
        f"{folder}/Tiny-F16.gguf",
        "--fit",
        "4.5MB",
        "--no-verify",
        "-f",
        f"{folder}/calib.txt",
        "-o",
        f"{folder}/out",
    ]
    judged = ["--eval-file", f"{folder}/held.txt", "--eval-chunks", "2"]
    assert main([*command, *FLAGS, *judged, "--no-narrow"]) == 0
    out = capsys.readouterr().out
    assert "no narrower experts were looked at: as asked" in out
    assert "What was made" in out
    assert out.count("removed") == 2
    assert out.count("kept") >= 1
    fast = [*command, *FLAGS, "--fast", "--json"]
    assert main(fast) == 0
    told = json.loads(capsys.readouterr().out)
    assert [made["path"] for made in told["made"]] == [told["path"]]
    assert told["made"][0]["comparison"] is None
    assert told["budget"]["room"] >= told["made"][0]["nbytes"]


def test_flags_of_a_size_are_refused_without_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["prune", f"{folder}/Tiny-F16.gguf", "--ratio", "0.5", "-f", f"{folder}/calib.txt", "--fast"]
    assert main(command) == 1
    assert "--fast is for --fit SIZE, and none was given" in capsys.readouterr().err


# --- the frontier -----------------------------------------------------------------------------------------------------


def test_the_frontier_is_told_without_a_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = folder / "Tiny-F16.gguf"
    result = verbs.frontier(model, steps=5)
    assert len(result.steps) == 5
    assert not result.curve.measured
    assert result.budget is None
    assert result.steps[-1].winner is not None
    assert result.steps[-1].winner.loss == 0
    losses = [step.winner.loss for step in result.steps if step.winner]
    assert losses == sorted(losses, reverse=True)
    assert all(step.winner.nbytes <= step.nbytes for step in result.steps if step.winner)
    assert (
        main(
            [
                "frontier",
                str(model),
                "--fit",
                "4.5MB",
                "--steps",
                "3",
                "--fit-margin",
                "0",
                "--fit-ctx",
                "256",
                "-ub",
                "64",
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "nothing was measured on this one" in out
    assert "leave" in out
    assert list(folder.glob("*")) == [path for path in folder.glob("*") if path.suffix in (".gguf", ".txt")]


def test_the_frontier_measures_what_pruning_loses(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, stats = folder / "Tiny-F16.gguf", folder / "S.npz"
    verbs.calibrate(model, stats, folder / "calib.txt", settings=SETTINGS)
    held = HeldOut((f"{folder}/held.txt",), 2, 64)
    result = verbs.frontier(model, held, stats=stats, steps=3, settings=SETTINGS)
    assert result.curve.measured
    assert list(result.curve.points) == sorted(result.curve.points)
    flags = ["--stats", str(stats), "-f", f"{folder}/held.txt", "--chunks", "2", "-c", "64", "-ub", "64", "-t", "1"]
    assert main(["frontier", str(model), *flags, "--steps", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["measured"]
    assert told["pruning"] == [{"removed": share, "kld": kld} for share, kld in result.curve.points.items()]
    assert [step["nbytes"] for step in told["steps"]] == [step.nbytes for step in result.steps]
    with pytest.raises(InputError, match="give both"):
        verbs.frontier(model, held, settings=SETTINGS)
    with pytest.raises(InputError, match="give both"):
        verbs.frontier(model, stats=stats, settings=SETTINGS)
    with pytest.raises(InputError, match="give both"):
        verbs.frontier(model, HeldOut(chunks=2), settings=SETTINGS)
    with pytest.raises(InputError, match="--fail-if is for files that are judged"):
        verbs.frontier(model, HeldOut(fail_if=("worst_domain.kld>0.2",)), settings=SETTINGS)


def test_the_frontier_tells_the_sizes_of_what_is_made(done: tuple[Path, verbs.Fitted]) -> None:
    """The header's words on the calibration data included, which the statistics know."""
    folder, made = done
    held = HeldOut((f"held={folder}/held.txt",), 2)
    memory = {"target": Target(fit=TIGHT), "fit": Fit(ctx=256, margin=0)}
    stats = folder / "out" / "Tiny-F16.stats.npz"
    shown = verbs.frontier(folder / "Tiny-F16.gguf", held, **memory, stats=stats, steps=2, settings=SETTINGS)
    assert shown.fitting
    told = {each.label: each.nbytes for each in shown.fitting.kinds.values() if each}
    assert told == {each.prospect.label: each.prospect.nbytes for each in made.made}
    assert len(told) == 3


def test_the_frontier_says_where_nothing_fits(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(InfeasiblePlan, match=r"the smallest file has .* more than 75% of the experts never go"):
        verbs.frontier(folder / "Tiny-F16.gguf", target=Target(fit=NONE), fit=Fit(ctx=256, margin=0, narrow=False))
    with pytest.raises(InfeasiblePlan, match=r"\(4 of 16 experts, 128 of 256 .* or 50% of their neurons never"):
        verbs.frontier(folder / "Tiny-F16.gguf", target=Target(fit=NONE), fit=Fit(ctx=256, margin=0))
    assert "(as asked)" in caplog.text
    assert "without what the header will tell of calibration data" in caplog.text
