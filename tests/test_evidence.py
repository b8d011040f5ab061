"""No choice on no data: scores that decide nothing and weights that are not there are refused, whatever the method."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
from asked import plan
from synthetic import of_parts, part
from test_planning import MODEL, layout

from ggufreap import apply, calibrate
from ggufreap.architecture.layout import bind
from ggufreap.blending import blend
from ggufreap.container import open_gguf
from ggufreap.errors import FormatError, InputError, NumericFailure
from ggufreap.evidence import HOLE, kept_unknown, require_weights
from ggufreap.model import Model
from ggufreap.observation import DomainStatistics
from ggufreap.options.target import Target
from ggufreap.planning import make_plan
from ggufreap.saliency import METHODS
from ggufreap.verbs.preview import plans_of

NOTHING = {
    "zero": [0.0] * 16,
    "equal": [2.5] * 16,
    "unknown": [-np.inf] * 16,
    "zero or unknown": [0.0, -np.inf] * 8,
}


@pytest.mark.parametrize("what", NOTHING)
def test_scores_that_tell_nothing_choose_nothing(what: str) -> None:
    scores = np.array([np.arange(16.0), NOTHING[what]])
    with pytest.raises(InputError, match=r"block 1: the scores of all 16 experts by reap are \w+.*by their numbers"):
        make_plan(layout(), MODEL, scores, method="reap", ratio="0.25")
    assert make_plan(layout(), MODEL, scores, method="reap", ratio="0").n_keep == 16, "nothing is chosen"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_no_numbers_rank_nothing(value: float) -> None:
    scores = np.tile(np.arange(16.0), (2, 1))
    scores[1, 3] = value
    with pytest.raises(NumericFailure, match="block 1: the score of expert 3 by reap is"):
        make_plan(layout(), MODEL, scores, method="reap", ratio="0.25")


@pytest.mark.parametrize("how", ["tokens", "uniform", "maxmin"])
@pytest.mark.parametrize("method", METHODS)
def test_no_method_and_no_blend_makes_something_of_nothing(method: str, how: str) -> None:
    """Experts that are all alike, in every domain."""
    alike = {name: part([[10] * 16, [10] * 16], [[1.0] * 16, [1.0] * 16]) for name in ("code", "prose")}
    scores = blend(of_parts(alike), how, method)
    with pytest.raises(InputError, match="block 0"):
        make_plan(layout(), MODEL, scores, method=method, ratio="0.25")


def test_what_is_unknown_and_stays_is_counted_per_group() -> None:
    scores = np.array([[-np.inf, -np.inf, 1, 2, 0, 3, 4, 5]])
    assert kept_unknown(scores, [(0, 2, 3, 4, 5, 6)]) == 2
    assert kept_unknown(scores, [(1, 2, 3, 4, 5, 6)], n_group=2) == 1
    assert kept_unknown(scores, [(2, 3, 5, 6)]) == 0


def broken_statistics(name: str, value: float) -> DomainStatistics:
    found = part([[10] * 8], [[1.0] * 8])
    found.values[name][0, 3] = value
    return of_parts({"code": found})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_statistics_that_are_no_numbers_are_refused(value: float) -> None:
    with pytest.raises(NumericFailure, match="block 0: sum_gf of expert 3 is no finite number"):
        broken_statistics("sum_gf", value).check()


def test_experts_that_never_act_are_named_and_a_block_of_them_is_refused() -> None:
    some = broken_statistics("sum_f", 0.0)
    some.check()
    assert some.total.mute == ((0, 3),)
    with pytest.raises(NumericFailure, match="block 0: the output of every expert is exactly zero"):
        of_parts({"code": part([[10] * 8], [[0.0] * 8])}).check()


# --- weights that are not there ---------------------------------------------------------------------------------------


def hole(model: Path, copy: Path, name: str, expert: int | None = None, nbytes: int | None = None) -> Path:
    """A copy of the model with zeros in a tensor, or in one expert of it."""
    shutil.copyfile(model, copy)
    record = open_gguf(model).by_name[name]
    size = record.nbytes if expert is None else record.nbytes // record.shape[0]
    start = record.offset + (0 if expert is None else expert * size)
    with copy.open("r+b") as file:
        file.seek(start + (0 if nbytes is None else (size - nbytes) // 2))
        file.write(bytes(size if nbytes is None else nbytes))
    return copy


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.qwen3moe(tmp_path_factory.mktemp("whole") / "m.gguf")


@pytest.mark.parametrize("part", ["gate", "up", "down"])
@pytest.mark.parametrize("method", ["random", "weight_norm", "reap"])
def test_an_expert_of_zeros_is_refused_by_every_choice(model: Path, tmp_path: Path, method: str, part: str) -> None:
    broken = hole(model, tmp_path / "hole.gguf", f"blk.1.ffn_{part}_exps.weight", expert=5)
    with pytest.raises(FormatError, match=rf"blk\.1\.ffn_{part}_exps\.weight, expert 5: all [\d,]+ bytes are zero"):
        plan(broken, method=method, ratio="0.25", stats=tmp_path / "none.npz" if method == "reap" else None)


def test_it_is_refused_before_llama_cpp_is_started_and_before_anything_is_written(model: Path, tmp_path: Path) -> None:
    chosen = plan(model, method="random", ratio="0.25")
    broken = hole(model, tmp_path / "hole.gguf", "blk.0.ffn_down_exps.weight", expert=15)
    (tmp_path / "text.txt").write_text("some text\n" * 1000)
    with pytest.raises(FormatError, match="expert 15: all"):
        calibrate(broken, tmp_path / "S.npz", tmp_path / "text.txt")
    of_broken = replace(chosen, model=Model.open(broken).identity)  # else it is refused as the plan of other weights
    with pytest.raises(FormatError, match="expert 15: all"):
        apply(broken, of_broken, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_a_hole_in_an_expert_and_zeros_elsewhere_are_said(tmp_path: Path) -> None:
    model = tiny_gguf.qwen3moe(tmp_path / "m.gguf", n_block=1)
    file = open_gguf(model)
    assert require_weights(file, bind(file)) == ()
    size = file.by_name["blk.0.ffn_down_exps.weight"].nbytes // 16
    assert size > HOLE, "there is more than a hole"
    holed = open_gguf(hole(model, tmp_path / "hole.gguf", "blk.0.ffn_down_exps.weight", 2, HOLE))
    (note,) = require_weights(holed, bind(holed))
    assert "blk.0.ffn_down_exps.weight holds zeros where weights should be, first in expert 2" in note
    other = open_gguf(hole(model, tmp_path / "other.gguf", "blk.0.attn_q.weight"))
    (note,) = require_weights(other, bind(other))
    assert "blk.0.attn_q.weight holds zeros where weights should be; if" in note


def test_many_plans_of_a_model_say_once_what_is_wrong_with_it(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    holed = Model.open(hole(model, tmp_path / "hole.gguf", "blk.0.attn_q.weight"))
    plans, _ = plans_of(holed, [Target(method="weight_norm")], ("0.25", "0.5", "0.75"), None)
    assert len(plans) == 3
    assert caplog.text.count("holds zeros where weights should be") == 1


def test_apply_says_that_nothing_is_proven_yet(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chosen = plan(model, method="weight_norm", ratio="0.25")
    with caplog.at_level(logging.INFO, "ggufreap"):
        apply(model, chosen, tmp_path / "out.gguf")
    assert "out.gguf is unproven: ggufreap verify " in caplog.text
    assert " --plan P.json, and llama.cpp has not run m.gguf for this plan" in caplog.text
