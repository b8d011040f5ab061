"""Changes of `tiny_gguf.qwen3moe` into other layouts of experts: `qwen3moe(path, changes=[fused])`.

Most results are no model for llama.cpp, and say so; they are for everything that only reads and writes files.
"""

from itertools import product

import numpy as np
from tiny_gguf import Model, noise


def fused(model: Model) -> None:
    """Gate above up in one tensor, as newer converters write it. Does not load as qwen3moe."""
    for block in range(model.n_block):
        (gate, kind), (up, _) = (model.tensors.pop(f"blk.{block}.ffn_{part}_exps.weight") for part in ("gate", "up"))
        model.tensors[f"blk.{block}.ffn_gate_up_exps.weight"] = (np.concatenate([gate, up], axis=1), kind)


def scaled(model: Model) -> None:
    """One scale per expert and matrix, and the input scales of NVFP4 files. Loads."""
    for block, part, suffix in product(range(model.n_block), ("gate", "up", "down"), ("scale", "input_scale")):
        model.add(f"blk.{block}.ffn_{part}_exps.{suffix}", model.n_expert, mean=1.0, deviation=0.3)


def scales_folded(model: Model) -> None:
    """The same model as `scaled`, with the scales multiplied into the weights. Loads."""
    scaled(model)
    for block, part in product(range(model.n_block), ("gate", "up", "down")):
        scale, _ = model.tensors.pop(f"blk.{block}.ffn_{part}_exps.scale")
        del model.tensors[f"blk.{block}.ffn_{part}_exps.input_scale"]
        weights, kind = model.tensors[f"blk.{block}.ffn_{part}_exps.weight"]
        model.tensors[f"blk.{block}.ffn_{part}_exps.weight"] = (weights * scale[:, None, None], kind)


def router_scaled(model: Model) -> None:
    """The scale of gemma4's router, which belongs to the embedding and not to the experts. Does not load."""
    for block in range(model.n_block):
        model.add(f"blk.{block}.ffn_gate_inp.scale", model.n_embd, mean=1.0, deviation=0.1)


def biased(model: Model) -> None:
    """Biases of the router and of every expert, as in gpt-oss. Does not load as qwen3moe."""
    for block in range(model.n_block):
        model.add(f"blk.{block}.ffn_gate_inp.bias", model.n_expert, deviation=0.1)
        for part in ("gate", "up", "down"):
            width = model.tensors[f"blk.{block}.ffn_{part}_exps.weight"][0].shape[1]
            model.add(f"blk.{block}.ffn_{part}_exps.bias", model.n_expert, width, deviation=0.1)


def selection_biased(model: Model) -> None:
    """The bias that some routers add for the selection only. Does not load as qwen3moe."""
    for block in range(model.n_block):
        model.add(f"blk.{block}.exp_probs_b.bias", model.n_expert, deviation=0.1)


def separate_experts(model: Model) -> None:
    """One tensor per expert, as in the first Mixtral files, which were `llama`. llama.cpp no longer loads these."""
    for block, part in product(range(model.n_block), ("gate", "up", "down")):
        experts, kind = model.tensors.pop(f"blk.{block}.ffn_{part}_exps.weight")
        for expert, weight in enumerate(experts):
            model.tensors[f"blk.{block}.ffn_{part}.{expert}.weight"] = (weight, kind)
    unknown = (".attn_q_norm.weight", ".attn_k_norm.weight")
    model.tensors = {name: tensor for name, tensor in model.tensors.items() if not name.endswith(unknown)}
    model.metadata = {key.replace("qwen3moe.", "llama."): value for key, value in model.metadata.items()}
    model.metadata["llama.feed_forward_length"] = model.metadata.pop("llama.expert_feed_forward_length")
    model.arch = "llama"


def with_mtp(model: Model) -> None:
    """A last block for multi-token prediction, with experts of its own. Does not load as qwen3moe."""
    last, block = f"blk.{model.n_block - 1}.", f"blk.{model.n_block}."
    for name, (array, kind) in list(model.tensors.items()):
        if name.startswith(last):
            copy = name.replace(last, block)
            model.tensors[copy] = (noise(copy, array.shape, model.seed), kind)
    model.add(f"{block}nextn.eh_proj.weight", model.n_embd, 2 * model.n_embd)
    for part in ("enorm", "hnorm", "shared_head_norm"):
        model.add(f"{block}nextn.{part}.weight", model.n_embd, mean=1.0, deviation=0.1)
    model.n_block += 1
    model.metadata |= {"qwen3moe.block_count": model.n_block, "qwen3moe.nextn_predict_layers": 1}
