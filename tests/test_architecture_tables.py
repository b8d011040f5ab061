"""The tables against what the gguf package knows of llama.cpp, and against themselves."""

import re
from collections.abc import Mapping
from dataclasses import FrozenInstanceError

import pytest
from gguf.constants import MODEL_ARCH_NAMES, MODEL_TENSORS, TENSOR_NAMES, Keys

from ggufreap.architecture.catalog import ANY_WIDTH, ARCHITECTURES, EXPERT_WIDTH, Architecture, SharedWidth
from ggufreap.architecture.metadata import KNOWN_EXPERT_KEYS, OTHER_ARRAYS, PER_BLOCK_ARRAYS, REFUSED_IF_SET
from ggufreap.architecture.nodes import STREAM
from ggufreap.architecture.roles import ROLES, Handling, may_hold_experts, role_of

BLOCK = "blk.{bid}."

# Names that are not a stem by themselves: template without "blk.{bid}." -> the stem llama.cpp loads.
WHOLE_STEMS = {
    "ffn": "ffn.act.scales",  # MPT's activation scales; the checkpoint's own name goes on behind the template
    "exp_probs_b": "exp_probs_b.bias",  # a bias without a weight
    "exp_probs_b_vl": "exp_probs_b_vl.bias",
}
# Architectures to which gguf gives expert tensors -> why llama.cpp has no routed experts there.
NO_EXPERTS = {
    "clip": "V_ENC_MSFA_EXP is the expansion of a vision encoder, not an expert",
    "deci": "listed like llama, but llama_model_deci creates no expert tensors",
}
TEMPLATES = sorted({name.removeprefix(BLOCK) for name in TENSOR_NAMES.values() if name.startswith(BLOCK)})


def matches(stem: str) -> list[str]:
    return [role.name for role in ROLES if re.fullmatch(role.pattern, stem)]


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_known_block_tensor_has_exactly_one_role(template: str) -> None:
    stem = WHOLE_STEMS.get(template, f"{template}.weight")
    assert len(matches(stem)) == 1, (stem, matches(stem))
    for suffix in ("", ".weight", ".bias", ".scale", ".input_scale"):
        assert len(matches(template + suffix)) <= 1, template + suffix


# Those of vision and audio projectors and of speech decoders, which lie in files of their own.
ELSEWHERE = ("v.", "a.", "mm.", "mm_", "resampler.", "s.")
WITHOUT_BLOCK = sorted(name for name in TENSOR_NAMES.values() if "{bid}" not in name and not name.startswith(ELSEWHERE))


@pytest.mark.parametrize("template", WITHOUT_BLOCK)
def test_every_known_tensor_outside_the_blocks_is_known_here(template: str) -> None:
    assert not may_hold_experts(f"{template}.weight", (16,), 16)
    assert may_hold_experts(f"other.{template}.weight", (16,), 16)


@pytest.mark.parametrize(
    ("stem", "role"),
    [
        ("ffn_gate_inp.weight", "router"),
        ("ffn_gate_inp.bias", "router bias"),
        ("ffn_gate_inp.scale", "router input scale"),
        ("ffn_gate_inp_shexp.weight", "shared expert gate"),
        ("exp_probs_b", "selection bias"),
        ("exp_probs_b.bias", "selection bias"),
        ("exp_probs_b_vl.bias", "selection bias for images"),
        ("ffn_gate_up_exps.weight", "expert weights"),
        ("ffn_down_exps.bias", "expert biases"),
        ("ffn_down_exps.scale", "expert output scales"),
        ("ffn_up_exps.input_scale", "expert input scales"),
        ("ffn_up_shexp.weight", "shared expert"),
        ("ffn_norm_exps.weight", "expert input norm"),
        ("ffn_latent_down.weight", "latent projection"),
        ("ffn_routed_norm.weight", "latent projection"),
        ("ffn_gate_tid2eid.weight", "hash routing table"),
        ("ffn_up_chexps.weight", "chunk experts"),
        ("ffn_down.7.weight", "experts in separate tensors"),
        ("ffn_down.weight", "dense feed-forward"),
        ("ffn_down.bias", "dense feed-forward"),
        ("ffn_up.lora_a", "embedded adapters"),
        ("ffn_norm", "norms"),
        ("post_ffw_norm_1.weight", "norms"),
        ("post_norm.weight", "per-layer embeddings"),
        ("ple_norm_key.weight", "per-layer embeddings"),
        ("attn_q.bias", "attention"),
        ("attn_output.input_scale", "attention"),
        ("attn_kv_a_mqa.weight", "attention"),
        ("attn_conv_base", "draft convolutions"),
        ("indexer.k_norm.bias", "attention indexer"),
        ("indexer_compressor_ape.weight", "attention compressor"),
        ("ssm_a", "state space"),
        ("ssm_dt.bias", "state space"),
        ("ssm_conv1d_q.weight", "state space"),
        ("shortconv.in_proj.weight", "short convolution"),
        ("hc_ffn_inject.weight", "hyper-connections"),
        ("nextn.eh_proj.weight", "next-token prediction"),
        ("nextn.eh_proj.scale", "next-token prediction"),
        ("altup_router.weight", "alternating updates"),
        ("vis_gate.weight", "vision branch"),
        ("time_mix_r_k.weight", "time and channel mix"),
    ],
)
def test_roles_by_name(stem: str, role: str) -> None:
    found = role_of(stem)
    assert found is not None
    assert found.name == role
    assert matches(stem) == [role]


