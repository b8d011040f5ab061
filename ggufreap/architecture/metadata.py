"""What pruning does to each ``{arch}.*`` metadata key that has to do with experts.

Rows name the place in llama.cpp that reads the key: ``file.cpp:line`` is ``src/models/file.cpp`` if there is one, else
``src/file.cpp``, of the tree inside llama-cpp-python 0.3.36 (upstream commit 0c1e57098bba). The templates are in
llama-arch.cpp:194-323. A key with "expert" in its name that has no row must be refused; any other key without a row
does not depend on the experts and keeps its bytes.

``llama_model_base::load_hparams`` checks the counts with GGML_ASSERT (llama-model.cpp:1361-1374), which ends the whole
process, so a pruned file has to satisfy all of this before llama.cpp sees it:

- 0 < expert_used_count <= expert_count <= 1024 (the largest entry where expert_used_count is an array)
- expert_group_count < expert_count, also where there is just one group
- with more than one group: expert_count is a multiple of expert_group_count and
  0 < expert_group_used_count < expert_group_count
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType


class KeyRule(Enum):
    """What happens to the value of a metadata key."""

    KEEP = "keep"
    """Unchanged."""
    SET_TO_KEPT = "set to kept"
    """The number of experts kept per block."""
    AT_MOST_KEPT = "at most kept"
    """Unchanged unless it exceeds the kept number; a number, or an array of one number per block."""
    GROUP_COUNT = "group count"
    """Unchanged, and every group must lose equally many experts and keep at least two."""
    GROUP_USED_COUNT = "group used count"
    """Unchanged, and the used groups must together keep at least expert_used_count experts."""
    REFUSE_IF_SET = "refuse if set"
    """A value other than 0 marks a model that cannot be pruned."""


@dataclass(frozen=True)
class MetadataRule:
    """The rule for one key."""

    suffix: str
    """The key without its ``{arch}.`` prefix."""
    rule: KeyRule
    note: str
    """Why, and where llama.cpp reads it."""


_RULES = (
    # Counts.
    MetadataRule(
        "expert_count",
        KeyRule.SET_TO_KEPT,
        "one uint32 for all blocks, NextN blocks included; llama-model.cpp:1331, llama-hparams.h:72",
    ),
    MetadataRule(
        "expert_used_count",
        KeyRule.AT_MOST_KEPT,
        "a number or an array of block_count entries; llama-model.cpp:1333. Only nemotron_h and nemotron_h_moe route a "
        "different number per block (nemotron-h.cpp:309), the others use entry 0 (llama-graph.cpp:1477)",
    ),
    MetadataRule(
        "expert_group_count",
        KeyRule.GROUP_COUNT,
        "0 and 1 mean no groups; llama-model.cpp:1334. A group is a run of expert_count / expert_group_count "
        "neighbours (llama-graph.cpp:2098) and is scored by its best two (llama-graph.cpp:2103)",
    ),
    MetadataRule(
        "expert_group_used_count",
        KeyRule.GROUP_USED_COUNT,
        "llama-model.cpp:1335; experts of the other groups get -inf (llama-graph.cpp:2114-2117) and would be picked "
        "where the used groups are too small",
    ),
    # Models whose experts refer to each other by number.
    MetadataRule(
        "experts_per_group",
        KeyRule.REFUSE_IF_SET,
        "the routed experts share chunk experts by number: grovemoe.cpp:7, llama-graph.cpp:2131. Not prunable",
    ),
    MetadataRule(
        "expert_chunk_feed_forward_length",
        KeyRule.REFUSE_IF_SET,
        "the width of chunk experts, which are chosen by the routed experts' numbers: grovemoe.cpp:5. Not prunable",
    ),
    MetadataRule(
        "expert_group_scale",
        KeyRule.KEEP,
        "the weight of the chunk experts: grovemoe.cpp:6. llama.cpp's own writer puts the default 0.05 "
        "(llama-hparams.h:123) into files of every architecture, so it says nothing by itself",
    ),
    MetadataRule(
        "hash_layer_count",
        KeyRule.REFUSE_IF_SET,
        "the first blocks choose experts from a table of expert numbers per token: deepseek4.cpp:51, 157-158, "
        "1289-1292. Not prunable",
    ),
    # Widths and factors, the same for every expert.
    MetadataRule(
        "expert_feed_forward_length",
        KeyRule.KEEP,
        "a number or an array of block_count entries, e.g. qwen3moe.cpp:4. Absent or 0 means feed_forward_length / "
        "expert_used_count in the architectures marked ff_from_used; write it out before changing expert_used_count",
    ),
    MetadataRule(
        "feed_forward_length",
        KeyRule.KEEP,
        "llama-model.cpp:1395; also the experts' width where there is no key of their own, e.g. llama.cpp:80-82",
    ),
    MetadataRule("expert_shared_count", KeyRule.KEEP, "shared experts are not routed; e.g. deepseek2.cpp:19"),
    MetadataRule("expert_shared_feed_forward_length", KeyRule.KEEP, "e.g. qwen2moe.cpp:5"),
    MetadataRule("expert_latent_length", KeyRule.KEEP, "the width the experts run at; kimi-k3.cpp:41"),
    MetadataRule("moe_latent_size", KeyRule.KEEP, "the width the experts run at; nemotron-h.cpp:29"),
    MetadataRule("expert_weights_scale", KeyRule.KEEP, "e.g. deepseek2.cpp:20, applied in llama-graph.cpp:2163"),
    MetadataRule("expert_weights_norm", KeyRule.KEEP, "e.g. deepseek2.cpp:21, applied in llama-graph.cpp:2148"),
    MetadataRule(
        "expert_gating_func",
        KeyRule.KEEP,
        "llama-hparams.h:16-22; e.g. deepseek2.cpp:22, applied in llama-graph.cpp:2054-2073, which aborts on 0",
    ),
    MetadataRule("router_logit_softcapping", KeyRule.KEEP, "grok.cpp:20; read, but no graph uses it"),
    MetadataRule("swiglu_clamp_exp", KeyRule.KEEP, "per block, not per expert; step35.cpp:28, llama-graph.cpp:2239"),
    MetadataRule("swiglu_clamp_shexp", KeyRule.KEEP, "per block, for the shared expert; step35.cpp:29"),
    # Which blocks have experts.
    MetadataRule("leading_dense_block_count", KeyRule.KEEP, "e.g. deepseek2.cpp:11"),
    MetadataRule("interleave_moe_layer_step", KeyRule.KEEP, "llama4.cpp:6, ernie4-5.cpp:11"),
    MetadataRule("moe_every_n_layers", KeyRule.KEEP, "nomic-bert-moe.cpp:5"),
    MetadataRule(
        "nextn_predict_layers",
        KeyRule.KEEP,
        "the last blocks of block_count are NextN blocks: llama-model.cpp:1329, llama-hparams.cpp:348. Their expert "
        "tensors are checked against expert_count even when they are not loaded (llama-model-loader.cpp:1337 comes "
        "before :1178)",
    ),
)

EXPERT_KEYS: Mapping[str, MetadataRule] = MappingProxyType({row.suffix: row for row in _RULES})


def rule_of(suffix: str) -> MetadataRule | None:
    """Return the rule for the key ``{arch}.<suffix>``, or None if it has nothing to do with experts as far as known."""
    return EXPERT_KEYS.get(suffix)


# Arrays of one entry per block, cut when MTP blocks are dropped (src/llama-model-loader.cpp, get_key_or_arr).
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
# Arrays of another meaning that may happen to be as long as the model is deep.
OTHER_ARRAYS = frozenset({"rope.dimension_sections", "classifier.output_labels", "deepstack_mapping"})
