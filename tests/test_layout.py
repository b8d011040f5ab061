"""Binding the tables to a file: what is refused and why, and what a model's own metadata decide."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import asked
import numpy as np
import pytest
import tiny_gguf
import tiny_layouts
from tiny_gguf import Model

from ggufreap import verbs
from ggufreap.architecture.layout import MoeLayout, bind
from ggufreap.container import open_gguf
from ggufreap.errors import FormatError, GgufReapError, InfeasiblePlan, UnsupportedModel

SMALL = {"n_embd": 32, "n_ff": 32, "n_vocab": 264, "head": 16}


def layout_of(path: Path, *changes: tiny_gguf.Change, **options: Any) -> MoeLayout:
    """The layout of a tiny model; `path` is a folder."""
    return bind(open_gguf(tiny_gguf.qwen3moe(path / "m.gguf", **(SMALL | options), changes=changes)))


def setting(**values: Any) -> tiny_gguf.Change:
    """Set keys of the architecture; None removes one."""

    def change(model: Model) -> None:
        for key, value in values.items():
            key = f"{model.arch}.{key.replace('__', '.')}"
            model.metadata.pop(key, None)
            if value is not None:
                model.metadata[key] = value

    return change


def as_architecture(name: str) -> tiny_gguf.Change:
    def change(model: Model) -> None:
        model.metadata = {key.replace("qwen3moe.", f"{name}."): value for key, value in model.metadata.items()}
        model.arch = name

    return change


def without(tensor: str) -> tiny_gguf.Change:
    return lambda model: model.tensors.pop(tensor)


def adding(tensor: str, *shape: int) -> tiny_gguf.Change:
    return lambda model: model.add(tensor, *shape)


def no_experts(model: Model) -> None:
    model.tensors = {name: tensor for name, tensor in model.tensors.items() if "_exps" not in name}
    for block in range(model.n_block):
        model.tensors.pop(f"blk.{block}.ffn_gate_inp.weight")


def fewer_slabs(model: Model) -> None:
    weights, kind = model.tensors["blk.1.ffn_up_exps.weight"]
    model.tensors["blk.1.ffn_up_exps.weight"] = weights[:15], kind


GROUPED = {"expert_group_count": 4, "expert_group_used_count": 2}

UNSUPPORTED: dict[str, tuple[tuple[tiny_gguf.Change, ...], str]] = {
    "unknown architecture and tensor": (
        (as_architecture("qwen9moe"), adding("blk.1.ffn_moon_exps.weight", 16, 2, 2)),
        "blk.1.ffn_moon_exps.weight is in no table, nor is the architecture 'qwen9moe'; .*not guessed",
    ),
    "unknown architecture and experts outside": (
        (as_architecture("qwen9moe"), adding("moon_exps.weight", 16, 2)),
        "tensor moon_exps.weight is in no table, nor is",
    ),
    "unknown architecture and key": (
        (as_architecture("qwen9moe"), lambda model: model.metadata.update({"qwen9moe.expert_moons": 1})),
        "qwen9moe.expert_moons is in no table; unknown keys are refused",
    ),
    "unknown architecture with a hash table": (
        (as_architecture("qwen9moe"), adding("blk.0.ffn_gate_tid2eid.weight", 16, 2)),
        r"ffn_gate_tid2eid.weight \(hash routing table\): its values are the numbers of experts",
    ),
    "refused architecture": ((as_architecture("refact"),), "refact: llama.cpp loads the experts .* dense network"),
    "draft model": ((as_architecture("dflash"),), "dflash: a draft model"),
    "no expert count": ((setting(expert_count=None),), "a dense qwen3moe model: no routed experts"),
    "expert count 0": ((setting(expert_count=0),), "a dense qwen3moe model: no routed experts"),
    "no expert tensors": ((no_experts,), r"no block holds ffn_\*_exps tensors"),
    "unknown key": ((setting(expert_moons=1),), "qwen3moe.expert_moons is in no table; unknown keys are refused"),
    "chunk experts": ((setting(experts_per_group=2),), "qwen3moe.experts_per_group = 2: .*Not prunable"),
    "unknown tensor": (
        (adding("blk.0.ffn_moon_exps.weight", 16, 2, 2),),
        r"blk.0.ffn_moon_exps.weight with shape \[16, 2, 2\] is in no table and may belong to the 16 experts",
    ),
    "experts of another program's MTP block": (
        (adding("mtp.layers.0.mlp.moons.down_proj.weight", 16, 2, 2),),
        r"mtp.layers.0.mlp.moons.down_proj.weight with shape .* may belong to the 16 experts",
    ),
    "experts on another axis": ((adding("v.blk.0.mixed.weight", 3, 16),), "v.blk.0.mixed.weight with shape"),
    "experts by name alone": ((adding("mtp.shared_expert.weight", 3, 5),), "mtp.shared_expert.weight with shape"),
    "experts of a block that has none": ((adding("blk.7.moon", 16),), "blk.7.moon with shape"),
    "unknown tensor without experts": ((adding("blk.0.moon", 2),), "blk.0.moon of a MoE block is in no table"),
    "hash table": (
        (adding("blk.0.ffn_gate_tid2eid.weight", 16, 2),),
        r"ffn_gate_tid2eid.weight \(hash routing table\): its values are the numbers of experts",
    ),
    "experts apart": ((tiny_layouts.separate_experts,), r"blk.0.ffn_gate.0.weight \(.* separate tensors\): one tensor"),
    "all blocks are MTP": ((setting(nextn_predict_layers=2),), "no block holds"),
}
DAMAGED: dict[str, tuple[tuple[tiny_gguf.Change, ...], str]] = {
    "expert count as text": ((setting(expert_count="16"),), "expert_count is '16', not a count; the file is damaged"),
    "expert count below zero": ((setting(expert_count=np.int32(-16)),), "expert_count is -16, not a count"),
    "too many experts": ((setting(expert_count=1025),), "expert_count is 1025, llama.cpp allows 1024"),
    "too many blocks": ((setting(block_count=2**32 - 1),), "block_count is 4294967295, llama.cpp allows 512"),
    "too few blocks": ((setting(block_count=1),), "blk.1.* but qwen3moe.block_count is 1; it is damaged"),
    "another count": ((setting(expert_count=15),), r"shape \[16, 32\], its first axis should count 15 experts"),
    "one slab lost": ((fewer_slabs,), r"blk.1.ffn_up_exps.weight has shape \[15, 32, 32\], .* 16 experts"),
    "no router": ((without("blk.1.ffn_gate_inp.weight"),), "block 1 has experts but no ffn_gate_inp.weight"),
    "no down": ((without("blk.0.ffn_down_exps.weight"),), "block 0 has experts but no ffn_down_exps.weight"),
    "uses none": ((setting(expert_used_count=0),), "block 0 uses 0 of 16 experts"),
    "uses an unsaid number": ((setting(expert_used_count=None),), "block 0 uses 0 of 16 experts"),
    "uses more than there are": ((setting(expert_used_count=17),), "block 0 uses 17 of 16 experts"),
    "a block that uses none": ((setting(expert_used_count=[4, 0]),), "block 1 uses 0 of 16 experts"),
    "a used count too few": ((setting(expert_used_count=[4]),), "not one count for each of 2 blocks"),
    "used counts in words": ((setting(expert_used_count=["4", "4"]),), "not one count for each of 2 blocks"),
    "groups of unequal size": (
        (setting(expert_group_count=3, expert_group_used_count=1),),
        "16 experts in 3 groups of which 1 are used; groups must be equal",
    ),
    "all groups used": ((setting(expert_group_count=4, expert_group_used_count=4),), "4 groups of which 4 are used"),
    "no group used": ((setting(expert_group_count=4),), "4 groups of which 0 are used"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_no_table_covers_is_refused(tmp_path: Path, case: str) -> None:
    changes, message = UNSUPPORTED[case]
    with pytest.raises(UnsupportedModel, match=message) as caught:
        layout_of(tmp_path, *changes)
    one_line_about(tmp_path, caught.value)


@pytest.mark.parametrize("case", DAMAGED)
def test_what_contradicts_itself_is_refused(tmp_path: Path, case: str) -> None:
    changes, message = DAMAGED[case]
    with pytest.raises(FormatError, match=message) as caught:
        layout_of(tmp_path, *changes)
    one_line_about(tmp_path, caught.value)


def one_line_about(folder: Path, error: GgufReapError) -> None:
    assert str(error).startswith(f"{folder / 'm.gguf'}: ")
    assert "\n" not in str(error)


def test_a_model_needs_more_than_one_expert(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="a single expert: nothing to choose from"):
        layout_of(tmp_path, n_expert=1, n_used=1)


def test_groups_too_small_for_the_router_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InfeasiblePlan, match="1 experts in each of 16 groups: the router scores a group by its best two"
    ):
        layout_of(tmp_path, setting(expert_group_count=16, expert_group_used_count=8))


def test_a_file_without_an_architecture_is_no_model(tmp_path: Path) -> None:
    path = tiny_gguf.qwen3moe(tmp_path / "m.gguf", **SMALL)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"general.architecture", b"general.architectura"))
    with pytest.raises(FormatError, match=r"general\.architecture is missing; this is not a model file"):
        bind(open_gguf(path))


def test_an_unknown_architecture_of_known_parts_is_bound_unproven(tmp_path: Path) -> None:
    known, unknown = layout_of(tmp_path), layout_of(tmp_path, as_architecture("qwen9moe"))
    assert (known.proven, unknown.proven) == (True, False)
    assert replace(unknown, architecture=known.architecture) == known
    assert unknown.nodes == known.nodes


def test_of_an_unknown_architecture_no_block_may_hold_the_unknown(tmp_path: Path) -> None:
    dense = (setting(block_count=3), adding("blk.2.moon", 2))
    layout_of(tmp_path, *dense)
    with pytest.raises(UnsupportedModel, match=r"blk\.2\.moon is in no table, nor is"):
        layout_of(tmp_path, *dense, as_architecture("qwen9moe"))


def test_an_unknown_tensor_outside_the_moe_blocks_is_copied(tmp_path: Path) -> None:
    """Where nothing hints at experts; a known one may even be as long as there are experts."""
    foreign = adding("moon.weight", 3), adding("blk.1x.moon", 3), adding("rope_freqs.weight", 16)
    assert len(layout_of(tmp_path, *foreign).blocks) == 2


# What the metadata decide.


def test_the_per_expert_tensors_of_a_block(tmp_path: Path) -> None:
    layout = layout_of(tmp_path, tiny_layouts.biased, tiny_layouts.scaled, tiny_layouts.selection_biased)
    found = {name.removeprefix("blk.1.") for name, block in layout.per_expert.items() if block == 1}
    parts = [f"ffn_{part}_exps" for part in ("gate", "up", "down")]
    assert found == {
        "ffn_gate_inp.weight",
        "ffn_gate_inp.bias",
        "exp_probs_b.bias",
        *(f"{part}.{suffix}" for part in parts for suffix in ("weight", "bias", "scale", "input_scale")),
    }
    assert [block.outputs for block in layout.nodes.blocks] == [("ffn_moe_down_biased",)] * 2


@pytest.mark.parametrize("router_scale", [16, 32])
def test_the_scale_of_a_router_is_not_per_expert_whatever_its_length(tmp_path: Path, router_scale: int) -> None:
    layout = layout_of(tmp_path, tiny_layouts.router_scaled, n_embd=router_scale)
    assert not any("ffn_gate_inp.scale" in name for name in layout.per_expert)


def test_dense_blocks_lead_the_others(tmp_path: Path) -> None:
    def dense_first(model: Model) -> None:
        for part, shape in (("gate", (32, 32)), ("up", (32, 32)), ("down", (32, 32))):
            model.tensors.pop(f"blk.0.ffn_{part}_exps.weight")
            model.add(f"blk.0.ffn_{part}.weight", *shape)
        model.tensors.pop("blk.0.ffn_gate_inp.weight")

    layout = layout_of(tmp_path, dense_first, n_block=3)
    assert [block.index for block in layout.blocks] == [1, 2]
    assert layout.n_block == 3


def test_every_block_may_use_another_number_of_experts(tmp_path: Path) -> None:
    layout = layout_of(tmp_path, setting(expert_used_count=[2, 6]))
    assert [block.n_used for block in layout.blocks] == [2, 6]
    assert [block.n_used for block in layout.nodes.blocks] == [2, 6]
    assert layout.n_used == 6
    layout.check_keep(6)
    with pytest.raises(InfeasiblePlan, match="picks 6 per token"):
        layout.check_keep(5)


@pytest.mark.parametrize(("value", "causal"), [(None, True), (True, True), (False, False)])
def test_attention_causal_decides(tmp_path: Path, value: bool | None, causal: bool) -> None:
    layout = layout_of(tmp_path, setting(attention__causal=value))
    assert layout.causal is causal
    assert layout.nodes.causal is causal


def test_a_diffusion_model_is_not_causal_whatever_its_file_says(tmp_path: Path) -> None:
    assert not layout_of(tmp_path, as_architecture("llada-moe"), setting(attention__causal=True)).causal


def test_mtp_blocks_are_the_last_and_are_not_watched(tmp_path: Path) -> None:
    layout = layout_of(tmp_path, tiny_layouts.with_mtp)
    assert (layout.n_block, layout.n_trunk) == (3, 2)
    assert [block.mtp for block in layout.blocks] == [False, False, True]
    assert [block.index for block in layout.trunk] == [0, 1]
    assert [block.index for block in layout.nodes.blocks] == [0, 1]
    assert any(name.startswith("blk.2.") for name in layout.per_expert)


@pytest.mark.parametrize("declared", [0, 1])
def test_deepseek4_counts_mtp_blocks_by_their_tensors(tmp_path: Path, declared: int) -> None:
    # llama.cpp takes declared blocks without nextn.eh_proj for ordinary ones (deepseek4.cpp).
    plain = layout_of(tmp_path, as_architecture("deepseek4"), setting(nextn_predict_layers=declared))
    assert plain.n_trunk == 2
    layout = layout_of(
        tmp_path, tiny_layouts.with_mtp, as_architecture("deepseek4"), setting(nextn_predict_layers=declared)
    )
    assert layout.n_trunk == 3 - declared


@pytest.mark.parametrize("count", [None, 0, 1])
def test_one_group_is_no_group(tmp_path: Path, count: int | None) -> None:
    layout = layout_of(tmp_path, setting(expert_group_count=count, expert_group_used_count=count))
    assert (layout.n_group, layout.group_size) == (1, 16)
    layout.check_keep(5)


def test_groups_lose_equally_many_and_keep_enough(tmp_path: Path) -> None:
    layout = layout_of(tmp_path, setting(**GROUPED), n_expert=32, n_used=6)
    assert (layout.n_group, layout.n_group_used, layout.group_size) == (4, 2, 8)
    for n_keep in (12, 16, 28, 32):
        layout.check_keep(n_keep)
    for n_keep, message in ((30, "keep a multiple of 4"), (8, "keep at least 12 in all"), (33, "keep 2 to 32")):
        with pytest.raises(InfeasiblePlan, match=message):
            layout.check_keep(n_keep)


@pytest.mark.parametrize(("name", "weighted"), [("llama4", True), ("qwen3moe", False)])
def test_the_side_of_the_weight_is_the_architecture_s(tmp_path: Path, name: str, weighted: bool) -> None:
    assert layout_of(tmp_path, as_architecture(name)).nodes.weighted_input is weighted


# Whatever type a value has.

VALUES = ["", "many", np.int8(16), -1, 2**31, 2**62, 0.5, float("nan"), True, [], ["a", "b"], [1, 2], [1, 2, 3, 4, 5]]
KEYS = [
    *(
        f"qwen3moe.{key}"
        for key in (
            "expert_count",
            "expert_used_count",
            "expert_group_count",
            "expert_group_used_count",
            "expert_shared_count",
            "nextn_predict_layers",
            "block_count",
            "attention.causal",
        )
    ),
    *(
        f"general.{key}"
        for key in ("architecture", "name", "finetune", "tags", "size_label", "parameter_count", "author", "file_type")
    ),
    "split.count",
    "split.no",
]


@pytest.mark.parametrize("key", KEYS)
def test_a_value_of_any_type_is_used_or_refused_in_one_line(tmp_path: Path, key: str) -> None:
    for index, value in enumerate(VALUES):
        stored = np.int64(value) if type(value) is int else value
        path = tmp_path / f"{index}.gguf"
        if key == "general.architecture":
            write_architecture(path, stored)
        else:
            tiny_gguf.qwen3moe(path, **SMALL, metadata={key: stored})
        out = tmp_path / "out.gguf"
        refusal = refusal_of_pruning(path, out)
        if refusal is None:
            assert bind(open_gguf(out)).n_expert == 8
            out.unlink()
        else:
            assert "\n" not in refusal
            assert not out.exists()


def refusal_of_pruning(path: Path, out: Path) -> str | None:
    try:
        assert verbs.inspect(path).n_expert == 16
        verbs.apply(path, asked.plan(path, method="random", keep=8, mtp="drop"), out)
    except GgufReapError as error:
        return str(error)
    return None


def write_architecture(path: Path, value: Any) -> None:
    """GGUFWriter writes the architecture itself, so it is replaced by an entry of a name as long."""
    tiny_gguf.qwen3moe(path, **SMALL, metadata={"general.architectura": value})
    data = path.read_bytes()
    swapped = {b"general.architecture": b"general.arch1tecture", b"general.architectura": b"general.architecture"}
    for old, new in swapped.items():
        data = data.replace(old, new)
    path.write_bytes(data)
