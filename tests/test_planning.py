"""Which experts stay: exact counts, groups, ties, and plans as files."""

import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufreap.architecture.catalog import ARCHITECTURES
from ggufreap.architecture.layout import MoeBlock, MoeLayout
from ggufreap.errors import InfeasiblePlan, InputError, MismatchError
from ggufreap.planning import (
    ModelIdentity,
    PruningPlan,
    check_plan,
    count_to_keep,
    load_plan,
    make_plan,
    ratio_label,
    save_plan,
    select,
)

MODEL = ModelIdentity("f" * 64, "qwen3moe", "toy")


def layout(
    n_expert: int = 16,
    n_used: int = 4,
    n_group: int = 1,
    n_group_used: int = 1,
    mtp: bool = False,
    arch: str = "qwen3moe",
) -> MoeLayout:
    blocks = tuple(MoeBlock(index, n_used, mtp and index == 2, ()) for index in range(3 if mtp else 2))
    return MoeLayout(
        ARCHITECTURES[arch], len(blocks), 2, n_expert, 0, n_group, n_group_used, causal=True, blocks=blocks
    )


@pytest.mark.parametrize(
    ("n_expert", "ratio", "kept"),
    [(256, "0.20", 205), (256, "0.32", 175), (256, "0.15", 218), (100, "0.29", 71), (128, "0.25", 96), (16, "0", 16)],
)
def test_the_ratio_is_taken_as_it_was_written(n_expert: int, ratio: str, kept: int) -> None:
    assert count_to_keep(layout(n_expert), ratio) == kept
    assert count_to_keep(layout(n_expert), float(ratio)) == kept


@given(st.integers(32, 512), st.integers(0, 999))
def test_the_floor_is_exact(n_expert: int, thousandths: int) -> None:
    removed = n_expert * thousandths // 1000
    if n_expert - removed >= 4 and (removed or not thousandths):
        assert count_to_keep(layout(n_expert), str(Decimal(thousandths) / 1000)) == n_expert - removed


def test_groups_lose_equally_many() -> None:
    # 0.3 of 8 per group is 2.4: two of every group go, 8 of 32 in all, not floor(9.6).
    assert count_to_keep(layout(32, 4, 4, 2), "0.3") == 24


INFEASIBLE = {
    "fewer than used": (layout(), {"ratio": "0.9"}, "keep at least 4"),
    "nothing removed": (layout(), {"ratio": "0.05"}, "less than one"),
    "more than there are": (layout(), {"n_keep": 17}, "keep 2 to 16"),
    "one expert": (layout(4, 1), {"n_keep": 1}, "keep 2 to 4"),
    "unequal groups": (layout(16, 4, 4, 2), {"n_keep": 14}, "keep a multiple of 4"),
    "one per group": (layout(16, 2, 4, 2), {"n_keep": 4}, "keep at least 8 in all"),
    "too few in the used groups": (layout(32, 6, 4, 2), {"n_keep": 8}, "keep at least 12 in all"),
    "llama4 down to 128": (layout(160, 1, arch="llama4"), {"n_keep": 128}, "keep one more or one less"),
}


@pytest.mark.parametrize("case", INFEASIBLE)
def test_what_the_router_cannot_work_with_is_refused(case: str) -> None:
    model, target, message = INFEASIBLE[case]
    with pytest.raises(InfeasiblePlan, match=message):
        count_to_keep(model, **target)


@pytest.mark.parametrize("ratio", ["1", "-0.1", "nan", "inf", "half", "20%", "1e400"])
def test_a_ratio_that_is_no_fraction_is_refused(ratio: str) -> None:
    with pytest.raises(InputError, match=r"such as 0\.2"):
        count_to_keep(layout(), ratio)


def test_the_best_stay_and_ties_go_to_the_lowest_id() -> None:
    scores = np.array([[3.0, 1.0, 2.0, 2.0, -np.inf, 2.0], [0.0] * 6])
    assert select(scores, 3, 1) == ((0, 2, 3), (0, 1, 2))
    assert select(scores, 4, 2) == ((0, 2, 3, 5), (0, 1, 3, 4))


