"""Metadata for every mixture-of-experts architecture of llama.cpp: the tables behind `tiny_native`.

A row holds what differs from BASE, with keys that lack the architecture's prefix.
"""

from typing import Any

import numpy as np

Row = dict[str, Any]

N_VOCAB = 128
EMBD, HEADS, KV_HEADS = 64, 4, 2
HEAD = EMBD // HEADS  # 16, on purpose the same as the default number of experts: shapes must not decide anything.
FF, FF_EXPERT, FF_SHARED = 64, 32, 96
SIGMOID, SQRT_SOFTPLUS = 2, 4

BASE: Row = {
    "general.name": "Tiny",
    "vocab_size": N_VOCAB,
    "context_length": 256,
    "embedding_length": EMBD,
    "block_count": 2,
    "feed_forward_length": FF,
    "attention.head_count": HEADS,
    "attention.head_count_kv": KV_HEADS,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 10000.0,
    "expert_feed_forward_length": FF_EXPERT,
    # llama.cpp's own stand-in for a tokenizer: chunks of bytes become ids.
    "tokenizer.ggml.model": "test",
    "tokenizer.ggml.tokens": [f"tok_{i}" for i in range(N_VOCAB)],
    "tokenizer.ggml.scores": [0.0] * N_VOCAB,
}

