"""Files with the exact header of a real model and nothing behind it: as large as the real ones, but all of it a hole.

Shapes and keys are those of the converters (conversion/ in llama.cpp) for the published models.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import gguf
from gguf import GGMLQuantizationType as Kind

sys.path.append(str(Path(__file__).parent / "benchmarks"))
import real_shape

from ggufreap.container import OutputTensor, Piece, lay_out

Shape = tuple[int, ...]
Tensors = dict[str, tuple[Shape, Kind]]


@dataclass(frozen=True)
class Dense:
    """What the models below share; `keys` are their own, under the architecture's name."""

    architecture: str
    n_block: int
    n_embd: int
    n_vocab: int
    n_head: int
    n_head_kv: int
    n_expert: int
    n_used: int
    context: int
    block: Callable[["Dense", int, Kind, Kind], Tensors]
    n_mtp: int = 0
    keys: Mapping[str, Any] = field(default_factory=dict)

    @property
    def metadata(self) -> dict[str, Any]:
        own = {
            "block_count": self.n_block + self.n_mtp,
            "context_length": self.context,
            "embedding_length": self.n_embd,
            "attention.head_count": self.n_head,
            "attention.head_count_kv": self.n_head_kv,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "expert_count": self.n_expert,
            "expert_used_count": self.n_used,
            "vocab_size": self.n_vocab,
            **self.keys,
        }
        general = {"general.architecture": self.architecture, "general.type": "model", "general.name": "Header"}
        named = {f"{self.architecture}.{key}": value for key, value in own.items()}
        return general | named | {"tokenizer.ggml.model": "none"}

    def tensors(self, experts: Kind, other: Kind) -> Tensors:
        found: Tensors = {"token_embd.weight": ((self.n_vocab, self.n_embd), other)}
        for index in range(self.n_block + self.n_mtp):
            block = self.block(self, index, experts, other)
            found |= {f"blk.{index}.{name}": tensor for name, tensor in block.items()}
        found["output_norm.weight"] = _norm(self.n_embd)
        found["output.weight"] = ((self.n_vocab, self.n_embd), other)
        return found


def _norm(width: int) -> tuple[Shape, Kind]:
    return (width,), Kind.F32


def _attention(model: Dense, head: int, other: Kind) -> Tensors:
    queries, keys = model.n_head * head, model.n_head_kv * head
    return {
        "attn_norm.weight": _norm(model.n_embd),
        "attn_q.weight": ((queries, model.n_embd), other),
        "attn_k.weight": ((keys, model.n_embd), other),
        "attn_v.weight": ((keys, model.n_embd), other),
        "attn_output.weight": ((model.n_embd, queries), other),
    }


def _biases(model: Dense, head: int) -> Tensors:
    queries, keys = model.n_head * head, model.n_head_kv * head
    return {f"attn_{name}.bias": _norm(width) for name, width in (("q", queries), ("k", keys), ("v", keys))}


def _experts(model: Dense, n_ff: int, kind: Kind) -> Tensors:
    n_expert, n_embd = model.n_expert, model.n_embd
    return {
        "ffn_gate_inp.weight": ((n_expert, n_embd), Kind.F32),
        "ffn_gate_exps.weight": ((n_expert, n_ff, n_embd), kind),
        "ffn_down_exps.weight": ((n_expert, n_embd, n_ff), kind),
        "ffn_up_exps.weight": ((n_expert, n_ff, n_embd), kind),
    }


def _feed_forward(model: Dense, n_ff: int, other: Kind, suffix: str = "") -> Tensors:
    return {
        f"ffn_gate{suffix}.weight": ((n_ff, model.n_embd), other),
        f"ffn_down{suffix}.weight": ((model.n_embd, n_ff), other),
        f"ffn_up{suffix}.weight": ((n_ff, model.n_embd), other),
    }


def _mixtral(model: Dense, _index: int, experts: Kind, other: Kind) -> Tensors:
    return _attention(model, 128, other) | {"ffn_norm.weight": _norm(model.n_embd)} | _experts(model, 14_336, experts)


def _gpt_oss(model: Dense, _index: int, experts: Kind, other: Kind) -> Tensors:
    n_expert, n_embd = model.n_expert, model.n_embd
    return (
        _attention(model, 64, other)
        | _biases(model, 64)
        | _experts(model, n_embd, experts)
        | {
            "post_attention_norm.weight": _norm(n_embd),
            "attn_output.bias": _norm(n_embd),
            "attn_sinks.weight": _norm(model.n_head),
            "ffn_gate_inp.bias": _norm(n_expert),
            "ffn_gate_exps.bias": ((n_expert, n_embd), Kind.F32),
            "ffn_down_exps.bias": ((n_expert, n_embd), Kind.F32),
            "ffn_up_exps.bias": ((n_expert, n_embd), Kind.F32),
        }
    )


def _glm4moe(model: Dense, index: int, experts: Kind, other: Kind) -> Tensors:
    found = _attention(model, 128, other) | _biases(model, 128)
    found["post_attention_norm.weight"] = _norm(model.n_embd)
    if index == 0:
        return found | _feed_forward(model, 10_944, other)
    found |= _experts(model, 1_408, experts) | _feed_forward(model, 1_408, other, "_shexp")
    found["exp_probs_b.bias"] = _norm(model.n_expert)
    if index >= model.n_block:
        found["nextn.eh_proj.weight"] = ((model.n_embd, 2 * model.n_embd), other)
        found |= {f"nextn.{name}.weight": _norm(model.n_embd) for name in ("enorm", "hnorm", "shared_head_norm")}
    return found