@given(st.integers(0, 2**32), st.sampled_from([(8, 1), (16, 4), (12, 3)]), st.integers(1, 3))
def test_no_dropped_expert_beats_a_kept_one_of_its_group(seed: int, shape: tuple[int, int], per_group: int) -> None:
    n_expert, n_group = shape
    scores = np.random.default_rng(seed).integers(0, 5, (3, n_expert)).astype(float)
    for row, kept in zip(scores, select(scores, per_group * n_group, n_group), strict=True):
        for group in range(n_group):
            members = range(group * n_expert // n_group, (group + 1) * n_expert // n_group)
            stay = [expert for expert in members if expert in kept]
            assert len(stay) == per_group
            assert min(row[stay]) >= max((row[expert] for expert in members if expert not in kept), default=-np.inf)


@pytest.mark.parametrize(
    ("ratio", "label"),
    [("0.2", "0.20"), ("0.25", "0.25"), ("0.325", "0.325"), (0.5, "0.50"), (None, "0.19"), ("0", "0.00")],
)
def test_the_ratio_in_names(ratio: str | None, label: str) -> None:
    assert ratio_label(16, 3, ratio) == label


def plan_of(model: MoeLayout, **target: object) -> PruningPlan:
    scores = np.random.default_rng(0).random((2, model.n_expert))
    return make_plan(model, MODEL, scores, method="reap", corpus="c" * 64, **{"ratio": "0.25", **target})


def test_a_plan_says_what_it_does() -> None:
    plan = plan_of(layout(256, 8), ratio="0.2")
    assert plan.summary == "removes 51 of 256, keeps 205"
    assert plan.label == "REAP-0.20"
    assert 0.8 < plan.why[0]["retained"] < 1


def test_mtp_blocks_mirror_the_last_trunk_block_or_are_left_out() -> None:
    model = layout(mtp=True)
    mirrored = plan_of(model)
    assert mirrored.keep[2] == mirrored.keep[1]
    assert set(plan_of(model, mtp="drop").keep) == {0, 1}


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    plan = plan_of(layout(mtp=True))
    save_plan(tmp_path / "p.json", plan)
    assert load_plan(tmp_path / "p.json") == plan
    data = json.loads((tmp_path / "p.json").read_text())
    assert data["layers"]["0"]["keep"] == list(plan.keep[0])
    assert data["model"]["fingerprint"] == MODEL.fingerprint


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1}', '{"schema": "ggufreap.plan/1"}', "\x00"])
def test_another_file_is_no_plan(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(InputError, match=r"p\.json"):
        load_plan(tmp_path / "p.json")


def broken(**changes: object) -> PruningPlan:
    return replace(plan_of(layout()), **changes)


BROKEN = {
    "another model": (broken(model=replace(MODEL, fingerprint="0" * 64)), MismatchError, "make a plan for this file"),
    "a block missing": (broken(keep={0: tuple(range(12))}), InfeasiblePlan, "MoE block 1"),
    "too few": (broken(keep={0: tuple(range(12)), 1: tuple(range(11))}), InfeasiblePlan, "block 1 keeps 11"),
    "one twice": (broken(keep={0: (*range(11), 3), 1: tuple(range(12))}), InfeasiblePlan, "block 0 keeps 11"),
    "one too high": (broken(keep={0: tuple(range(12)), 1: tuple(range(5, 17))}), InfeasiblePlan, "block 1"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_plan_that_does_not_fit_is_refused(case: str) -> None:
    plan, error, message = BROKEN[case]
    with pytest.raises(error, match=message):
        check_plan(plan, MODEL, layout())


def test_groups_may_not_be_mixed() -> None:
    model = layout(16, 4, 4, 2)
    plan = plan_of(model)
    check_plan(plan, MODEL, model)
    mixed = replace(plan, keep={0: plan.keep[0], 1: plan.keep[1][::-1]})
    with pytest.raises(InfeasiblePlan, match="in group order"):
        check_plan(mixed, MODEL, model)
