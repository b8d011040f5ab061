"""Write the trained model as GGUF the way llama.cpp's own converter would."""

import json
from pathlib import Path

import gguf
import torch
from gguf.quants import dequantize, quantize
from model import Model
from tokenizers import Tokenizer

MODULES = {
    "embedding": "token_embd",
    "norm": "output_norm",
    "attention_norm": "attn_norm",
    "attention.q": "attn_q",
    "attention.k": "attn_k",
    "attention.v": "attn_v",
    "attention.output": "attn_output",
    "attention.q_norm": "attn_q_norm",
    "attention.k_norm": "attn_k_norm",
    "experts_norm": "ffn_norm",
    "experts.router": "ffn_gate_inp",
    "experts.gate": "ffn_gate_exps",
    "experts.up": "ffn_up_exps",
    "experts.down": "ffn_down_exps",
}


def tensor_name(parameter: str) -> str:
    """Translate "blocks.0.attention.q.weight" to "blk.0.attn_q.weight"."""
    parameter = parameter.removesuffix(".weight")
    prefix = ""
    if parameter.startswith("blocks."):
        _, number, parameter = parameter.split(".", 2)
        prefix = f"blk.{number}."
    return f"{prefix}{MODULES[parameter]}.weight"


def write_gguf(path: Path, model: Model, tokenizer: Tokenizer, end: str) -> None:
    """Write the file and leave its rounded weights in the model."""
    writer = gguf.GGUFWriter(path, "qwen3moe")
    add_metadata(writer, model)
    add_tokenizer(writer, tokenizer, end)
    for name, weight in model.named_parameters():
        values = weight.detach().numpy()
        # llama.cpp never quantises routers and norms either.
        if weight.dim() == 1 or "router" in name:
            writer.add_tensor(tensor_name(name), values)
            continue
        q8_0 = gguf.GGMLQuantizationType.Q8_0
        rounded = quantize(values, q8_0)
        writer.add_tensor(tensor_name(name), rounded, raw_dtype=q8_0)
        weight.data = torch.from_numpy(dequantize(rounded, q8_0))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_metadata(writer: gguf.GGUFWriter, model: Model) -> None:
    """Add the general keys and the shape."""
    s = model.s
    total = sum(p.numel() for p in model.parameters())
    expert = 3 * s.blocks * s.expert_width * s.width
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name("ggufreap demo")
    writer.add_description("Small mixture of experts trained on Python's standard library")
    writer.add_size_label(gguf.size_label(total, total - s.experts * expert, expert, s.experts))
    writer.add_license("mit")
    writer.add_tags(["text-generation", "demo", "mixture-of-experts"])
    writer.add_languages(["en"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)

    writer.add_context_length(s.context)
    writer.add_embedding_length(s.width)
    writer.add_block_count(s.blocks)
    writer.add_feed_forward_length(s.expert_width)
    writer.add_head_count(s.heads)
    writer.add_head_count_kv(s.kv_heads)
    writer.add_key_length(s.head_size)
    writer.add_value_length(s.head_size)
    writer.add_layer_norm_rms_eps(s.epsilon)
    writer.add_rope_freq_base(s.rope_base)
    writer.add_expert_count(s.experts)
    writer.add_expert_used_count(s.experts_used)
    writer.add_expert_feed_forward_length(s.expert_width)


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer, end: str) -> None:
    """Add vocabulary and merges."""
    tokens = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
    kinds = [gguf.TokenType.CONTROL if t == end else gguf.TokenType.NORMAL for t in tokens]
    end_id = tokens.index(end)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges(tokenizer))
    writer.add_bos_token_id(end_id)
    writer.add_eos_token_id(end_id)
    writer.add_add_bos_token(False)


def merges(tokenizer: Tokenizer) -> list[str]:
    """Return the merges as "left right"; they are only reachable through the tokenizer's JSON."""
    return [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
