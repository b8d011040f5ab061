"""The tables of widths against llama.cpp: told the new width by the keys that they name, it sizes nothing else anew."""

import re
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
import tiny_native
from gguf import GGMLQuantizationType as Kind

from ggufreap.architecture.catalog import ARCHITECTURES, EXPERT_WIDTH, SharedWidth
from ggufreap.architecture.layout import bind
from ggufreap.architecture.width import SHARED_WIDTH, Along, along, expert_width, is_shared, resized
from ggufreap.container import GgufFile, open_gguf
from ggufreap.errors import InfeasiblePlan, UnsupportedModel

NAMES = [name for name in (*tiny_native.NATIVE, *tiny_native.VARIANTS) if name not in tiny_native.REFUSED]
REFUSED = {
    "llama4": "its shared expert is exactly as wide as a routed one",
    "nomic-bert-moe": "dense blocks are as wide as experts",
    "nemotron_h_moe-puzzle": "experts of block 2 are 32 neurons wide, those of block 3 64",
}
COUNTED = SharedWidth.COUNTED
NARROW = 24  # of 32, or of 64: neither divides what shared experts have


def expected(name: str, shape: tuple[int, ...], width: int, shared: int) -> tuple[int, ...]:
    """The shape after narrowing."""
    if is_shared(name) and shared:
        return (*shape[:-1], shared) if "down" in name else (shared, *shape[1:])
    match along(name):
        case Along.ROWS:
            return (shape[0], width, *shape[2:])
        case Along.HALVES:
            return (shape[0], 2 * width, *shape[2:])
        case Along.COLUMNS:
            return (*shape[:-1], width)
    return shape


def told(name: str, path: Path, **options: object) -> None:
    """Build a model, and ask llama.cpp for the tensors of the same metadata with the new width."""
    file = open_gguf(tiny_native.build(name, path / "model.gguf", **options))
    layout = bind(file)
    found = resized(file, layout, NARROW)
    mtp = bool(options.get("mtp"))
    arch, row = tiny_native.metadata_of(name, mtp=mtp, overrides=options.get("overrides"))
    header = path / "header.gguf"
    shapes = tiny_native.shapes_of(arch, {**row, **found.values}, header, fused=bool(options.get("fused")), scales=True)
    before = {record.name: record.shape for record in file.tensors}
    wanted = {tensor: expected(tensor, shape, NARROW, found.shared) for tensor, shape in before.items()}
    assert {tensor: shapes.get(tensor) for tensor in wanted} == wanted
    assert wanted != before


@pytest.mark.native
@pytest.mark.parametrize("name", [name for name in NAMES if name not in REFUSED])
def test_the_keys_size_the_experts_and_nothing_else(name: str, tmp_path: Path) -> None:
    told(name, tmp_path)


@pytest.mark.native
@pytest.mark.parametrize("name", tiny_native.FUSABLE)
def test_fused_gate_and_up_too(name: str, tmp_path: Path) -> None:
    told(name, tmp_path, fused=True)


@pytest.mark.native
@pytest.mark.parametrize("name", [name for name in tiny_native.MTP if name not in REFUSED])
def test_mtp_blocks_too(name: str, tmp_path: Path) -> None:
    told(name, tmp_path, mtp=True)


FALLBACK = [name for name, row in ARCHITECTURES.items() if row.shared_width.value.startswith("fallback")]


@pytest.mark.native
@pytest.mark.parametrize("name", FALLBACK)
def test_a_shared_expert_without_a_width_of_its_own_gets_one(name: str, tmp_path: Path) -> None:
    told(name, tmp_path, overrides={SHARED_WIDTH: 0})


@pytest.mark.native
@pytest.mark.parametrize("name", [name for name, row in ARCHITECTURES.items() if row.shared_width is COUNTED])
def test_several_shared_experts_stay_as_many_neurons_or_are_filled_up(name: str, tmp_path: Path) -> None:
    told(name, tmp_path, overrides={"expert_shared_count": 3})


@pytest.mark.native
@pytest.mark.parametrize("name", ["qwen2moe", "qwen3moe", "rnd1", "grok", "nemotron_h"])
def test_an_absent_key_is_written(name: str, tmp_path: Path) -> None:
    told(name, tmp_path, overrides={EXPERT_WIDTH: 0, "feed_forward_length": 128})


@pytest.mark.native
@pytest.mark.parametrize("name", ["qwen3moe", "deepseek2"])
def test_an_array_keeps_what_it_says_of_other_blocks(name: str, tmp_path: Path) -> None:
    told(name, tmp_path, overrides={EXPERT_WIDTH: [32, 32, 32], "block_count": 3})


@pytest.mark.parametrize("name", ["jamba", "nomic-bert-moe"])
def test_dense_blocks_that_are_as_wide_stand_in_the_way(name: str, tmp_path: Path) -> None:
    file = two_blocks(tmp_path / "m.gguf", name, dense=True)
    with pytest.raises(UnsupportedModel, match="dense blocks are as wide as experts"):
        expert_width(file, bind(file))
    alone = two_blocks(tmp_path / "n.gguf", name, dense=False)
    assert expert_width(alone, bind(alone)) == 32


def two_blocks(path: Path, name: str, dense: bool) -> GgufFile:
    """The tensors of experts, and where there are `dense` blocks, of one of those; no model for llama.cpp."""
    shapes = {"gate_inp": (8, 16), "up_exps": (8, 32, 16), "down_exps": (8, 16, 32)}
    tensors = {f"blk.0.ffn_{part}.weight": (np.zeros(shape), Kind.F32) for part, shape in shapes.items()}
    if dense:
        tensors["blk.1.ffn_up.weight"] = (np.zeros((32, 16)), Kind.F32)
    counts = {"expert_count": 8, "expert_used_count": 2, "block_count": 2, "feed_forward_length": 32}
    tiny_gguf.write(path, name, {f"{name}.{key}": value for key, value in counts.items()}, tensors)
    return open_gguf(path)


@pytest.mark.parametrize("width", [0, 33])
def test_widths_that_are_none(width: int, tmp_path: Path) -> None:
    file = two_blocks(tmp_path / "m.gguf", "llama", dense=True)
    with pytest.raises(InfeasiblePlan, match=f"{width} of 32 neurons"):
        resized(file, bind(file), width)


def test_a_key_that_says_something_else_is_not_believed(tmp_path: Path) -> None:
    file = open_gguf(
        tiny_gguf.qwen3moe(tmp_path / "m.gguf", n_ff=64, metadata={"qwen3moe.expert_feed_forward_length": 32})
    )
    with pytest.raises(UnsupportedModel, match="expert_feed_forward_length is 32, but its experts are 64"):
        expert_width(file, bind(file))


@pytest.mark.native
@pytest.mark.parametrize("name", REFUSED)
def test_others_are_refused_with_their_reason(name: str, tmp_path: Path) -> None:
    file = open_gguf(tiny_native.build(name, tmp_path / "model.gguf"))
    with pytest.raises(UnsupportedModel, match=re.escape(REFUSED[name])):
        expert_width(file, bind(file))
