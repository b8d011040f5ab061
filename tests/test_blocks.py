"""Block by block on equal inputs: right files hold and wrong ones are named, in every architecture, at real depth."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import asked
import numpy as np
import pytest
import tiny_gguf
import tiny_native
from gguf import GGMLQuantizationType as Kind

from ggufreap import verbs
from ggufreap.architecture.layout import MoeLayout, bind
from ggufreap.container import open_gguf
from ggufreap.engine.block_tap import Recorded
from ggufreap.engine.session import LlamaSession
from ggufreap.errors import EngineError
from ggufreap.options.engine import EngineSettings
from ggufreap.options.quantisation import Quantiser
from ggufreap.planning import PruningPlan
from ggufreap.verification.blocks import BlockComparison, compare_blocks, tolerance
from ggufreap.verification.proof import tolerances

SETTINGS = EngineSettings(n_ctx=64, n_ubatch=64, n_threads=1, n_gpu_layers=0, exact=True)
REFUSED = {"grovemoe", "dflash", "deepseek4-hash"}
NAMES = [name for name in (*tiny_native.NATIVE, *tiny_native.VARIANTS) if name not in REFUSED]
DEEP = 40
KINDS = ("F32", "F16", "Q8_0", "Q4_K", "IQ4_XS")


def tokens(n_vocab: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, n_vocab, 64).astype(np.int32)


def masked(path: Path, plan: PruningPlan, ids: np.ndarray) -> Recorded:
    layout = bind(open_gguf(path))
    with LlamaSession(path, layout.nodes, SETTINGS) as session:
        return session.blocks(ids, {block.index: plan.keep[block.index] for block in layout.trunk})[1]


def compared(source: Path, pruned: Path, expected: Recorded, ids: np.ndarray) -> BlockComparison:
    file, layout = open_gguf(source), bind(open_gguf(pruned))
    with LlamaSession(pruned, layout.nodes, SETTINGS) as session:
        found = session.blocks(ids, None, expected)[1]
    assert set(found) == set(expected)
    return compare_blocks(layout, expected, found, tolerances((file, open_gguf(pruned))))


@pytest.mark.native
@pytest.mark.parametrize("name", NAMES)
def test_every_architecture_holds_and_a_neighbour_s_router_row_does_not(name: str, tmp_path: Path) -> None:
    source, pruned = tiny_native.build(name, tmp_path / "m.gguf"), tmp_path / "pruned.gguf"
    plan, ids = asked.plan(source, method="random", keep=12), tokens(tiny_native.N_VOCAB)
    verbs.apply(source, plan, pruned)
    expected = masked(source, plan, ids)
    right = compared(source, pruned, expected, ids)
    assert right.differences == ()
    assert right.worst < 1e-5
    block = bind(open_gguf(source)).trunk[-1].index
    copy_row(pruned, f"blk.{block}.ffn_gate_inp.weight", 3, 4)
    assert {difference.block for difference in compared(source, pruned, expected, ids).differences} == {block}


# Forty blocks.


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Expert biases and a biased router; a bias for the selection only; and plain ones of all types."""
    folder = tmp_path_factory.mktemp("deep")
    made = {"gpt-oss": tiny_native.build("gpt-oss", folder / "gpt-oss.gguf", overrides={"block_count": DEEP})}
    made["dots1"] = tiny_native.build("dots1", folder / "dots1.gguf", overrides={"block_count": DEEP})
    made["F32"] = tiny_gguf.qwen3moe(folder / "F32.gguf", n_block=DEEP, n_expert=8, n_used=2)
    for kind in KINDS[1:]:
        made[kind] = folder / f"{kind}.gguf"
        verbs.quantize(made["F32"], made[kind], kind, Quantiser(pure=True, n_threads=1))
    return made