# Building blocks of the rows. LEAD: one dense block, then two with experts.
LEAD: Row = {"block_count": 3, "leading_dense_block_count": 1}
SHARED: Row = {"expert_shared_count": 1, "expert_shared_feed_forward_length": FF_SHARED}
GATED: Row = {"expert_gating_func": SIGMOID, "expert_weights_norm": True, "expert_weights_scale": 1.5}
GROUPS: Row = {"expert_group_count": 4, "expert_group_used_count": 2}
DEEPSEEK: Row = {**LEAD, **SHARED, **GATED}
QWEN_SHARED: Row = {"expert_shared_feed_forward_length": FF_SHARED}
GRANITE: Row = {"logit_scale": 1.0, "expert_shared_feed_forward_length": FF_SHARED}
MROPE: Row = {"rope.dimension_sections": [4, 2, 2, 0]}
MLA: Row = {
    "attention.head_count_kv": 1,
    "attention.key_length": 48,
    "attention.value_length": 32,
    "attention.key_length_mla": 32,
    "attention.value_length_mla": 16,
    "attention.q_lora_rank": 32,
    "attention.kv_lora_rank": 32,
    "rope.dimension_count": 16,
}
NOPE_MLA: Row = {**MLA, "attention.key_length": 32, "rope.dimension_count": 0}
# A top_k as long as the context: a selective indexer would turn near ties into jumps of the logits.
INDEXER: Row = {"attention.indexer.head_count": 4, "attention.indexer.key_length": 64, "attention.indexer.top_k": 256}
INDEXER_TYPES: Row = {"attention.indexer.types": [1, 0, 1]}
KPOOL: Row = {"attention.indexer.kpool": 4, "attention.indexer.kpool_select_tail": True}
MSA: Row = {
    **INDEXER,
    "attention.indexer.head_count": KV_HEADS,
    "attention.indexer.block_size": 4,
    "attention.indexer.local_blocks": 1,
}
SWA: Row = {"attention.sliding_window": 16}
SWA_2: Row = {**SWA, "attention.sliding_window_pattern": [True, False]}
SWA_3: Row = {**SWA, "attention.sliding_window_pattern": [True, False, True]}
MLA_SWA: Row = {
    **SWA,
    **INDEXER_TYPES,
    "attention.sliding_window_pattern": [False, True, False],
    "attention.key_length_swa": 48,
    "attention.value_length_swa": 32,
    "attention.key_length_mla_swa": 32,
    "attention.value_length_mla_swa": 16,
    "attention.kv_lora_rank_swa": 32,
    "rope.freq_base_swa": 10000.0,
}
# Recurrent blocks: those without key-value heads, or all but every second one.
MAMBA: Row = {
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 2 * EMBD,
    "ssm.state_size": 16,
    "ssm.time_step_rank": 8,
    "ssm.group_count": 2,
    "attention.head_count_kv": [0, KV_HEADS],
}
DELTA_NET: Row = {
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 64,
    "ssm.state_size": 16,
    "ssm.time_step_rank": 4,
    "ssm.group_count": 2,
    "full_attention_interval": 2,
}
KDA: Row = {
    "ssm.conv_kernel": 4,
    "kda.head_dim": 16,
    "kda.gate_lower_bound": -5.0,
    "attention.head_count_kv": [1, 0, 1],
}
HYPER: Row = {
    "hyper_connection.count": 4,
    "hyper_connection.sinkhorn_iterations": 2,
    "hyper_connection.epsilon": 1e-6,
}
PLE: Row = {
    "attention.compress_ratios": [4, 4],
    "embedding_length_per_layer_input": EMBD // 4,
    "ple.layers": [0],
    "ple.ngram_size": 3,
    "ple.heads_per_ngram": 2,
    "ple.conv_kernel": 4,
    "ple.eos_token_id": 0,
    "ple.layer_multipliers": np.array([1, 3, 5], np.uint64),
    "ple.head_offsets": np.arange(0, 4 * N_VOCAB, N_VOCAB, dtype=np.uint64),
    "ple.head_vocab_sizes": np.full(4, N_VOCAB, np.uint64),
}
DSV4: Row = {
    **SHARED,
    **GATED,
    **HYPER,
    **SWA,
    "block_count": 3,
    "attention.head_count_kv": 1,
    "attention.key_length": 32,
    "attention.value_length": 32,
    "rope.dimension_count": 16,
    "attention.q_lora_rank": 32,
    "attention.output_group_count": 4,
    "attention.output_lora_rank": 32,
    "attention.compress_ratios": [0, 4, 128],
    "attention.compress_rope_freq_base": 160000.0,
    "hash_layer_count": 0,
    "swiglu_clamp_exp": 10.0,
    "expert_gating_func": SQRT_SOFTPLUS,
}
SITU: Row = {
    "expert_latent_length": 32,
    "attn_res.block_size": 12,
    "activation.situ_beta": 4.0,
    "activation.situ_linear_beta": 25.0,
}
NEMOTRON: Row = {
    **SHARED,
    **GATED,
    **MAMBA,
    "block_count": 4,
    "feed_forward_length": [0, 0, FF, FF],
    "attention.head_count_kv": [0, KV_HEADS, 0, 0],
    "attention.layer_norm_epsilon": 1e-5,
}
NEMOTRON_MTP: Row = {
    "feed_forward_length": [0, 0, FF, FF, FF],
    "attention.head_count_kv": [0, KV_HEADS, 0, 0, KV_HEADS],
}
GEMMA4: Row = {
    **SWA_2,
    "attention.key_length": HEAD,
    "attention.value_length": HEAD,
    "attention.key_length_swa": HEAD,
    "attention.value_length_swa": HEAD,
    "embedding_length_per_layer_input": 0,
    "rope.freq_base_swa": 10000.0,
}
BERT: Row = {
    "block_count": 4,
    "moe_every_n_layers": 2,
    "attention.head_count_kv": HEADS,
    "attention.layer_norm_epsilon": 1e-5,
    "attention.causal": False,
    "pooling_type": 1,
    "tokenizer.ggml.token_type_count": 2,
}
GROVE: Row = {"expert_chunk_feed_forward_length": FF_EXPERT, "expert_group_scale": 0.5, "experts_per_group": 2}

