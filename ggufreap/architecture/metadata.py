"""The ``{arch}.*`` metadata keys that pruning has to know, by their suffix; what reads them is in facts/keys.toml.

The counts are laws between keys, and ggufreap.architecture.layout enforces them: `bind` in the file as it is,
`MoeLayout.check_keep` in the file that pruning would make. Only ``expert_count`` changes its value
(ggufreap.rewriting.metadata). ``llama_model_base::load_hparams`` checks the same with GGML_ASSERT
(llama-model.cpp:1361-1374), which ends the whole process, so all of it has to hold before llama.cpp sees the file:

- 0 < expert_used_count <= expert_count <= 1024 (the largest entry where expert_used_count is an array)
- expert_group_count < expert_count, also where there is just one group
- with more than one group: expert_count is a multiple of expert_group_count and
  0 < expert_group_used_count < expert_group_count
"""

from collections.abc import Mapping
from types import MappingProxyType

REFUSED_IF_SET: Mapping[str, str] = MappingProxyType(
    {
        "experts_per_group": "the routed experts share chunk experts by number: grovemoe.cpp:7, llama-graph.cpp:2131. "
        "Not prunable",
        "expert_chunk_feed_forward_length": "the width of chunk experts, which are chosen by the routed experts' "
        "numbers: grovemoe.cpp:5. Not prunable",
        "hash_layer_count": "the first blocks choose experts from a table of expert numbers per token: "
        "deepseek4.cpp:51, 157-158, 1289-1292. Not prunable",
    }
)
"""Keys of models whose experts refer to each other by number, where they are not 0 -> why such a model is refused."""

KNOWN_EXPERT_KEYS = frozenset(
    {
        "expert_count",
        "expert_feed_forward_length",
        "expert_gating_func",
        "expert_group_count",
        "expert_group_scale",
        "expert_group_used_count",
        "expert_latent_length",
        "expert_shared_count",
        "expert_shared_feed_forward_length",
        "expert_used_count",
        "expert_weights_norm",
        "expert_weights_scale",
    }
)
"""Any other key that has "expert" in its name is refused. One without does not depend on the experts."""

PER_BLOCK_ARRAYS = frozenset(
    {
        "attention.compress_ratios",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.indexer.types",
        "attention.recurrent_layers",
        "attention.rope_pattern",
        "attention.sliding_window_pattern",
        "expert_feed_forward_length",
        "expert_used_count",
        "feed_forward_length",
        "swiglu_clamp_exp",
        "swiglu_clamp_shexp",
    }
)
"""Arrays of one entry per block, cut when MTP blocks are dropped (src/llama-model-loader.cpp, get_key_or_arr)."""

OTHER_ARRAYS = frozenset({"rope.dimension_sections", "classifier.output_labels", "deepstack_mapping"})
"""Arrays of another meaning that may happen to be as long as the model is deep."""
