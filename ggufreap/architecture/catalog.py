"""The architectures of llama.cpp that can hold routed experts, and in what ggufreap treats some of them differently.

Only what the program reads stands here. Where llama.cpp does all this, with file and line, stands in README.md and
facts/ beside this module. ``file.cpp:line`` is ``src/models/file.cpp`` if there is one, else ``src/file.cpp``, of the
tree inside llama-cpp-python 0.3.36 (upstream commit 0c1e57098bba); ``:line`` continues the file named before.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from ggufreap.architecture.nodes import STREAM

_NO_COUNTS: Mapping[int, str] = MappingProxyType({})


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
    refuse: str = ""
    """Why no model of this architecture can be pruned."""
    refuse_counts: Mapping[int, str] = field(default_factory=lambda: _NO_COUNTS, hash=False)
    """Numbers of experts, before or after pruning, that decide more than shapes -> what they decide."""
    proven: bool = True
    """Whether the tables know it; if not, nobody has read how llama.cpp computes it."""


_EXCEPTIONS = (
    Architecture(name="llama-embed", causal=False, headless=True),
    Architecture(
        name="llama4",
        weighted_input=True,
        refuse_counts=MappingProxyType(
            {
                128: "llama.cpp leaves out the norm of queries and keys exactly if there are 128 experts "
                "(llama4.cpp:26-41), so changing the number from or to 128 changes the attention"
            }
        ),
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
        mtp_by_tensors=True,
        mtp_drop_refuse="the declared NextN blocks are trunk blocks unless blk.<n>.nextn.eh_proj.weight is in the file "
        "(deepseek4.cpp:20-26)",
    ),
    Architecture(name="nemotron_h", stream=("nemotron_h_block_out",)),
    Architecture(name="nemotron_h_moe", stream=("nemotron_h_block_out",)),
    Architecture(name="nomic-bert-moe", stream=("ffn_inp", "ffn_moe_out", "ffn_out"), causal=False, headless=True),
    Architecture(name="step35", stream=("ffn_inp", "ffn_out")),
    Architecture(
        name="dflash",
        refuse="a draft model, of no use without the hidden states of its target (dflash.cpp:37-41)",
    ),
)
_WITHOUT_EXCEPTION = """
afmoe arctic bailingmoe bailingmoe2 bailingmoe3 cohere2moe dbrx deepseek deepseek2 deepseek2-ocr deepseek32 dots1
dots3note ernie4_5-moe exaone-moe gemma4 glm-dsa glm4moe glm5-next gpt-oss granite granite_swa granitehybrid
granitemoe grok hunyuan-moe hy_v3 hy_v4 jamba kimi-k3 kimi-linear laguna lfm2moe llama maple mellum mimo2 minicpm
minimax-01 minimax-m2 minimax-m3 mistral3 mistral4 olmoe phimoe qwen2moe qwen35moe qwen3moe qwen3next qwen3vlmoe
smallthinker
"""

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {name: Architecture(name=name) for name in _WITHOUT_EXCEPTION.split()} | {row.name: row for row in _EXCEPTIONS}
)


def unknown(name: str) -> Architecture:
    """The row of an architecture that no table knows: what most of them do, and nothing claimed."""
    return Architecture(
        name=name,
        mtp_drop_refuse="no table knows what llama.cpp does with this architecture without them",
        proven=False,
    )