NATIVE: dict[str, Row] = {
    "llama": {},
    "llama-embed": {},
    "llama4": {**SWA, "block_count": 4, "interleave_moe_layer_step": 2},
    "grok": {"embedding_scale": 1.0},
    "dbrx": {"attention.layer_norm_epsilon": 1e-5, "attention.clamp_kqv": 8.0},
    "olmoe": {"attention.head_count_kv": HEADS},
    "arctic": {},
    "jamba": MAMBA,
    "phimoe": {},
    "qwen2moe": QWEN_SHARED,
    "qwen3moe": {},
    "qwen3vlmoe": MROPE,
    "qwen3next": {**QWEN_SHARED, **DELTA_NET},
    "qwen35moe": {**QWEN_SHARED, **DELTA_NET, **MROPE},
    "qwen4exp": {**QWEN_SHARED, **DELTA_NET, **MROPE, **HYPER, **INDEXER, **PLE, "hyper_connection.low_rank": 8},
    "rnd1": {},
    "llada-moe": {},
    "mellum": SWA_2,
    "maple": {**SWA_2, "swiglu_clamp_exp": 7.0},
    "minicpm": {"embedding_scale": 1.0},
    "granite": GRANITE,
    "granitemoe": GRANITE,
    "granitehybrid": {**GRANITE, **MAMBA},
    "granite_swa": {**GRANITE, **SWA_2},
    "mistral3": {},
    "hunyuan-moe": SHARED,
    "minimax-01": {"full_attention_interval": 2, "residual_scale": 3.5},
    "minimax-m2": GATED,
    "minimax-m3": {**DEEPSEEK, **MSA},
    "deepseek": {**LEAD, **SHARED},
    "deepseek2": {**DEEPSEEK, **MLA},
    "deepseek2-ocr": {**LEAD, **SHARED, "attention.head_count_kv": HEADS},
    "mistral4": {**DEEPSEEK, **MLA},
    "deepseek32": {**DEEPSEEK, **MLA, **INDEXER},
    "deepseek4": {**DSV4, **INDEXER},
    "glm-dsa": {**DEEPSEEK, **MLA, **INDEXER},
    "glm4moe": DEEPSEEK,
    "glm5-next": {**DEEPSEEK, **NOPE_MLA, **INDEXER, **KPOOL, **KDA, **HYPER},
    "dots1": {**DEEPSEEK, "attention.head_count_kv": HEADS},
    "dots3note": {**DEEPSEEK, **MLA, **INDEXER, **MLA_SWA},
    "exaone-moe": {**DEEPSEEK, **SWA_3},
    "ernie4_5-moe": {**LEAD, **SHARED, "interleave_moe_layer_step": 1},
    "bailingmoe": {**SHARED, "expert_weights_norm": True},
    "bailingmoe2": DEEPSEEK,
    "bailingmoe3": {**DEEPSEEK, **MLA, **KDA},
    "afmoe": {**DEEPSEEK, **SWA_3},
    "laguna": {**DEEPSEEK, **SWA_3},
    "cohere2moe": {**DEEPSEEK, **SWA_3, "logit_scale": 1.0},
    "hy_v3": DEEPSEEK,
    "hy_v4": {**DEEPSEEK, **MLA, **INDEXER, **INDEXER_TYPES, **HYPER, "hyper_connection.magnitude": 2.0},
    "kimi-linear": {**DEEPSEEK, **MLA, **KDA},
    "kimi-k3": {**DEEPSEEK, **MLA, **KDA, **SITU},
    "lfm2moe": {**LEAD, **GATED, "shortconv.l_cache": 3, "attention.head_count_kv": [KV_HEADS, 0, KV_HEADS]},
    "smallthinker": {**SWA_2, "expert_gating_func": SIGMOID},
    "step35": {**DEEPSEEK, **SWA_3},
    "mimo2": {**GATED, **SWA_3, "block_count": 3},
    "nemotron_h": NEMOTRON,
    "nemotron_h_moe": NEMOTRON,
    "gpt-oss": SWA_2,
    "gemma4": GEMMA4,
    "nomic-bert-moe": BERT,
    "dflash": {**DSV4, "attention.compress_ratios": [0, 0, 0], "target_layers": [0, 1]},
    "grovemoe": GROVE,
}

