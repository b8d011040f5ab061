"""The architectures of llama.cpp that can hold routed experts, one row per ``general.architecture`` string.

Every row points into the tree inside llama-cpp-python 0.3.36 (upstream commit 0c1e57098bba): ``file.cpp:line`` is
``src/models/file.cpp`` if there is one, else ``src/file.cpp``; ``:line`` continues the file named before. The rows are
complete: every call of build_moe_ffn in src/models/ is the ``source`` or ``mtp_source`` of a row or named in its note.

What holds for all of them:

- The number of experts is one number for the whole model (llama-hparams.h:72), NextN blocks included.
- It changes shapes and nothing else, except for what is said in ``refuse`` and ``refuse_counts``. Besides those it
  decides the printed model type (llama.cpp:9, arctic.cpp:6, bailingmoe3.cpp:41-42), the size of expert groups
  (llama-graph.cpp:2098) and which types llama-quantize mixes (llama-quant.cpp:546-606, 640, 671: >= 4 and == 8).
  A model must keep at least one expert: 0 means a dense model to most rows.
- -inf in ``ffn_moe_logits-N`` and, where it exists, in ``ffn_moe_probs_biased-N`` computes the same as removing the
  experts, whatever the gating function, except for the order of exactly equal scores (the sort is not stable). Every
  token must still find expert_used_count experts; with groups, in the used groups, and two in every group. The logits
  alone are not enough with a selection bias (0 plus the bias can still win), the biased scores alone are not enough for
  a softmax with a selection bias (removed experts would stay in its denominator). It does not hold for rows with
  ``refuse`` and hash-routed blocks. Gating function 3 without a router bias renames the logits to ``ffn_moe_probs-N``
  (llama-graph.cpp:2065, 2074); no converter writes it.
- ``attention.causal`` = false makes any of them non-causal (llama-model.cpp:1324).

NextN (MTP) blocks are the last ``nextn_predict_layers`` of ``block_count``. Dropping them means: leave out the tensors
of those blocks, set nextn_predict_layers to 0, lower block_count, and cut the metadata arrays that are longer than the
new block_count to it. All loaders derive what they guess from n_layer(), which is block_count - nextn_predict_layers
(llama-hparams.cpp:348) and so does not change; ``mtp_drop_refuse`` names the exception.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from ggufreap.architecture.nodes import STREAM

Gating = Literal["softmax", "sigmoid", "softmax over selected", "sqrt softplus", "key"]

_NO_COUNTS: Mapping[int, str] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What llama.cpp does with the routed experts of one architecture."""

    name: str
    """The value of ``general.architecture``."""
    source: str
    """The build_moe_ffn call of the trunk."""
    tensors: str
    """Where the router and the expert tensors are created."""
    gating: Gating
    """How logits become weights; "key": as ``expert_gating_func`` says."""
    gating_default: str = ""
    """With "key": what an absent key means; empty if llama.cpp does not run the file without it."""
    selection_bias: Literal["none", "optional", "required"] = "none"
    """Whether the blocks have exp_probs_b."""
    scaled: bool = False
    """Whether the graph applies ``*_exps.scale``; the expert output is then called ffn_moe_down_scaled."""
    weighted_input: bool = False
    """The router weight multiplies the input of the expert, not its output."""
    ff_from_used: bool = False
    """Without expert_feed_forward_length the experts are feed_forward_length / expert_used_count wide."""
    causal: bool = True
    """If False, the whole batch must fit one micro-batch; llama_decode encodes where there is no memory."""
    stream: tuple[str, ...] = STREAM
    """The nodes of every block that hold the residual stream: all that later blocks see passes through them."""
    headless: bool = False
    """There is no output head: what comes out is the final hidden state (llama-context.cpp, llama_get_embeddings)."""
    mtp: Literal["none", "dense", "experts"] = "none"
    """What the feed-forward networks of the NextN blocks are."""
    mtp_source: str = ""
    """Their build_moe_ffn call, or where they are loaded if no graph runs them."""
    mtp_absent: Literal["", "loads", "fails", "trunk"] = ""
    """What happens if the key declares NextN blocks whose tensors are missing; "trunk": it is taken to be 0."""
    mtp_drop_refuse: str = ""
    """Why dropping the NextN blocks is not safe."""
    refuse: str = ""
    """Why no model of this architecture can be pruned."""
    refuse_counts: Mapping[int, str] = field(default_factory=lambda: _NO_COUNTS, hash=False)
    """Numbers of experts, before or after pruning, that decide more than shapes -> what they decide."""
    note: str = ""
    """What else a reader should know."""
    proven: bool = True
    """Whether this is a row of the table; if not, nobody has read how llama.cpp computes it."""


