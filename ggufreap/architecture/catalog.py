"""The architectures of llama.cpp that can hold routed experts, and in what ggufreap treats some of them differently.

Only what the program reads stands here. Where llama.cpp does all this, with file and line, stands in README.md and
facts/ beside this module. ``file.cpp:line`` is ``src/models/file.cpp`` if there is one, else ``src/file.cpp``, of the
tree inside llama-cpp-python 0.3.36 (upstream commit 0c1e57098bba); ``:line`` continues the file named before.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from types import MappingProxyType

from ggufreap.architecture.nodes import STREAM

_NO_COUNTS: Mapping[int, str] = MappingProxyType({})
EXPERT_WIDTH, ANY_WIDTH = "expert_feed_forward_length", "feed_forward_length"


class SharedWidth(Enum):
    """Where the shared expert gets its width from, seen from the width of the routed experts."""

    OWN = "own"
    """From elsewhere, or there is none."""
    COUNTED = "counted"
    """``expert_shared_count`` times as wide as a routed expert (once, where the count is 0)."""
    FALLBACK = "fallback"
    """From ``expert_shared_feed_forward_length``; without it from the routed experts."""
    FALLBACK_EACH = "fallback each"
    """The same, but the key says how wide each of the ``expert_shared_count`` is."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """In what one architecture differs from the others; the defaults are what most of them do."""

    name: str
    """The value of ``general.architecture``."""
    weighted_input: bool = False
    """The router weight multiplies the input of the expert, not its output."""
    causal: bool = True
    """If False, the whole batch must fit one micro-batch; llama_decode encodes where there is no memory."""
    stream: tuple[str, ...] = STREAM
    """The nodes of every block that hold the residual stream: all that later blocks see passes through them."""
    headless: bool = False
    """There is no output head: what comes out is the final hidden state (llama-context.cpp, llama_get_embeddings)."""
    mtp_by_tensors: bool = False
    """The declared NextN blocks are ordinary blocks unless their ``nextn.eh_proj.weight`` is in the file."""
    mtp_drop_refuse: str = ""
    """Why dropping the NextN blocks is not safe."""
    width_key: str = EXPERT_WIDTH
    """The key by which llama.cpp sizes the routed experts; where it is absent, it derives their width."""
    shared_width: SharedWidth = SharedWidth.OWN
    """What of the shared expert follows from the width of the routed ones."""
    refuse_width: str = ""
    """Why the routed experts cannot be narrower."""
    dense_as_wide: str = ""
    """Why they cannot where some blocks are dense."""
    refuse: str = ""
    """Why no model of this architecture can be pruned."""
    refuse_counts: Mapping[int, str] = field(default_factory=lambda: _NO_COUNTS, hash=False)
    """Numbers of experts, before or after pruning, that decide more than shapes -> what they decide."""
    proven: bool = True
    """Whether the tables know it; if not, nobody has read how llama.cpp computes it."""


_EXCEPTIONS = (
    Architecture(name="llama-embed", causal=False, headless=True, width_key=ANY_WIDTH),
    Architecture(
        name="llama4",
        weighted_input=True,
        refuse_counts=MappingProxyType(
            {
                128: "llama.cpp leaves out the norm of queries and keys exactly if there are 128 experts "
                "(llama4.cpp:26-41), so changing the number from or to 128 changes the attention"
            }
        ),
        refuse_width="its shared expert is exactly as wide as a routed one (llama4.cpp:84)",
    ),
    Architecture(
        name="refact",
        refuse="llama.cpp loads the experts (refact.cpp:60-63) but only computes a dense network (refact.cpp:128)",
    ),
    Architecture(name="qwen4exp", stream=("l_last",)),
    Architecture(name="rnd1", causal=False),
    Architecture(name="llada-moe", causal=False),
    Architecture(
        name="grovemoe",
        refuse="its chunk experts are chosen by dividing the number of a routed expert (llama-graph.cpp:2128-2132) and "
        "weighted with the probability of yet another expert (:2137), so removing experts changes what remains",
    ),
    Architecture(
        name="deepseek4",
        stream=("l_last",),
        shared_width=SharedWidth.COUNTED,
        mtp_by_tensors=True,
        mtp_drop_refuse="the declared NextN blocks are trunk blocks unless blk.<n>.nextn.eh_proj.weight is in the file "
        "(deepseek4.cpp:20-26)",
    ),
    Architecture(name="nemotron_h", stream=("nemotron_h_block_out",)),
    Architecture(name="nemotron_h_moe", stream=("nemotron_h_block_out",)),
    Architecture(
        name="nomic-bert-moe",
        stream=("ffn_inp", "ffn_moe_out", "ffn_out"),
        causal=False,
        headless=True,
        width_key=ANY_WIDTH,
        dense_as_wide="dense blocks are as wide as experts (nomic-bert-moe.cpp:38-44)",
    ),
    Architecture(
        name="jamba", width_key=ANY_WIDTH, dense_as_wide="dense blocks are as wide as experts (jamba.cpp:92-99)"
    ),
    Architecture(name="hunyuan-moe", width_key=ANY_WIDTH, shared_width=SharedWidth.FALLBACK),
    Architecture(name="bailingmoe2", shared_width=SharedWidth.FALLBACK_EACH),
    Architecture(name="step35", stream=("ffn_inp", "ffn_out")),
    Architecture(
        name="dflash",
        refuse="a draft model, of no use without the hidden states of its target (dflash.cpp:37-41)",
    ),
)
_WITHOUT_EXCEPTION = """
ernie4_5-moe gemma4 gpt-oss grok lfm2moe maple mellum mimo2 qwen2moe qwen35moe qwen3moe qwen3next qwen3vlmoe
smallthinker
"""
# Those whose only exception is where the width of their experts stands, or what else depends on it.
_BY_WIDTH = (
    (
        Architecture(name="", width_key=ANY_WIDTH),
        "arctic dbrx granite granite_swa granitehybrid granitemoe llama minicpm minimax-01 minimax-m2 mistral3 olmoe "
        "phimoe",
    ),
    (
        Architecture(name="", shared_width=SharedWidth.COUNTED),
        "afmoe bailingmoe deepseek deepseek2 deepseek2-ocr deepseek32 dots1 dots3note glm-dsa glm4moe glm5-next hy_v4 "
        "kimi-k3 kimi-linear minimax-m3 mistral4",
    ),
    (
        Architecture(name="", shared_width=SharedWidth.FALLBACK),
        "bailingmoe3 cohere2moe exaone-moe hy_v3 laguna",
    ),
)

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {name: Architecture(name=name) for name in _WITHOUT_EXCEPTION.split()}
    | {name: replace(row, name=name) for row, names in _BY_WIDTH for name in names.split()}
    | {row.name: row for row in _EXCEPTIONS}
)


def unknown(name: str) -> Architecture:
    """The row of an architecture that no table knows: what most of them do, and nothing claimed."""
    return Architecture(
        name=name,
        mtp_drop_refuse="no table knows what llama.cpp does with this architecture without them",
        proven=False,
    )
