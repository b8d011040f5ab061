"""What pruning does to each tensor of a transformer block, by the tensor's name.

A *stem* is a tensor name without its ``blk.N.`` prefix, for example ``ffn_gate_exps.weight``. Only block tensors have
stems. A tensor outside the blocks that llama.cpp knows (``token_embd``, ``output``, ``rope_freqs``, ...) is copied: the
templates without a block number in llama-arch.cpp:440-714 name nothing that has one entry per expert. Any other is
copied only where nothing about it hints at experts (`may_hold_experts`).

A stem that matches no row must be refused. A per-expert tensor the table does not know would otherwise be copied whole
and pair the wrong values with the surviving experts; llama.cpp notices a wrong shape (llama-model-loader.cpp:880) and
a tensor nobody asked for (llama-model-loader.cpp:1398), but not values in the wrong order.

Shapes, and where llama.cpp creates and uses the tensors of each row, stand in facts/tensors.toml under the row's name.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache


class Handling(Enum):
    """What happens to a tensor when experts are removed."""

    TAKE = "take"
    """Keep the chosen entries of axis 0 in numpy order, which is the last ggml dimension."""
    COPY = "copy"
    """Write it as it is."""
    REFUSE = "refuse"
    """Its meaning depends on the removed experts in a way that slicing cannot express."""


@dataclass(frozen=True)
class TensorRole:
    """One family of block tensors that are handled alike."""

    name: str
    pattern: str
    """Regular expression that must match the whole stem."""
    handling: Handling
    reason: str = ""
    """For REFUSE: why, and the way out."""


_ATTENTION = (
    "norm|norm_2|q|k|v|qkv|output|gate|q_norm|k_norm|output_norm|sub_norm|rot_embd|sinks|res_score|"
    "q_a|q_b|q_a_norm|kv|kv_a_mqa|kv_a_norm|kv_b|k_b|v_b|output_a|output_b"
)
_STATE_SPACE = (
    "in|out|x|a|d|dt|norm|dt_norm|b_norm|c_norm|conv1d|conv1d_q|conv1d_k|conv1d_v|alpha|beta|ba|f_a|f_b|g|g_a|g_b"
)
_TIME_MIX = (
    "[av][012]|w[012]|g[12]|k_k|k_a|r_k|lerp_[xwkvrg]|lerp_fused|first|decay|decay_w[12]|key|value|receptance|gate|"
    "ln|output"
)

ROLES: tuple[TensorRole, ...] = (
    # One entry per routed expert.
    TensorRole("router", r"ffn_gate_inp\.weight", Handling.TAKE),
    TensorRole("router bias", r"ffn_gate_inp\.bias", Handling.TAKE),
    TensorRole("selection bias", r"exp_probs_b(\.bias)?", Handling.TAKE),
    TensorRole("selection bias for images", r"exp_probs_b_vl\.bias", Handling.TAKE),
    TensorRole("expert weights", r"ffn_(gate|up|down|gate_up)_exps\.weight", Handling.TAKE),
    TensorRole("expert biases", r"ffn_(gate|up|down|gate_up)_exps\.bias", Handling.TAKE),
    TensorRole("expert output scales", r"ffn_(gate|up|down|gate_up)_exps\.scale", Handling.TAKE),
    TensorRole("expert input scales", r"ffn_(gate|up|down|gate_up)_exps\.input_scale", Handling.TAKE),
    # The experts in a form that slicing cannot follow.
    TensorRole(
        "hash routing table",
        r"ffn_gate_tid2eid\.weight",
        Handling.REFUSE,
        "its values are the numbers of experts (deepseek4.cpp:158, 1290). Those of removed experts have no successor, "
        "so the file cannot be pruned",
    ),
    TensorRole(
        "chunk experts",
        r"ffn_(gate|up|down)_chexps\.weight",
        Handling.REFUSE,
        "they are chosen by dividing the number of a routed expert (llama-graph.cpp:2131), so removing experts "
        "re-pairs them; GroveMoE cannot be pruned",
    ),
    TensorRole(
        "experts in separate tensors",
        r"ffn_(gate|up|down)\.\d+\.(weight|bias|scale|input_scale)",
        Handling.REFUSE,
        "one tensor per expert, as before April 2024, is no longer loaded by llama.cpp. Convert the original model "
        "again with a current convert_hf_to_gguf.py, which stacks the experts, or use a newer GGUF",
    ),
    # The rest of a MoE feed-forward network.
    TensorRole("router input scale", r"ffn_gate_inp\.scale", Handling.COPY),
    TensorRole("expert input norm", r"ffn_norm_exps\.weight", Handling.COPY),
    TensorRole("latent projection", r"ffn_(latent_(down|up)|routed_(down|up|norm))\.weight", Handling.COPY),
    TensorRole("shared expert", r"ffn_(gate|up|down)_shexp\.(weight|scale|input_scale)", Handling.COPY),
    TensorRole("shared expert gate", r"ffn_gate_inp_shexp\.weight", Handling.COPY),
    TensorRole("dense feed-forward", r"ffn_(gate|up|down)\.(weight|bias|scale|input_scale)", Handling.COPY),
    TensorRole("feed-forward extras", r"ffn_(sub_norm|res_score)\.weight|ffn\.act\.scales", Handling.COPY),
    # Everything around it.
    TensorRole(
        "norms",
        r"(ffn_norm|layer_output_norm)(\.(weight|bias))?"
        r"|(post_attention_norm|post_ffw_norm|post_ffw_norm_1|post_ffw_norm_2|pre_ffw_norm_2)(\.weight)?",
        Handling.COPY,
    ),
    TensorRole("layer scale", r"layer_output_scale\.weight", Handling.COPY),
    TensorRole("attention", rf"attn_({_ATTENTION})\.(weight|bias|scale|input_scale)", Handling.COPY),
    TensorRole("attention compressor", r"(attn|indexer)_compressor_(kv|gate|ape|norm)\.weight", Handling.COPY),
    TensorRole(
        "attention indexer",
        r"indexer\.(k_norm|proj|attn_k|attn_q_b|q_proj|k_proj|q_norm)\.(weight|bias)",
        Handling.COPY,
    ),
    TensorRole("state space", rf"ssm_({_STATE_SPACE})(\.(weight|bias|scale|input_scale))?", Handling.COPY),
    TensorRole("short convolution", r"shortconv\.(conv|in_proj|out_proj)\.weight", Handling.COPY),
    TensorRole("hyper-connections", r"hc_(attn|ffn)_(fn|base|scale|norm|down|up|inject)\.weight", Handling.COPY),
    TensorRole(
        "per-layer embeddings",
        r"(inp_gate|proj|post_norm)\.weight|ple_(key|value|norm_key|norm_query|norm_conv|conv1d)\.weight",
        Handling.COPY,
    ),
    TensorRole(
        "next-token prediction",
        r"nextn\.(eh_proj|embed_tokens|enorm|hnorm|shared_head_head|shared_head_norm)\.(weight|scale|input_scale)",
        Handling.COPY,
    ),
    # Blocks of architectures without routed experts.
    TensorRole(
        "alternating updates",
        r"(altup_(correct_coef|correct_scale|predict_coef|router|router_norm)|laurel_(l|r|post_norm))\.weight",
        Handling.COPY,
    ),
    TensorRole("vision branch", r"vis_(attn_qkv|attn_output|gate|down|up)\.weight", Handling.COPY),
    TensorRole(
        "time and channel mix",
        rf"(time_mix_({_TIME_MIX})|channel_mix_(lerp_k|lerp_r|key|value|receptance))(\.(weight|bias))?",
        Handling.COPY,
    ),
    TensorRole("embedded adapters", r"(attn_(q|k|v|output)|ffn_(gate|up|down))\.lora_[ab]", Handling.COPY),
    TensorRole("draft convolutions", r"(attn|ffn)_conv_(base|proj\.weight)", Handling.COPY),
)

# The templates without a block number in llama-arch.cpp:440-714.
OUTSIDE = re.compile(
    r"(token_embd|token_embd_norm|token_types|position_embd|output|output_norm|output_res_score|rope_freqs"
    r"|rope_factors_(long|short)|output_hc_(fn|base|scale|norm|down|up)|hrm\.z_l_init|cls|cls\.(output|norm)"
    r"|(enc|dec)\.output_norm|per_layer_(token_embd|model_proj|proj_norm)|altup_(unembd_)?proj|dense_[23]"
    r"|nextn\.(pre|post)_projection|conv1d|convnext\.\d+\.(dw|norm|pw1|pw2|gamma)"
    r"|posnet\.\d+\.(conv1|conv2|norm|norm1|norm2|attn_(norm|q|k|v|output))|masked_embd_(centroids|ordering)|fc|d2t"
    r"|markov_w[12]|conf_proj|selector_(predecessor|successor|hidden))(\.(weight|bias|scale|input_scale))?"
)
_SMELL = re.compile(r"exp|moe|router|gate_inp", re.IGNORECASE)

_COMPILED = tuple((re.compile(role.pattern), role) for role in ROLES)


@cache
def role_of(stem: str) -> TensorRole | None:
    """Return the role of the block tensor with this stem, or None if llama.cpp is not known to load such a tensor."""
    for pattern, role in _COMPILED:
        if pattern.fullmatch(stem):
            return role
    return None


def may_hold_experts(name: str, shape: Sequence[int], n_expert: int) -> bool:
    """Whether a tensor that no row is about could have one entry per expert: by its name, or by any of its axes.

    What llama.cpp knows outside of the blocks does not. Foreign names are those of other programs' bundles, such as
    `mtp.layers.0.mlp.experts.down_proj.weight`.
    """
    return OUTSIDE.fullmatch(name) is None and (n_expert in shape or _SMELL.search(name) is not None)
