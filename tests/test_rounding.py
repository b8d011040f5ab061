"""Counts of experts that CUDA's fused router knows: asked for, moved to, and told of."""

import json
import logging
from pathlib import Path

import asked
import pytest
import tiny_gguf

from ggufreap.cli import main
from ggufreap.errors import InfeasiblePlan
from ggufreap.model import Model
from ggufreap.options.engine import EngineSettings
from ggufreap.options.target import FRIENDLY, Target
from ggufreap.planning.counts import feasible_counts, friendly_count, is_friendly, nearest_friendly
from ggufreap.verbs.narrowing import settled
from ggufreap.verbs.rounding import rounded


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Of 16 experts, 4 of which the router picks."""
    return Model.open(tiny_gguf.qwen3moe(tmp_path_factory.mktemp("round") / "Tiny.gguf"))


def test_friendly_counts_are_those_of_the_kernel() -> None:
    assert [count for count in range(1, 600) if is_friendly(count)] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 288, 512, 576]


def test_a_count_moves_to_the_nearest_that_is_friendly(model: Model, tmp_path: Path) -> None:
    layout = model.layout
    assert feasible_counts(layout) == list(range(16, 3, -1))
    assert feasible_counts(layout, friendly=True) == [16, 8, 4]
    assert [friendly_count(layout, count) for count in (16, 12, 11, 8, 6, 5, 4)] == [16, 8, 8, 8, 8, 4, 4]
    assert [nearest_friendly(layout, count) for count in (15, 6, 5)] == [8, 8, 4]
    with pytest.raises(InfeasiblePlan, match=r"of 16 experts that means 8, which is farther from 13 than all of them"):
        friendly_count(layout, 13)
    few = Model.open(tiny_gguf.qwen3moe(tmp_path / "few.gguf", n_expert=7, n_used=5)).layout
    assert nearest_friendly(few, 6) is None
    with pytest.raises(InfeasiblePlan, match="can keep none of these but all; leave --round out"):
        friendly_count(few, 6)


def test_a_target_says_what_was_moved(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert rounded(model.layout, Target(ratio="0.4", round=FRIENDLY)) == Target(keep=8, round=FRIENDLY)
    assert "--round friendly: 8 of 16 experts stay, not 10: CUDA's fused router knows powers of two" in caplog.text
    caplog.clear()
    for target in (Target(ratio="0.5", round=FRIENDLY), Target(ratio="0.4"), Target(ratio="auto", round=FRIENDLY)):
        assert rounded(model.layout, target) == target
    assert not caplog.records


def test_a_cut_that_is_divided_takes_friendly_counts_alone(model: Model) -> None:
    target, width = settled(model, Target(shrink="0.4", round=FRIENDLY))
    assert (target.keep, width) in ((16, 128), (16, 96), (8, 256))
    assert settled(model, Target(shrink="0.4"))[0].keep not in (8, 16)


def test_plan_and_prune_take_it(model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [str(model.path), "--method", "random", "--ratio", "0.4"]
    assert main(["plan", *command, "--round", "friendly", "-o", str(tmp_path / "P.json")]) == 0
    assert json.loads((tmp_path / "P.json").read_text())["n_keep"] == 8
    assert main(["prune", *command, "--round", "friendly", "--dry-run"]) == 0
    assert "-0.50" in capsys.readouterr().out
    assert main(["prune", *command, "--dry-run"]) == 0
    told = capsys.readouterr()
    assert "-0.4" in told.out
    assert "288 and 576, not 10: there routing takes more steps; nearest: --keep 8" in told.err


@pytest.mark.native
def test_a_ratio_that_is_searched_for_is_friendly(model: Model, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("the same words again and again, " * 40)
    found = asked.choose_ratio(
        model.path,
        method="random",
        max_kld=100.0,
        round=FRIENDLY,
        files=(f"t={tmp_path / 't.txt'}",),
        settings=EngineSettings(n_ctx=64, n_ubatch=64, n_threads=1),
    )
    assert {each.plan.n_keep for each in found.candidates} == {8, 4}
    assert found.recommended
    assert found.recommended.plan.n_keep == 4
