"""What pruning does to each tensor of a transformer block, by the tensor's name.

Every row is a fact about llama.cpp with the place to look it up: ``file.cpp:line`` is ``src/models/file.cpp`` if there
is one, else ``src/file.cpp``, of the tree inside llama-cpp-python 0.3.36 (upstream commit 0c1e57098bba).

A *stem* is a tensor name without its ``blk.N.`` prefix, for example ``ffn_gate_exps.weight``. Only block tensors have
stems. A tensor outside the blocks (``token_embd``, ``output``, ``output_norm``, ``rope_freqs``, ``output_hc_*``,
``per_layer_token_embd``, ...) is always copied: the templates without a block number in llama-arch.cpp:440-714 name
nothing that has one entry per expert.

A stem that matches no row must be refused. A per-expert tensor the table does not know would otherwise be copied whole
and pair the wrong values with the surviving experts; llama.cpp notices a wrong shape (llama-model-loader.cpp:880) and
a tensor nobody asked for (llama-model-loader.cpp:1398), but not values in the wrong order.
"""

import re
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
    note: str
    """Why, and where llama.cpp says so. For REFUSE also the way out."""

    @property
    def per_expert(self) -> bool:
        """Whether axis 0 in numpy order must be exactly ``expert_count`` long; check it before slicing."""
        return self.handling is Handling.TAKE


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
    TensorRole(
        "router",
        r"ffn_gate_inp\.weight",
        Handling.TAKE,
        "[n_embd, n_expert]; llama-arch.cpp:452, created by every MoE architecture, e.g. qwen3moe.cpp:40",
    ),
    TensorRole(
        "router bias",
        r"ffn_gate_inp\.bias",
        Handling.TAKE,
        "[n_expert], gpt-oss only; openai-moe.cpp:51, added to the logits in llama-graph.cpp:2048",
    ),
    TensorRole(
        "selection bias",
        r"exp_probs_b(\.bias)?",
        Handling.TAKE,
        "[n_expert], added for the selection only (llama-graph.cpp:2080); e.g. deepseek2.cpp:132. hy_v3 has no '.bias' "
        "suffix (hy-v3.cpp:68)",
    ),
    TensorRole(
        "selection bias for images",
        r"exp_probs_b_vl\.bias",
        Handling.TAKE,
        "[n_expert], replaces the selection bias for embedding input; deepseek4.cpp:163, used in deepseek4.cpp:1287",
    ),
    TensorRole(
        "expert weights",
        r"ffn_(gate|up|down|gate_up)_exps\.weight",
        Handling.TAKE,
        "[in, out, n_expert]; llama-arch.cpp:460-463. In gate_up the first half of the rows is gate, the second up "
        "(llama-graph.cpp:2197-2200); created by llama-model.cpp:3389 or gemma4.cpp:123",
    ),
    TensorRole(
        "expert biases",
        r"ffn_(gate|up|down|gate_up)_exps\.bias",
        Handling.TAKE,
        "[out, n_expert], gpt-oss only; openai-moe.cpp:52-54. No architecture creates one for gate_up, which the graph "
        "could add (llama-graph.cpp:2192)",
    ),
    TensorRole(
        "expert output scales",
        r"ffn_(gate|up|down|gate_up)_exps\.scale",
        Handling.TAKE,
        "[n_expert]; llama-model.cpp:1680-1688, gathered by expert id in llama-graph.cpp:1566-1572. Not loaded for "
        "gate_up",
    ),
    TensorRole(
        "expert input scales",
        r"ffn_(gate|up|down|gate_up)_exps\.input_scale",
        Handling.TAKE,
        "[n_expert]; llama-model.cpp:1738-1746. Not loaded for gate_up",
    ),
    # The experts in a form that slicing cannot follow.
    TensorRole(
        "hash routing table",
        r"ffn_gate_tid2eid\.weight",
        Handling.REFUSE,
        "[n_expert_used, n_vocab] whose values are expert ids: deepseek4.cpp:158, taken as the selection in "
        "deepseek4.cpp:1290. The ids of removed experts have no successor, so the file cannot be pruned",
    ),
    TensorRole(
        "chunk experts",
        r"ffn_(gate|up|down)_chexps\.weight",
        Handling.REFUSE,
        "[in, out, n_expert / experts_per_group]: grovemoe.cpp:57-59. An adjugate expert is chosen by dividing the id "
        "of a routed expert (llama-graph.cpp:2131), so removing experts re-pairs them; GroveMoE cannot be pruned",
    ),
    TensorRole(
        "experts in separate tensors",
        r"ffn_(gate|up|down)\.\d+\.(weight|bias|scale|input_scale)",
        Handling.REFUSE,
        "one tensor per expert, as before April 2024 (llama.cpp PR 6387); the names survive in llama-arch.cpp:457-459 "
        "but nothing loads them since PR 10026. Convert the original model again with a current convert_hf_to_gguf.py, "
        "which stacks the experts (conversion/llama.py:267-290), or use a newer GGUF; llama-quantize copies tensors "
        "one by one and never stacks them",
    ),
    # The rest of a MoE feed-forward network.
    TensorRole(
        "router input scale",
        r"ffn_gate_inp\.scale",
        Handling.COPY,
        "[n_embd], multiplies the router's input, not per expert; gemma4.cpp:116, gemma4.cpp:320",
    ),
    TensorRole(
        "expert input norm",
        r"ffn_norm_exps\.weight",
        Handling.COPY,
        "[n_embd] in spite of its name; arctic.cpp:45",
    ),
    TensorRole(
        "latent projection",
        r"ffn_(latent_(down|up)|routed_(down|up|norm))\.weight",
        Handling.COPY,
        "between n_embd and the width the experts run at, shared by all; nemotron-h.cpp:122-123, kimi-k3.cpp:155-157",
    ),
    TensorRole(
        "shared expert",
        r"ffn_(gate|up|down)_shexp\.(weight|scale|input_scale)",
        Handling.COPY,
        "always active, not routed; llama-arch.cpp:472-474, scales llama-model.cpp:1669-1677, 1747-1755",
    ),
    TensorRole(
        "shared expert gate",
        r"ffn_gate_inp_shexp\.weight",
        Handling.COPY,
        "[n_embd], one sigmoid for the shared expert; qwen2moe.cpp:54",
    ),
    TensorRole(
        "dense feed-forward",
        r"ffn_(gate|up|down)\.(weight|bias|scale|input_scale)",
        Handling.COPY,
        "dense blocks, and the branch parallel to the experts in grok and gemma4; llama-arch.cpp:454-456, scales "
        "llama-model.cpp:1660-1668, 1729-1737",
    ),
    TensorRole(
        "feed-forward extras",
        r"ffn_(sub_norm|res_score)\.weight|ffn\.act\.scales",
        Handling.COPY,
        "bitnet.cpp:36, kimi-k3.cpp:75, mpt.cpp:59",
    ),
    # Everything around it.
    TensorRole(
        "norms",
        r"(ffn_norm|layer_output_norm)(\.(weight|bias))?"
        r"|(post_attention_norm|post_ffw_norm|post_ffw_norm_1|post_ffw_norm_2|pre_ffw_norm_2)(\.weight)?",
        Handling.COPY,
        "llama-arch.cpp:453, 464, 468-471, 481; some have no suffix (falcon-h1.cpp:96, plamo2.cpp:98, 102)",
    ),
    TensorRole(
        "layer scale",
        r"layer_output_scale\.weight",
        Handling.COPY,
        "llama-arch.cpp:482, gemma4.cpp:92",
    ),
    TensorRole(
        "attention",
        rf"attn_({_ATTENTION})\.(weight|bias|scale|input_scale)",
        Handling.COPY,
        "llama-arch.cpp:446-451, 465-467, 479-483, 517, 525-534, 584-585, 594, 675; scales llama-model.cpp:1640-1657, "
        "1711-1728",
    ),
    TensorRole(
        "attention compressor",
        r"(attn|indexer)_compressor_(kv|gate|ape|norm)\.weight",
        Handling.COPY,
        "llama-arch.cpp:561-564, 694-699; deepseek4.cpp:136-150, glm5-next.cpp:153-154",
    ),
    TensorRole(
        "attention indexer",
        r"indexer\.(k_norm|proj|attn_k|attn_q_b|q_proj|k_proj|q_norm)\.(weight|bias)",
        Handling.COPY,
        "llama-arch.cpp:687-693; deepseek32.cpp:110-114, minimax-m3.cpp:84-87",
    ),
    TensorRole(
        "state space",
        rf"ssm_({_STATE_SPACE})(\.(weight|bias|scale|input_scale))?",
        Handling.COPY,
        "llama-arch.cpp:493-500, 503-516, 523-524; scales llama-model.cpp:1691-1702, 1756-1767. ssm_a and ssm_d have "
        "no suffix (jamba.cpp:74-75)",
    ),
    TensorRole(
        "short convolution",
        r"shortconv\.(conv|in_proj|out_proj)\.weight",
        Handling.COPY,
        "llama-arch.cpp:676-678; lfm2moe.cpp:67-69",
    ),
    TensorRole(
        "hyper-connections",
        r"hc_(attn|ffn)_(fn|base|scale|norm|down|up|inject)\.weight",
        Handling.COPY,
        "llama-arch.cpp:541-554; deepseek4.cpp:125-130, qwen4exp.cpp:210-217",
    ),
    TensorRole(
        "per-layer embeddings",
        r"(inp_gate|proj|post_norm)\.weight|ple_(key|value|norm_key|norm_query|norm_conv|conv1d)\.weight",
        Handling.COPY,
        "llama-arch.cpp:555-560, 570-572; gemma4.cpp:137-139, qwen4exp.cpp:245-250",
    ),
    TensorRole(
        "next-token prediction",
        r"nextn\.(eh_proj|embed_tokens|enorm|hnorm|shared_head_head|shared_head_norm)\.(weight|scale|input_scale)",
        Handling.COPY,
        "llama-arch.cpp:588-593; deepseek2.cpp:153-158, scales llama-model.cpp:1703-1708, 1768-1773. The experts of a "
        "NextN block have ordinary names and are sliced like the others",
    ),
    # Blocks of architectures without routed experts.
    TensorRole(
        "alternating updates",
        r"(altup_(correct_coef|correct_scale|predict_coef|router|router_norm)|laurel_(l|r|post_norm))\.weight",
        Handling.COPY,
        "llama-arch.cpp:573-580; gemma3n.cpp:67-74. altup_router routes no experts",
    ),
    TensorRole(
        "vision branch",
        r"vis_(attn_qkv|attn_output|gate|down|up)\.weight",
        Handling.COPY,
        "the fixed branch for image tokens, not routed; llama-arch.cpp:682-686, cogvlm.cpp:33-45",
    ),
    TensorRole(
        "time and channel mix",
        rf"(time_mix_({_TIME_MIX})|channel_mix_(lerp_k|lerp_r|key|value|receptance))(\.(weight|bias))?",
        Handling.COPY,
        "RWKV; llama-arch.cpp:623-658",
    ),
    TensorRole(
        "embedded adapters",
        r"(attn_(q|k|v|output)|ffn_(gate|up|down))\.lora_[ab]",
        Handling.COPY,
        "one slice per adapter, chosen by token, not by a router; granite-switch.cpp:115-130",
    ),
    TensorRole(
        "draft convolutions",
        r"(attn|ffn)_conv_(base|proj\.weight)",
        Handling.COPY,
        "DFlash draft models; llama-arch.cpp:708-711, dflash.cpp:254-257",
    ),
)

_COMPILED = tuple((re.compile(role.pattern), role) for role in ROLES)


@cache
def role_of(stem: str) -> TensorRole | None:
    """Return the role of the block tensor with this stem, or None if llama.cpp is not known to load such a tensor."""
    for pattern, role in _COMPILED:
        if pattern.fullmatch(stem):
            return role
    return None
