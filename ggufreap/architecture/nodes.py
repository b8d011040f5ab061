"""The graph nodes of a MoE block, by the names that llama.cpp's build_moe_ffn gives them (src/llama-graph.cpp).

A node of block N is called `<name>-N` in the running graph.
"""

from dataclasses import dataclass

LOGITS, PROBS, PROBS_BIASED = "ffn_moe_logits", "ffn_moe_probs", "ffn_moe_probs_biased"
TOPK = "ffn_moe_topk"
WEIGHTED = "ffn_moe_weighted"
# What an expert's neurons put out, which its down matrix multiplies; whatever else has one of these names on the way
# there is zero with it.
ACTIVATIONS = tuple(
    f"ffn_moe_{name}"
    for name in ("swiglu", "swiglu_limited", "swiglu_oai", "silu", "situ", "geglu", "gelu", "reglu", "relu", "relu_sqr")
)
FINAL_NORM = "result_norm"  # what the output head multiplies
STREAM = ("l_out",)  # what a block leaves of the residual stream; who names it otherwise says so in the table
# The last block's stream under the name it is given once more where drafts need it, as mimo2.cpp; elsewhere, as in
# qwen35moe.cpp, that is another node, which comes after the stream.
LAST_STREAM = "h_nextn"
EXPERT_OUTPUT = ("ffn_moe_down", "ffn_moe_down_scaled")  # the second renames the first where scales are applied
EXPERT_OUTPUT_BIASED = ("ffn_moe_down_biased",)
# -inf in the logits removes an expert from the softmax and makes its sigmoid 0; the selection bias is added after
# that and could still lift a zero to the top, so the biased scores are masked as well.
SELECTION = (LOGITS, PROBS_BIASED)


@dataclass(frozen=True)
class RoutedBlock:
    """One block whose routing is observed: its number, experts used per token and the node of the expert outputs."""

    index: int
    n_used: int
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class RoutingNodes:
    """All that an engine needs to know of a model's routing.

    `weighted_input`: the router weight multiplies the expert's input instead of its output (llama4).
    `stream` names the nodes of every block, dense ones included, through which passes all that later blocks see.
    `causal` is False where the whole batch must be one micro-batch (diffusion and encoder models); `headless` where the
    model ends in hidden states instead of logits.
    """

    blocks: tuple[RoutedBlock, ...]
    n_expert: int
    weighted_input: bool
    causal: bool
    headless: bool
    stream: tuple[str, ...] = STREAM