# The same architectures under other metadata: layouts of real models that the plain row does not show.
VARIANTS: dict[str, tuple[str, Row]] = {
    "deepseek2-groups": ("deepseek2", GROUPS),
    "deepseek32-groups": ("deepseek32", GROUPS),
    "glm-dsa-groups": ("glm-dsa", GROUPS),
    "bailingmoe2-groups": ("bailingmoe2", GROUPS),
    "bailingmoe3-groups": ("bailingmoe3", GROUPS),
    "deepseek4-hash": ("deepseek4", {"hash_layer_count": 1}),
    "gemma4-ple": ("gemma4", {"embedding_length_per_layer_input": 16}),
    "nemotron_h_moe-latent": ("nemotron_h_moe", {"moe_latent_size": 32}),
    "nemotron_h_moe-puzzle": (
        "nemotron_h_moe",
        {"expert_used_count": [0, 0, 4, 2], "expert_feed_forward_length": [0, 0, FF_EXPERT, FF]},
    ),
}

# Architectures whose MTP block has experts, with the per-layer metadata of that block. Other per-layer arrays repeat
# their last entry.
MTP: dict[str, Row] = {
    "qwen3next": {},
    "qwen35moe": {},
    "deepseek2": {},
    "mistral4": {},
    "deepseek32": {},
    "deepseek4": {"attention.compress_ratios": [0, 4, 128, 0]},
    "glm-dsa": {},
    "glm4moe": {},
    "glm5-next": {},
    "bailingmoe2": {},
    "bailingmoe3": {},
    "cohere2moe": {},
    "hy_v3": {},
    "step35": {},
    "nemotron_h": NEMOTRON_MTP,
    "nemotron_h_moe": NEMOTRON_MTP,
}
# llama.cpp loads the MTP block of these, but has no graph that runs it.
MTP_WITHOUT_GRAPH = {"mistral4", "glm5-next", "bailingmoe2", "nemotron_h"}
# llama.cpp does not create the MTP block of these from metadata alone. It is asked for one more ordinary block, which
# is the same but for the tensors in NEXTN.
MTP_BY_HAND = {"bailingmoe2", "deepseek4"}
NEXTN: dict[str, tuple[int, ...]] = {
    "nextn.eh_proj.weight": (EMBD, 2 * EMBD),
    "nextn.enorm.weight": (EMBD,),
    "nextn.hnorm.weight": (EMBD,),
    "nextn.shared_head_norm.weight": (EMBD,),
}

# Architectures that can hold gate and up of the experts in one tensor.
FUSABLE = (
    "qwen3next",
    "qwen35moe",
    "qwen4exp",
    "granite_swa",
    "deepseek2",
    "deepseek2-ocr",
    "mistral4",
    "cohere2moe",
    "hy_v3",
    "gemma4",
)

# Architectures that are also tried with expert groups, whether or not published models have them.
GROUPED = ("deepseek2", "bailingmoe2", "glm4moe", "qwen3moe")

# Rows and variants that cannot be pruned.
REFUSED = {"grovemoe", "dflash", "deepseek4-hash"}

# Here a block is dense or has experts by the tensors that the file holds; llama.cpp, asked, wants both everywhere.
# Real models start with dense blocks, so the first block gets the one and the others get the other.
DENSE_FIRST = {"hy_v3", "step35", "mimo2"}

NOT_BUILDABLE: dict[str, str] = {
    "refact": "loads expert tensors, but its graph never reads them: the logits say nothing about them",
}

# Models that llama.cpp's own saver cannot write, or not so that they load again.
NOT_SAVABLE: dict[str, str] = {
    "step35": "the saver refuses the architecture",
    "gemma4": "the saver leaves out metadata of gemma4",
    "gemma4-ple": "the saver leaves out metadata of gemma4",
    "nomic-bert-moe": "the saver leaves out tensors of the embedding",
    "dflash": "the saver leaves out target_layers",
    "nemotron_h_moe-latent": "the saver leaves out moe_latent_size",
    "nemotron_h_moe-puzzle": "the saver writes the first entry of expert_used_count for all blocks",
}