_ROWS = (
    # Llama, Mistral and models built like them.
    Architecture(
        name="llama",
        source="llama.cpp:203",
        tensors="llama.cpp:79-82",
        gating="softmax",
        scaled=True,
        note="experts if expert_count > 0 (llama.cpp:69); gate optional; optional shared expert (:85)",
    ),
    Architecture(
        name="llama-embed",
        source="llama.cpp:203",
        tensors="llama.cpp:79-82",
        gating="softmax",
        scaled=True,
        causal=False,
        headless=True,
        note="llama_model_llama with attention over the micro-batch only (llama-embed.cpp:4, llama.cpp:113-117)",
    ),
    Architecture(
        name="llama4",
        source="llama4.cpp:219",
        tensors="llama4.cpp:78-81",
        gating="sigmoid",
        weighted_input=True,
        refuse_counts=MappingProxyType(
            {
                128: "llama.cpp leaves out the norm of queries and keys exactly if there are 128 experts "
                "(llama4.cpp:26-41), so changing the number from or to 128 changes the attention"
            }
        ),
        note="selects by raw logits (llama-graph.cpp:2086), weights the input (:2173-2178); experts in every "
        "interleave_moe_layer_step-th block (llama4.cpp:62); shared expert (:85)",
    ),
    Architecture(
        name="mistral3",
        source="mistral3.cpp:193",
        tensors="mistral3.cpp:74-77",
        gating="softmax",
        scaled=True,
        note="experts if expert_count > 0 (mistral3.cpp:64)",
    ),
    Architecture(
        name="mistral4",
        source="deepseek2.cpp:655",
        tensors="deepseek2.cpp:131-143",
        gating="key",
        gating_default="softmax; sigmoid for 47 or 48 layers and 154880 tokens (deepseek2.cpp:26)",
        selection_bias="optional",
        mtp="experts",
        mtp_source="deepseek2.cpp:94-159",
        mtp_absent="loads",
        note="loaded as deepseek2 (models.h:1399-1401); no NextN graph (mistral4.cpp:3)",
    ),
    Architecture(
        name="minicpm",
        source="granite.cpp:279",
        tensors="minicpm.cpp:71-74",
        gating="softmax",
        note="experts if expert_count > 0 (minicpm.cpp:61); graph of granite (models.h:1745)",
    ),
    Architecture(
        name="refact",
        source="refact.cpp:128",
        tensors="refact.cpp:60-63",
        gating="softmax",
        refuse="llama.cpp loads the experts (refact.cpp:60-63) but only computes a dense network (refact.cpp:128)",
    ),
    Architecture(
        name="phimoe",
        source="phi3.cpp:153",
        tensors="phimoe.cpp:38-41",
        gating="softmax",
        note="graph of phi3 (models.h:663)",
    ),
    Architecture(
        name="grok",
        source="grok.cpp:158",
        tensors="grok.cpp:70-73",
        gating="softmax",
        note="GELU; optional dense network parallel to the experts (grok.cpp:171); gate optional",
    ),
    Architecture(name="dbrx", source="dbrx.cpp:115", tensors="dbrx.cpp:36-39", gating="softmax"),
    Architecture(
        name="olmoe",
        source="olmoe.cpp:136",
        tensors="olmoe.cpp:33-45",
        gating="softmax",
        note="weights not normalised (olmoe.cpp:143)",
    ),
    Architecture(
        name="arctic",
        source="arctic.cpp:141",
        tensors="arctic.cpp:44-48",
        gating="softmax",
        note="the experts read the block's input through ffn_norm_exps (arctic.cpp:45); a dense network runs beside "
        "them (:40-42)",
    ),
    Architecture(
        name="jamba",
        source="jamba.cpp:163",
        tensors="jamba.cpp:88-94",
        gating="softmax",
        note="Mamba hybrid; experts where a router is in the file (jamba.cpp:88-90); weights not normalised (:170)",
    ),
    # Qwen.
    Architecture(
        name="qwen2moe",
        source="qwen2moe.cpp:132",
        tensors="qwen2moe.cpp:35-49",
        gating="softmax",
        ff_from_used=True,
        note="weights not normalised (qwen2moe.cpp:139); gated shared expert (:54); width fallback :45",
    ),
    Architecture(
        name="qwen3moe",
        source="qwen3moe.cpp:137",
        tensors="qwen3moe.cpp:40-54",
        gating="softmax",
        scaled=True,
        ff_from_used=True,
        note="width fallback qwen3moe.cpp:50",
    ),
    Architecture(
        name="qwen3vlmoe",
        source="qwen3vlmoe.cpp:145",
        tensors="qwen3vlmoe.cpp:42-56",
        gating="softmax",
        ff_from_used=True,
        note="width fallback qwen3vlmoe.cpp:52",
    ),
    Architecture(
        name="qwen3next",
        source="qwen3next.cpp:570",
        tensors="qwen3next.cpp:97-99",
        gating="softmax",
        scaled=True,
        ff_from_used=True,
        mtp="experts",
        mtp_source="qwen3next.cpp:763",
        mtp_absent="fails",
        note="delta-net hybrid; gated shared expert (qwen3next.cpp:102); width fallback :53; a NextN block is a trunk "
        "block plus nextn.* (:108-121)",
    ),
    Architecture(
        name="qwen35moe",
        source="qwen35moe.cpp:499",
        tensors="qwen35moe.cpp:95-97",
        gating="softmax",
        scaled=True,
        ff_from_used=True,
        mtp="experts",
        mtp_source="qwen35moe.cpp:679",
        mtp_absent="fails",
        note="delta-net hybrid; gated shared expert (qwen35moe.cpp:100); width fallback :57, :109; NextN block "
        ":106-139",
    ),
    Architecture(
        name="qwen4exp",
        stream=("l_last",),
        source="qwen4exp.cpp:998",
        tensors="qwen4exp.cpp:253-255",
        gating="softmax",
        scaled=True,
        ff_from_used=True,
        note="delta-net hybrid with hyper-connections; gated shared expert (qwen4exp.cpp:257); width fallback :198",
    ),
    Architecture(
        name="rnd1",
        source="rnd1.cpp:139",
        tensors="rnd1.cpp:42-56",
        gating="softmax",
        ff_from_used=True,
        causal=False,
        note="diffusion (rnd1.cpp:13), no memory (llama-model.cpp:2371): llama_decode encodes; width fallback "
        "rnd1.cpp:52",
    ),
    Architecture(
        name="llada-moe",
        source="llada-moe.cpp:126",
        tensors="llada-moe.cpp:40-46",
        gating="softmax",
        ff_from_used=True,
        causal=False,
        note="diffusion (llada-moe.cpp:8), no memory (llama-model.cpp:2370): llama_decode encodes; weights not "
        "normalised (llada-moe.cpp:133); width fallback :42",
    ),
    Architecture(
        name="mellum",
        source="mellum.cpp:173",
        tensors="mellum.cpp:49-62",
        gating="softmax",
        scaled=True,
        ff_from_used=True,
        note="width fallback mellum.cpp:58",
    ),
    Architecture(
        name="grovemoe",
        source="grovemoe.cpp:137",
        tensors="grovemoe.cpp:46-59",
        gating="softmax",
        ff_from_used=True,
        refuse="its chunk experts are chosen by dividing the number of a routed expert (llama-graph.cpp:2128-2132) and "
        "weighted with the probability of yet another expert (:2137), so removing experts changes what remains",
        note="selects by sigmoid, weights by softmax (llama-graph.cpp:2090-2093); chunk experts grovemoe.cpp:153",
    ),
    # DeepSeek and models built like them.
    Architecture(
        name="deepseek",
        source="deepseek.cpp:145",
        tensors="deepseek.cpp:48-60",
        gating="softmax",
        note="leading dense blocks (deepseek.cpp:43); shared expert (:63); weights not normalised (:152)",
    ),
    Architecture(
        name="deepseek2",
        source="deepseek2.cpp:655",
        tensors="deepseek2.cpp:131-143",
        gating="key",
        gating_default="softmax; sigmoid for 47 or 48 layers and 154880 tokens (deepseek2.cpp:26)",
        selection_bias="optional",
        mtp="experts",
        mtp_source="deepseek2.cpp:358",
        mtp_absent="loads",
        note="V2, V3, R1, Kimi K2, GLM-4.7-Flash and others; V3 has 8 groups. Guesses by the number of trunk layers: "
        "no q_lora_rank for 26, 27, 48 (deepseek2.cpp:8-14), the gating default (:26)",
    ),
    Architecture(
        name="deepseek2-ocr",
        source="deepseek2.cpp:655",
        tensors="deepseek2ocr.cpp:55-67",
        gating="key",
        gating_default="softmax (deepseek2ocr.cpp:13)",
        selection_bias="optional",
        note="graph of deepseek2 (models.h:1341)",
    ),
    Architecture(
        name="deepseek32",
        source="deepseek32.cpp:424",
        tensors="deepseek32.cpp:120-133",
        gating="key",
        selection_bias="optional",
        scaled=True,
        mtp="experts",
        mtp_source="deepseek32.cpp:670",
        mtp_absent="loads",
        note="the key is required (deepseek32.cpp:32); groups as in deepseek2",
    ),
    Architecture(
        name="deepseek4",
        stream=("l_last",),
        source="deepseek4.cpp:1294",
        tensors="deepseek4.cpp:156-168",
        gating="sqrt softplus",
        selection_bias="required",
        mtp="experts",
        mtp_source="deepseek4.cpp:1451",
        mtp_absent="trunk",
        mtp_drop_refuse="the declared NextN blocks are trunk blocks unless blk.<n>.nextn.eh_proj.weight is in the file "
        "(deepseek4.cpp:20-26)",
        note="any other gating function is rejected (deepseek4.cpp:64); no selection bias in hash-routed blocks "
        "(:157-161), which cannot be pruned; another one for image input (:163, :1287)",
    ),
    Architecture(
        name="glm4moe",
        source="glm4-moe.cpp:390",
        tensors="glm4-moe.cpp:80-92",
        gating="key",
        gating_default="sigmoid (glm4-moe.cpp:16)",
        selection_bias="required",
        ff_from_used=True,
        mtp="experts",
        mtp_source="glm4-moe.cpp:235",
        mtp_absent="loads",
        note="width fallback glm4-moe.cpp:85",
    ),
    Architecture(
        name="glm-dsa",
        source="glm-dsa.cpp:468",
        tensors="glm-dsa.cpp:154-167",
        gating="key",
        gating_default="sigmoid (glm-dsa.cpp:55)",
        selection_bias="optional",
        scaled=True,
        mtp="experts",
        mtp_source="glm-dsa.cpp:714",
        mtp_absent="loads",
        note="attention.indexer.types counts the trunk blocks only (glm-dsa.cpp:66)",
    ),
    Architecture(
        name="glm5-next",
        source="glm5-next.cpp:624",
        tensors="glm5-next.cpp:165-170",
        gating="key",
        gating_default="sigmoid (glm5-next.cpp:31)",
        selection_bias="required",
        mtp="experts",
        mtp_source="glm5-next.cpp:165-184",
        mtp_absent="fails",
        note="linear attention hybrid with hyper-connections; no NextN graph (glm5-next.cpp:189); "
        "attention.indexer.types counts the trunk blocks only (:47)",
    ),
    Architecture(
        name="kimi-linear",
        source="kimi-linear.cpp:512",
        tensors="kimi-linear.cpp:151-164",
        gating="key",
        selection_bias="required",
        note="linear attention hybrid; the key is required (kimi-linear.cpp:26)",
    ),
    Architecture(
        name="kimi-k3",
        source="kimi-k3.cpp:584",
        tensors="kimi-k3.cpp:146-152",
        gating="key",
        selection_bias="required",
        note="the experts run at expert_latent_length between ffn_routed_down and _up, the router does not "
        "(kimi-k3.cpp:575-604); the key is required (:40)",
    ),
    Architecture(
        name="dots1",
        source="dots1.cpp:145",
        tensors="dots1.cpp:47-60",
        gating="key",
        selection_bias="optional",
        note="without the key the graph aborts (dots1.cpp:10, llama-graph.cpp:2071)",
    ),
    Architecture(
        name="dots3note",
        source="dots3note.cpp:425",
        tensors="dots3note.cpp:126-131",
        gating="key",
        selection_bias="required",
        scaled=True,
        mtp="dense",
        mtp_source="dots3note.cpp:117-120",
        mtp_absent="loads",
        note="the key is required (dots3note.cpp:18); NextN blocks are never loaded (:77-78), no NextN graph",
    ),
    Architecture(
        name="exaone-moe",
        source="exaone-moe.cpp:188",
        tensors="exaone-moe.cpp:72-84",
        gating="key",
        selection_bias="optional",
        mtp="dense",
        mtp_source="exaone-moe.cpp:66-70",
        mtp_absent="fails",
        note="the key is required (exaone-moe.cpp:16); NextN blocks are never loaded (:49-52), no NextN graph",
    ),
    Architecture(
        name="bailingmoe",
        source="bailingmoe.cpp:128",
        tensors="bailingmoe.cpp:39-50",
        gating="softmax",
        note="shared expert (bailingmoe.cpp:52)",
    ),
    Architecture(
        name="bailingmoe2",
        source="bailingmoe2.cpp:161",
        tensors="bailingmoe2.cpp:57-62",
        gating="key",
        selection_bias="optional",
        mtp="experts",
        mtp_source="bailingmoe2.cpp:57-82",
        mtp_absent="fails",
        note="8 groups in Ling 2; the key is required (bailingmoe2.cpp:11); NextN blocks are never loaded (:37-40), no "
        "NextN graph",
    ),
    Architecture(
        name="bailingmoe3",
        source="bailingmoe3.cpp:381",
        tensors="bailingmoe3.cpp:117-121",
        gating="key",
        selection_bias="required",
        mtp="experts",
        mtp_source="bailingmoe3.cpp:534",
        mtp_absent="loads",
        note="linear attention hybrid; the key is required (bailingmoe3.cpp:25); NextN tensors :128-159, their last "
        "norm is layer_output_norm",
    ),
    Architecture(
        name="afmoe",
        source="afmoe.cpp:214",
        tensors="afmoe.cpp:79-85",
        gating="key",
        gating_default="sigmoid (afmoe.cpp:27)",
        selection_bias="required",
    ),
    Architecture(
        name="laguna",
        source="laguna.cpp:277",
        tensors="laguna.cpp:128-133",
        gating="key",
        gating_default="sigmoid (laguna.cpp:53)",
        selection_bias="required",
    ),
    # The rest, by name.
    Architecture(
        name="cohere2moe",
        source="cohere2moe.cpp:226",
        tensors="cohere2moe.cpp:89-91",
        gating="key",
        gating_default="sigmoid (cohere2moe.cpp:23)",
        scaled=True,
        mtp="experts",
        mtp_source="cohere2moe.cpp:381",
        mtp_absent="loads",
        note="the experts read the attention's norm, in parallel with it; NextN tensors cohere2moe.cpp:102-134",
    ),
    Architecture(
        name="ernie4_5-moe",
        source="ernie4-5-moe.cpp:81",
        tensors="ernie4-5.cpp:52-56",
        gating="softmax",
        selection_bias="optional",
        note="softmax with a selection bias: masking needs logits and biased scores; tensors for all blocks from "
        "leading_dense_block_count on (ernie4-5.cpp:49), used in every interleave_moe_layer_step-th "
        "(ernie4-5-moe.cpp:64)",
    ),
    Architecture(
        name="gemma4",
        source="gemma4.cpp:324",
        tensors="gemma4.cpp:111-130",
        gating="softmax",
        scaled=True,
        note="experts where a router is in the file (gemma4.cpp:112), a dense network beside them (:295-309); "
        "ffn_gate_inp.scale is over n_embd (:116), ffn_down_exps.scale per expert (:132)",
    ),
    Architecture(
        name="gpt-oss",
        source="openai-moe.cpp:132",
        tensors="openai-moe.cpp:44-54",
        gating="softmax over selected",
        note="router bias and expert biases; the expert output is called ffn_moe_down_biased (llama-graph.cpp:2331)",
    ),
    Architecture(
        name="granite",
        source="granite.cpp:279",
        tensors="granite.cpp:104-107",
        gating="softmax",
        note="experts if expert_count > 0 (granite.cpp:94)",
    ),
    Architecture(
        name="granitemoe",
        source="granite.cpp:279",
        tensors="granite-moe.cpp:66-69",
        gating="softmax",
        note="graph of granite (models.h:1684)",
    ),
    Architecture(
        name="granitehybrid",
        source="granite-hybrid.cpp:261",
        tensors="granite-hybrid.cpp:107-110",
        gating="softmax",
        note="Mamba-2 hybrid; experts if expert_count > 0 (granite-hybrid.cpp:103)",
    ),
    Architecture(
        name="granite_swa",
        source="granite-swa.cpp:277",
        tensors="granite-swa.cpp:104-106",
        gating="softmax",
        note="reads expert_count and expert_used_count once more (granite-swa.cpp:13-14)",
    ),
    Architecture(
        name="hunyuan-moe",
        source="hunyuan-moe.cpp:147",
        tensors="hunyuan-moe.cpp:41-44",
        gating="softmax",
        note="shared expert (hunyuan-moe.cpp:46)",
    ),
    Architecture(
        name="hy_v3",
        source="hy-v3.cpp:173",
        tensors="hy-v3.cpp:67-70",
        gating="key",
        gating_default="sigmoid (hy-v3.cpp:12)",
        selection_bias="optional",
        scaled=True,
        ff_from_used=True,
        mtp="experts",
        mtp_source="hy-v3.cpp:334",
        mtp_absent="loads",
        note="exp_probs_b without suffix (hy-v3.cpp:68); width fallback :48; a NextN block is dense where it has no "
        "router (:325), and its experts take memory even when it is not used (:67-75)",
    ),
    Architecture(
        name="hy_v4",
        source="hy-v4.cpp:552",
        tensors="hy-v4.cpp:136-148",
        gating="key",
        selection_bias="optional",
        note="hyper-connections; without the key the graph aborts (hy-v4.cpp:35, llama-graph.cpp:2071)",
    ),
    Architecture(
        name="lfm2moe",
        source="lfm2.cpp:116",
        tensors="lfm2moe.cpp:44-48",
        gating="key",
        selection_bias="required",
        note="short convolutions; graph of lfm2 (models.h:2176); the key is required (lfm2moe.cpp:10)",
    ),
    Architecture(
        name="maple",
        source="maple.cpp:121",
        tensors="maple.cpp:54-57",
        gating="softmax",
        note="clamped SwiGLU (maple.cpp:16, llama-graph.cpp:2242)",
    ),
    Architecture(
        name="mimo2",
        source="mimo2.cpp:213",
        tensors="mimo2.cpp:68-72",
        gating="sigmoid",
        selection_bias="optional",
        mtp="dense",
        mtp_source="mimo2.cpp:375",
        mtp_absent="loads",
        note="experts where a router is in the file (mimo2.cpp:202); the loader would take experts in a NextN block "
        "(:68-72), the graph wants it dense (:375)",
    ),
    Architecture(
        name="minimax-01",
        source="minimax-01.cpp:442",
        tensors="minimax-01.cpp:56-59",
        gating="softmax",
        note="lightning attention hybrid; gate optional (minimax-01.cpp:57); the call passes a selection bias (:447) "
        "that is never created",
    ),
    Architecture(
        name="minimax-m2",
        source="minimax-m2.cpp:130",
        tensors="minimax-m2.cpp:35-39",
        gating="key",
        selection_bias="required",
        note="without the key the graph aborts (minimax-m2.cpp:6, llama-graph.cpp:2071)",
    ),
    Architecture(
        name="minimax-m3",
        source="minimax-m3.cpp:561",
        tensors="minimax-m3.cpp:72-76",
        gating="key",
        selection_bias="required",
        note="the key is required (minimax-m3.cpp:20)",
    ),
    Architecture(
        name="nemotron_h",
        stream=("nemotron_h_block_out",),
        source="nemotron-h.cpp:303",
        tensors="nemotron-h.cpp:118-126",
        gating="sigmoid",
        selection_bias="required",
        scaled=True,
        ff_from_used=True,
        mtp="experts",
        mtp_source="nemotron-h.cpp:144-181",
        mtp_absent="fails",
        note="Mamba-2 hybrid, experts where feed_forward_length is not 0 (nemotron-h.cpp:102-111); no gate; optional "
        "latent width (:64, :122); own width and expert_used_count per block (:113-115, :309); no NextN graph (:184)",
    ),
    Architecture(
        name="nemotron_h_moe",
        stream=("nemotron_h_block_out",),
        source="nemotron-h.cpp:303",
        tensors="nemotron-h.cpp:118-126",
        gating="sigmoid",
        selection_bias="required",
        scaled=True,
        ff_from_used=True,
        mtp="experts",
        mtp_source="nemotron-h-moe.cpp:116",
        mtp_absent="fails",
        note="nemotron_h (models.h:1545-1549) with a NextN graph, whose logits are called mtp_ffn_moe_logits "
        "(nemotron-h-moe.cpp:101)",
    ),
    Architecture(
        name="nomic-bert-moe",
        stream=("ffn_inp", "ffn_moe_out", "ffn_out"),
        source="bert.cpp:167",
        tensors="nomic-bert-moe.cpp:38-40",
        gating="softmax",
        causal=False,
        headless=True,
        note="encoder, no memory (llama-model.cpp:2362): llama_decode encodes; GELU without gate; experts where the "
        "block number % moe_every_n_layers is 1 (nomic-bert-moe.cpp:37); weights not normalised (bert.cpp:174); what "
        "follows the experts has no name (:206)",
    ),
    Architecture(
        name="smallthinker",
        source="smallthinker.cpp:149",
        tensors="smallthinker.cpp:59-62",
        gating="key",
        note="the router reads the block's input, before attention (smallthinker.cpp:109); ReLU; without the key the "
        "graph aborts (:21, llama-graph.cpp:2071)",
    ),
    Architecture(
        name="step35",
        stream=("ffn_inp", "ffn_out"),
        source="step35.cpp:313",
        tensors="step35.cpp:103-107",
        gating="key",
        gating_default="sigmoid (step35.cpp:19)",
        selection_bias="optional",
        mtp="experts",
        mtp_source="step35.cpp:512",
        mtp_absent="loads",
        note="several NextN blocks, each dense where it has no router (step35.cpp:147-158, :503); the next "
        "block renames the sum of both (:212)",
    ),
    Architecture(
        name="dflash",
        source="dflash.cpp:975",
        tensors="dflash.cpp:209-215",
        gating="sqrt softplus",
        selection_bias="required",
        refuse="a draft model, of no use without the hidden states of its target (dflash.cpp:37-41)",
    ),
)

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType({row.name: row for row in _ROWS})


def unknown(name: str) -> Architecture:
    """The row of an architecture that no table knows: the commonest router, and nothing claimed."""
    return Architecture(
        name=name,
        source="",
        tensors="",
        gating="key",
        mtp_drop_refuse="no table knows what llama.cpp does with this architecture without them",
        proven=False,
    )