class Deep:
    """A right file, to be spoiled, and what it is compared with."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.source, self.pruned = source, folder / "pruned.gguf"
        n_expert = bind(open_gguf(source)).n_expert
        self.plan = asked.plan(source, method="random", keep=n_expert * 3 // 4, seed=1)
        verbs.apply(source, self.plan, self.pruned)
        self.ids = tokens(open_gguf(source).by_name["token_embd.weight"].shape[0])
        self.expected = masked(source, self.plan, self.ids)

    def differences(self) -> set[tuple[int, str]]:
        found = compared(self.source, self.pruned, self.expected, self.ids)
        return {(difference.block, difference.what) for difference in found.differences}


def rows(path: Path, name: str) -> np.memmap:
    record = open_gguf(path).by_name[name]
    return np.memmap(path, np.uint8, "r+", record.offset, (record.shape[0], record.nbytes // record.shape[0]))


def copy_row(path: Path, name: str, source: int, target: int) -> None:
    data = rows(path, name)
    data[target] = data[source]
    data.flush()


PARTS = ("gate", "up", "down")


def two_experts_swapped(deep: Deep, block: int) -> None:
    for part in PARTS:
        data = rows(deep.pruned, f"blk.{block}.ffn_{part}_exps.weight")
        data[[1, 2]] = data[[2, 1]]


def a_neighbour_s_router_row(deep: Deep, block: int) -> None:
    copy_row(deep.pruned, f"blk.{block}.ffn_gate_inp.weight", 1, 2)


def another_expert_s_slab(deep: Deep, block: int) -> None:
    copy_row(deep.pruned, f"blk.{block}.ffn_down_exps.weight", 1, 2)


def unsliced(name: str) -> Callable[[Deep, int], None]:
    """The first entries instead of those of the experts that stay."""

    def spoil(deep: Deep, block: int) -> None:
        tensor = f"blk.{block}.{name}"
        data = rows(deep.pruned, tensor)
        data[:] = rows(deep.source, tensor)[: len(data)]

    return spoil


SPOILED = {
    "swapped": ("Q8_0", two_experts_swapped, "output"),
    "swapped, 4 bits": ("Q4_K", two_experts_swapped, "output"),
    "router row": ("Q8_0", a_neighbour_s_router_row, "logits"),
    "router row, 4 bits": ("IQ4_XS", a_neighbour_s_router_row, "logits"),
    "slab": ("F16", another_expert_s_slab, "output"),
    "slab, 4 bits": ("Q4_K", another_expert_s_slab, "output"),
    "down bias": ("gpt-oss", unsliced("ffn_down_exps.bias"), "output"),
    "gate bias": ("gpt-oss", unsliced("ffn_gate_exps.bias"), "output"),
    "router bias": ("gpt-oss", unsliced("ffn_gate_inp.bias"), "scores"),
    "selection bias": ("dots1", unsliced("exp_probs_b.bias"), "scores"),
}


@pytest.mark.native
@pytest.mark.parametrize("case", SPOILED)
def test_what_is_wrong_in_one_block_of_forty_is_found_there(models: dict[str, Path], tmp_path: Path, case: str) -> None:
    model, spoil, what = SPOILED[case]
    deep = Deep(models[model], tmp_path)
    assert deep.differences() == set()
    for block in (3, 38):
        spoil(deep, block)
    found = deep.differences()
    assert {block for block, _ in found} == {3, 38}
    assert {(3, what), (38, what)} <= found


@pytest.mark.native
@pytest.mark.parametrize("kind", KINDS)
def test_no_false_alarm_in_forty_random_keep_sets(tmp_path: Path, kind: str) -> None:
    plain = tiny_gguf.qwen3moe(tmp_path / "F32.gguf", n_block=4, n_expert=8, n_used=2)
    source = plain if kind == "F32" else tmp_path / "m.gguf"
    if kind != "F32":
        verbs.quantize(plain, source, kind, Quantiser(pure=True, n_threads=1))
    layout = bind(open_gguf(source))
    random = np.random.default_rng(list(kind.encode()))
    with LlamaSession(source, layout.nodes, SETTINGS) as original:
        for seed in range(40):
            plan = asked.plan(source, method="random", keep=int(random.integers(2, 8)), seed=seed)
            ids = tokens(original.n_vocab, seed)
            _, expected = original.blocks(ids, plan.keep)
            out = tmp_path / "pruned.gguf"
            verbs.apply(source, plan, out)
            found = compared(source, out, expected, ids)
            assert found.differences == (), (seed, found)
            out.unlink()


@pytest.mark.native
def test_verify_tells_how_far_a_deep_model_is_from_itself(models: dict[str, Path], tmp_path: Path) -> None:
    deep = Deep(models["Q8_0"], tmp_path)
    checks = verbs.verify(deep.source, deep.pruned, deep.plan, settings=SETTINGS).checks
    assert [check.ok for check in checks] == [True] * 5
    assert re.fullmatch(
        r"40 blocks on the masked original's inputs, 64 random tokens: errors up to \S+, \d+ near-ties, "
        r"\d+ of 240 kept experts reached",
        checks[3].detail,
    )
    assert re.fullmatch(
        r"from end to end \S+ off the masked original's, which are off themselves by \S+ with a last bit changed and "
        r"\S+ with half the -ub; masking itself: \S+",
        checks[4].detail,
    )


# By hand.


def record(scores: list[float], experts: list[int], output: float = 1.0) -> dict[str, np.ndarray]:
    """One token, two blocks of which the second routes."""
    return {
        "l_out-0": np.ones((1, 4), np.float32),
        "logits-1": np.array([scores], np.float32),
        "scores-1": np.array([scores], np.float32),
        "experts-1": np.array([experts], np.int32),
        "weights-1": np.full((1, len(experts)), 0.5, np.float32),
        "output-1": np.full((1, 4), output, np.float32),
    }


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> MoeLayout:
    path = tiny_gguf.qwen3moe(tmp_path_factory.mktemp("layout") / "m.gguf", n_expert=4, n_used=2)
    whole = bind(open_gguf(path))
    return replace(whole, blocks=whole.blocks[1:])


CLOSE = [0.9, 0.5, 0.5 - 1e-7, 0.1]  # as good as equal, and which is the larger one a last bit decides
TURNED = [0.9, 0.5 - 1e-7, 0.5, 0.1]


def test_a_near_tie_is_no_wrong_expert(layout: MoeLayout) -> None:
    expected, found = record(CLOSE, [0, 1]), record(TURNED, [0, 2], output=5.0)
    result = compare_blocks(layout, expected, found, {0: 1e-2, 1: 1e-2})
    assert (result.differences, result.n_near_ties, result.undecided.tolist()) == ((), 1, [True])


@pytest.mark.parametrize(
    ("scores", "experts", "what"),
    [
        (CLOSE, [0, 2], ["experts", "weights"]),  # nothing moved, so nothing explains the other expert
        (TURNED, [0, 3], ["experts", "weights"]),
        ([0.9, 0.1, 0.5, 0.5], [0, 2], ["logits", "scores"]),
    ],
)
def test_another_expert_without_a_near_tie_is_wrong(
    layout: MoeLayout, scores: list[float], experts: list[int], what: list[str]
) -> None:
    result = compare_blocks(layout, record(CLOSE, [0, 1]), record(scores, experts), {0: 1e-2, 1: 1e-2})
    assert [difference.what for difference in result.differences] == what


def test_nan_is_a_difference(layout: MoeLayout) -> None:
    result = compare_blocks(
        layout, record(CLOSE, [0, 1]), record(CLOSE, [0, 1], output=float("nan")), {0: 1e-2, 1: 1e-2}
    )
    assert [difference.what for difference in result.differences] == ["output"]


def test_groups_that_are_as_good_as_equal_are_a_near_tie(layout: MoeLayout) -> None:
    grouped = replace(layout, n_group=2, n_group_used=1)
    before, after = [0.9, 0.5, 0.9 - 1e-7, 0.5], [0.9 - 1e-7, 0.5, 0.9, 0.5]
    result = compare_blocks(grouped, record(before, [0, 1]), record(after, [2, 3]), {0: 1e-2, 1: 1e-2})
    assert (result.differences, result.n_near_ties) == ((), 1)
    result = compare_blocks(grouped, record(before, [0, 1]), record(before, [2, 3]), {0: 1e-2, 1: 1e-2})
    assert [difference.what for difference in result.differences] == ["experts", "weights"]


def test_a_graph_without_the_stream_proves_nothing(layout: MoeLayout) -> None:
    lost = record(CLOSE, [0, 1])
    del lost["l_out-0"]
    with pytest.raises(EngineError, match=r"block 0 has no node l_out: this llama\.cpp builds qwen3moe in another way"):
        compare_blocks(layout, lost, lost, {0: 1e-2, 1: 1e-2})


def test_the_tolerance_is_that_of_the_coarsest_rounding() -> None:
    assert tolerance([Kind.F32, Kind.F16]) == 8 * 2.0**-11
    assert tolerance([Kind.F32, Kind.BF16]) == 8 * 2.0**-9
    assert tolerance([Kind.F32, Kind.IQ4_XS]) == 8 * 2.0**-8