@pytest.mark.parametrize(
    "stem",
    [
        "",
        "weight",
        "blk.0.ffn_gate_inp.weight",
        "exp_probs_b.weight",
        "exp_probs_b.bias.weight",
        "exp_probs_b_vl",
        "exp_probs_c.bias",
        "ffn_gate_inp",
        "ffn_gate_inp.zero_point",
        "ffn_gate_inp_2.weight",
        "ffn_gate_inp_vl.weight",
        "ffn_gate_exps",
        "ffn_gate_exps.zero_point",
        "ffn_gate_exps.weight.scale",
        "ffn_gate_exps.weight\n",
        "ffn_gate_exps.lora_a",
        "ffn_foo_exps.weight",
        "ffn_norm_exps.bias",
        "ffn_down_exps_norm.weight",
        "ffn_gate_chexps.scale",
        "ffn_gate_tid2eid",
        "ffn_expert_map.weight",
        "ffn_latent_exps.weight",
        "ffn_gate.x.weight",
        "attn_exps.weight",
        "attn_q_exps.weight",
        "indexer.exps.weight",
        "ssm_in_exps.weight",
        "nextn.ffn_gate_exps.weight",
        "hc_ffn_exps.weight",
        "time_mix_exps.weight",
    ],
)
def test_unknown_tensors_have_no_role(stem: str) -> None:
    assert role_of(stem) is None


def test_what_the_loader_multiplies_by_expert_is_taken() -> None:
    taken = {role.name for role in ROLES if role.handling is Handling.TAKE}
    assert taken == {
        "router",
        "router bias",
        "selection bias",
        "selection bias for images",
        "expert weights",
        "expert biases",
        "expert output scales",
        "expert input scales",
    }


def test_roles_are_well_formed() -> None:
    assert len({role.name for role in ROLES}) == len(ROLES)
    for role in ROLES:
        re.compile(role.pattern)
        assert bool(role.reason) == (role.handling is Handling.REFUSE), role.name


def test_every_architecture_with_expert_tensors_has_a_row() -> None:
    with_experts = {
        MODEL_ARCH_NAMES[arch]
        for arch, tensors in MODEL_TENSORS.items()
        if any(tensor.name.endswith("_EXP") for tensor in tensors)
    }
    assert with_experts
    assert with_experts - NO_EXPERTS.keys() - ARCHITECTURES.keys() == set()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rows_are_well_formed(name: str) -> None:
    row = ARCHITECTURES[name]
    assert row.name == name
    assert row.proven
    assert all(number > 1 and reason for number, reason in row.refuse_counts.items())
    assert isinstance(hash(row), int)


def test_the_exceptions_are_these() -> None:
    rows = ARCHITECTURES.values()
    assert {row.name for row in rows if row.refuse} == {"grovemoe", "refact", "dflash"}
    assert {row.name: set(row.refuse_counts) for row in rows if row.refuse_counts} == {"llama4": {128}}
    assert {row.name for row in rows if row.weighted_input} == {"llama4"}
    assert {row.name for row in rows if not row.causal} == {"llama-embed", "llada-moe", "rnd1", "nomic-bert-moe"}
    assert {row.name for row in rows if row.headless} == {"llama-embed", "nomic-bert-moe"}
    assert {row.name for row in rows if row.mtp_by_tensors or row.mtp_drop_refuse} == {"deepseek4"}
    assert {row.name for row in rows if row.refuse_width} == {"llama4"}
    assert {row.name for row in rows if row.dense_as_wide} == {"jamba", "nomic-bert-moe"}
    assert {row.name for row in rows if row.shared_width is SharedWidth.FALLBACK_EACH} == {"bailingmoe2"}
    assert {row.width_key for row in rows} == {EXPERT_WIDTH, ANY_WIDTH}
    assert {row.name for row in rows if row.stream != STREAM} == {
        "deepseek4",
        "nemotron_h",
        "nemotron_h_moe",
        "nomic-bert-moe",
        "qwen4exp",
        "step35",
    }


def test_every_expert_key_is_known_or_refused() -> None:
    keys = {key.removeprefix("{arch}.") for key in vars(Keys.LLM).values() if isinstance(key, str) and "expert" in key}
    assert keys
    assert keys - KNOWN_EXPERT_KEYS - REFUSED_IF_SET.keys() == set()
    assert not KNOWN_EXPERT_KEYS & REFUSED_IF_SET.keys()
    assert all("expert" in key for key in KNOWN_EXPERT_KEYS)
    assert not PER_BLOCK_ARRAYS & OTHER_ARRAYS


@pytest.mark.parametrize("table", [ARCHITECTURES, REFUSED_IF_SET, ARCHITECTURES["llama4"].refuse_counts])
def test_tables_cannot_be_changed(table: Mapping[object, object]) -> None:
    with pytest.raises(TypeError):
        table[next(iter(table))] = None  # type: ignore[index]


@pytest.mark.parametrize("row", [ROLES[0], ARCHITECTURES["qwen3moe"]])
def test_rows_cannot_be_changed(row: object) -> None:
    with pytest.raises(FrozenInstanceError):
        row.name = ""  # type: ignore[attr-defined]


def test_rows_without_refused_counts_share_an_unchangeable_table() -> None:
    row = Architecture(name="copy")
    assert row.refuse_counts == {}
    with pytest.raises(TypeError):
        row.refuse_counts[8] = ""  # type: ignore[index]