def _deepseek_v3(model: Dense, index: int, experts: Kind, other: Kind) -> Tensors:
    n_embd, n_head, query, key = model.n_embd, model.n_head, 1_536, 512
    found: Tensors = {
        "attn_norm.weight": _norm(n_embd),
        "attn_q_a_norm.weight": _norm(query),
        "attn_kv_a_norm.weight": _norm(key),
        "attn_q_a.weight": ((query, n_embd), other),
        "attn_q_b.weight": ((n_head * 192, query), other),
        "attn_kv_a_mqa.weight": ((key + 64, n_embd), other),
        "attn_k_b.weight": ((n_head, key, 128), other),
        "attn_v_b.weight": ((n_head, 128, key), other),
        "attn_output.weight": ((n_embd, n_head * 128), other),
        "ffn_norm.weight": _norm(n_embd),
    }
    if index < 3:
        return found | _feed_forward(model, 18_432, other)
    found |= _experts(model, 2_048, experts) | _feed_forward(model, 2_048, other, "_shexp")
    return found | {"exp_probs_b.bias": _norm(model.n_expert)}


_GPT_OSS = {
    "attention.key_length": 64,
    "attention.value_length": 64,
    "attention.sliding_window": 128,
    "expert_feed_forward_length": 2_880,
    "feed_forward_length": 2_880,
    "rope.freq_base": 150_000.0,
}
_GLM_AIR = {
    "attention.key_length": 128,
    "attention.value_length": 128,
    "expert_feed_forward_length": 1_408,
    "expert_gating_func": 2,
    "expert_shared_count": 1,
    "expert_weights_norm": True,
    "expert_weights_scale": 1.0,
    "feed_forward_length": 10_944,
    "leading_dense_block_count": 1,
    "nextn_predict_layers": 1,
    "rope.dimension_count": 64,
    "rope.freq_base": 1e6,
}
_MIXTRAL = {"feed_forward_length": 14_336, "rope.dimension_count": 128, "rope.freq_base": 1e6}
_DEEPSEEK_V3 = {
    "attention.key_length": 576,
    "attention.key_length_mla": 192,
    "attention.kv_lora_rank": 512,
    "attention.q_lora_rank": 1_536,
    "attention.value_length": 512,
    "attention.value_length_mla": 128,
    "expert_feed_forward_length": 2_048,
    "expert_gating_func": 2,
    "expert_group_count": 8,
    "expert_group_used_count": 4,
    "expert_shared_count": 1,
    "expert_weights_norm": True,
    "expert_weights_scale": 2.5,
    "feed_forward_length": 18_432,
    "leading_dense_block_count": 3,
    "rope.dimension_count": 64,
    "rope.freq_base": 1e4,
}
# Model -> its shape, and the types of its experts and of its other matrices as people start from.
DENSE: Mapping[str, tuple[Dense, Kind, Kind]] = {
    "gpt-oss-20b": (
        Dense("gpt-oss", 24, 2_880, 201_088, 64, 8, 32, 4, 131_072, _gpt_oss, keys=_GPT_OSS),
        Kind.MXFP4,
        Kind.Q8_0,
    ),
    "gpt-oss-120b": (
        Dense("gpt-oss", 36, 2_880, 201_088, 64, 8, 128, 4, 131_072, _gpt_oss, keys=_GPT_OSS),
        Kind.MXFP4,
        Kind.Q8_0,
    ),
    "GLM-4.5-Air": (
        Dense("glm4moe", 46, 4_096, 151_552, 96, 8, 128, 8, 131_072, _glm4moe, n_mtp=1, keys=_GLM_AIR),
        Kind.BF16,
        Kind.BF16,
    ),
    "Mixtral-8x7B": (
        Dense("llama", 32, 4_096, 32_000, 32, 8, 8, 2, 32_768, _mixtral, keys=_MIXTRAL),
        Kind.F16,
        Kind.F16,
    ),
    "DeepSeek-V3": (
        Dense("deepseek2", 61, 7_168, 129_280, 128, 1, 256, 8, 163_840, _deepseek_v3, keys=_DEEPSEEK_V3),
        Kind.Q8_0,
        Kind.Q8_0,
    ),
}
QWEN = {"Qwen3.5-35B-A3B": ("qwen35moe", Kind.Q8_0), "Qwen3-30B-A3B": ("qwen3moe", Kind.F16)}
MODELS = (*QWEN, *DENSE)


def write(name: str, folder: Path, **sizes: int) -> Path:
    """The header of a model of MODELS in `folder`, followed by a hole; `sizes` are fields of its shape that differ."""
    path = folder / f"{name}.gguf"
    if name in QWEN:
        architecture, kind = QWEN[name]
        shape = replace(real_shape.SHAPES[architecture], **sizes)
        drawn = real_shape.tensors(shape, kind)
        return sparse(
            path,
            real_shape.metadata(shape, kind, tokenizer=False),
            {key: (tensor.shape, tensor.kind) for key, tensor in drawn.items()},
        )
    model, experts, other = DENSE[name]
    model = replace(model, **sizes)
    return sparse(path, model.metadata, model.tensors(experts, other))


def sparse(path: Path, metadata: Mapping[str, Any], tensors: Tensors) -> Path:
    """A file of these entries and tensors without any content."""
    entries = [real_shape._entry(key, value) for key, value in metadata.items()]
    planned = []
    for name, (shape, kind) in tensors.items():
        block, size = gguf.GGML_QUANT_SIZES[kind]
        planned.append(OutputTensor(name, shape, int(kind), (Piece(path, 0, prod(shape) // block * size),)))
    (plan,) = lay_out(path, entries, [planned], gguf.GGUF_DEFAULT_ALIGNMENT)
    with path.open("wb") as file:
        file.write(plan.header)
        file.truncate(plan.nbytes)
    return path
