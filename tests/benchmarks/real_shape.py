"""Writes a model with the exact shapes of a real one: as many blocks, experts and tokens, but random weights.

The bytes are random, so they cannot be compressed and no two experts are alike, but every block of a quantised type is
valid: its scales are fixed, and such that what a transformer block adds is of the residual's own size. Activations so
stay finite at any depth. `--check` lets llama.cpp prove that: finite logits, and how many experts random tokens reach.

    python tests/benchmarks/real_shape.py model.gguf --blocks 8 --check

Shapes: Qwen3.5-35B-A3B and Qwen3-30B-A3B, as conversion/qwen.py writes them and src/models/qwen35moe.cpp and
qwen3moe.cpp read them.
"""

import argparse
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

sys.path.append(str(Path(__file__).parents[1]))  # the builders of the tests
import tiny_gguf

from ggufreap.container import MetadataEntry, OutputTensor, Piece, encode, lay_out

CHUNK = 16 << 20  # bytes of a tensor that are made at once
EXPERT_GAIN = 3.3  # a token's experts share its weight, and their products are small: this makes their sum as large
# Where a block keeps its scales, in halves, and how they relate: block_q4_K and so on, ggml/src/ggml-common.h. With
# dmin = 7.5 d the mean of random Q4_K weights is 0.
SCALES: Mapping[Kind, Mapping[int, float]] = {
    Kind.Q4_K: {0: 1.0, 2: 7.5},
    Kind.Q6_K: {208: 1.0},
    Kind.IQ4_XS: {0: 1.0},
    Kind.Q8_0: {0: 1.0},
}
# Type of the experts -> types of the other matrices and of the output head, and general.file_type (include/llama.h).
MIXES = {
    Kind.Q4_K: (Kind.Q8_0, Kind.Q6_K, 15),
    Kind.IQ4_XS: (Kind.Q8_0, Kind.Q6_K, 30),
    Kind.Q8_0: (Kind.Q8_0, Kind.Q8_0, 7),
    Kind.F16: (Kind.F16, Kind.F16, 1),
    Kind.F32: (Kind.F32, Kind.F32, 0),
}
BARE = ("ssm_a", "ssm_dt.bias")  # whose names do not end in .weight


@dataclass(frozen=True)
class Tensor:
    """A tensor to be drawn; `shape` in numpy order, `deviation` of its weights."""

    shape: tuple[int, ...]
    kind: Kind
    deviation: float
    mean: float = 0.0

    @property
    def nbytes(self) -> int:
        block, size = gguf.GGML_QUANT_SIZES[self.kind]
        return prod(self.shape) // block * size


@dataclass(frozen=True)
class Shape:
    """The sizes of a model; `n_block` without the MTP block."""

    architecture: str
    n_block: int
    n_expert: int
    n_ff: int
    n_vocab: int
    n_head: int
    n_head_kv: int
    head: int
    context: int
    n_shared: int = 0
    mtp: bool = False
    full_every: int = 1  # blocks per block of full attention, the others are linear
    n_embd: int = 2048
    n_used: int = 8


@dataclass(frozen=True)
class Linear:
    """The linear attention (gated delta net) of Qwen3.5-35B-A3B."""

    kernel: int = 4
    state: int = 128
    key_heads: int = 16
    value_heads: int = 32

    @property
    def inner(self) -> int:
        return self.value_heads * self.state

    @property
    def mixed(self) -> int:
        return self.inner + 2 * self.key_heads * self.state


SHAPES = {
    "qwen35moe": Shape("qwen35moe", 40, 256, 512, 248_320, 16, 2, 256, 262_144, n_shared=512, mtp=True, full_every=4),
    "qwen3moe": Shape("qwen3moe", 48, 128, 768, 151_936, 32, 4, 128, 40_960),
}
LINEAR = Linear()
Tensors = dict[str, Tensor]


def is_full(shape: Shape, index: int) -> bool:
    """Whether a block has full attention; a model of fewer blocks than the pattern ends in one."""
    if index >= shape.n_block:
        return True
    return (index + 1) % shape.full_every == 0 or index + 1 == shape.n_block < shape.full_every


def metadata(shape: Shape, kind: Kind, tokenizer: bool) -> dict[str, Any]:
    """What the converter writes, in its order."""
    own: dict[str, Any] = {
        "block_count": shape.n_block + shape.mtp,
        "context_length": shape.context,
        "embedding_length": shape.n_embd,
        "attention.head_count": shape.n_head,
        "attention.head_count_kv": shape.n_head_kv,
        "attention.key_length": shape.head,
        "attention.value_length": shape.head,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 1e7,
        "expert_count": shape.n_expert,
        "expert_used_count": shape.n_used,
        "expert_feed_forward_length": shape.n_ff,
        "vocab_size": shape.n_vocab,
    }
    if shape.full_every > 1:
        own |= {
            "rope.dimension_count": shape.head // 4,
            "rope.dimension_sections": [11, 11, 10, 0],
            "expert_shared_feed_forward_length": shape.n_shared,
            "ssm.conv_kernel": LINEAR.kernel,
            "ssm.state_size": LINEAR.state,
            "ssm.group_count": LINEAR.key_heads,
            "ssm.time_step_rank": LINEAR.value_heads,
            "ssm.inner_size": LINEAR.inner,
            "attention.recurrent_layers": [not is_full(shape, block) for block in range(shape.n_block + shape.mtp)],
            "full_attention_interval": shape.full_every,
        }
    if shape.mtp:
        own["nextn_predict_layers"] = 1
    words = tiny_gguf.vocabulary(shape.n_vocab) if tokenizer else {"tokenizer.ggml.model": "none"}
    general = {"architecture": shape.architecture, "type": "model", "name": f"Random {shape.architecture}"}
    general |= {"quantization_version": 2, "file_type": MIXES[kind][2]}
    return (
        {f"general.{key}": value for key, value in general.items()}
        | {f"{shape.architecture}.{key}": value for key, value in own.items()}
        | words
    )


def tensors(shape: Shape, kind: Kind) -> Tensors:
    """All of them, in file order; `kind` is the type of the experts."""
    other, head, _ = MIXES[kind]
    found = {"token_embd.weight": Tensor((shape.n_vocab, shape.n_embd), other, 1.0)}
    for index in range(shape.n_block + shape.mtp):
        attention = _full(shape, other) if is_full(shape, index) else _linear(shape, other)
        block = attention | _feed_forward(shape, kind, other)
        if index >= shape.n_block:
            block |= {"nextn.eh_proj": _matrix(shape.n_embd, 2 * shape.n_embd, other)}
            block |= {f"nextn.{name}": _norm(shape.n_embd) for name in ("enorm", "hnorm", "shared_head_norm")}
        for stem, tensor in block.items():
            suffix = "" if stem in BARE else ".weight"
            found[f"blk.{index}.{stem}{suffix}"] = tensor
    return found | {
        "output_norm.weight": _norm(shape.n_embd),
        "output.weight": _matrix(shape.n_vocab, shape.n_embd, head),
    }


def _norm(width: int) -> Tensor:
    return Tensor((width,), Kind.F32, 0.1, 1.0)


def _matrix(rows: int, columns: int, kind: Kind, gain: float = 1.0) -> Tensor:
    return Tensor((rows, columns), kind, gain * columns**-0.5)


def _full(shape: Shape, other: Kind) -> Tensors:
    queries, keys = shape.n_head * shape.head, shape.n_head_kv * shape.head
    gated = 2 if shape.full_every > 1 else 1
    return {
        "attn_norm": _norm(shape.n_embd),
        "attn_q": _matrix(gated * queries, shape.n_embd, other),
        "attn_k": _matrix(keys, shape.n_embd, other),
        "attn_v": _matrix(keys, shape.n_embd, other),
        "attn_output": _matrix(shape.n_embd, queries, other),
        "attn_q_norm": _norm(shape.head),
        "attn_k_norm": _norm(shape.head),
    }


def _linear(shape: Shape, other: Kind) -> Tensors:
    return {
        "attn_norm": _norm(shape.n_embd),
        "attn_qkv": _matrix(LINEAR.mixed, shape.n_embd, other),
        "attn_gate": _matrix(LINEAR.inner, shape.n_embd, other),
        "ssm_conv1d": _matrix(LINEAR.mixed, LINEAR.kernel, Kind.F32),
        "ssm_dt.bias": Tensor((LINEAR.value_heads,), Kind.F32, 0.1),
        "ssm_a": Tensor((LINEAR.value_heads,), Kind.F32, 0.1, -1.0),
        "ssm_beta": _matrix(LINEAR.value_heads, shape.n_embd, other),
        "ssm_alpha": _matrix(LINEAR.value_heads, shape.n_embd, other),
        "ssm_norm": _norm(LINEAR.state),
        "ssm_out": _matrix(shape.n_embd, LINEAR.inner, other),
    }


def _feed_forward(shape: Shape, kind: Kind, other: Kind) -> Tensors:
    n_expert, n_embd, n_ff = shape.n_expert, shape.n_embd, shape.n_ff
    found = {
        "post_attention_norm" if shape.full_every > 1 else "ffn_norm": _norm(n_embd),
        "ffn_gate_inp": _matrix(n_expert, n_embd, Kind.F32, 2.0),
        "ffn_gate_exps": Tensor((n_expert, n_ff, n_embd), kind, n_embd**-0.5),
        "ffn_up_exps": Tensor((n_expert, n_ff, n_embd), kind, n_embd**-0.5),
        "ffn_down_exps": Tensor((n_expert, n_embd, n_ff), kind, EXPERT_GAIN * n_ff**-0.5),
    }
    if shape.n_shared:
        found |= {
            "ffn_gate_inp_shexp": Tensor((n_embd,), Kind.F32, n_embd**-0.5),
            "ffn_gate_shexp": _matrix(shape.n_shared, n_embd, other),
            "ffn_up_shexp": _matrix(shape.n_shared, n_embd, other),
            "ffn_down_shexp": _matrix(n_embd, shape.n_shared, other),
        }
    return found


def content(name: str, tensor: Tensor, seed: int) -> Iterator[np.ndarray]:
    """The tensor's bytes piece by piece; they depend on its name, shape, type and the seed alone."""
    rng = np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))
    block, size = gguf.GGML_QUANT_SIZES[tensor.kind]
    draw = _drawing(tensor, rng)
    left, at_once = prod(tensor.shape) // block, CHUNK // size
    while left:
        count = min(left, at_once)
        left -= count
        yield draw(count)


def _drawing(tensor: Tensor, rng: np.random.Generator) -> Callable[[int], np.ndarray]:
    """What draws so many blocks of a tensor; a value of F32 or F16 counts as a block."""

    def normal(count: int) -> np.ndarray:
        values = rng.standard_normal(count, np.float32)
        values *= np.float32(tensor.deviation)
        values += np.float32(tensor.mean)
        return values

    if tensor.kind is Kind.F32:
        return normal
    if tensor.kind is Kind.F16:
        halves = normal(1 << 16).astype(np.float16)  # drawing from a table is three times as fast as converting
        return lambda count: halves[_random_bytes(2 * count, rng).view(np.uint16)]
    scale = tensor.deviation / _unit_deviation(tensor.kind)
    return lambda count: _blocks(tensor.kind, count, scale, rng)


def _random_bytes(count: int, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 2**64, -(-count // 8), np.uint64).view(np.uint8)[:count]


def _blocks(kind: Kind, count: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    size = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = _random_bytes(count * size, rng).reshape(count, size)
    for offset, ratio in SCALES[kind].items():
        blocks[:, offset : offset + 2] = np.array([scale * ratio], "<f2").view(np.uint8)
    return blocks


def _unit_deviation(kind: Kind) -> float:
    """The deviation of random weights whose scale is 1."""
    blocks = _blocks(kind, 4096, 1.0, np.random.default_rng(0))
    return float(gguf.quants.dequantize(blocks, kind).std())


def write(path: Path, shape: Shape, kind: Kind, *, tokenizer: bool = True, seed: int = 0) -> int:
    """Stream the model to `path`; returns its size in bytes."""
    entries = [_entry(key, value) for key, value in metadata(shape, kind, tokenizer).items()]
    drawn = tensors(shape, kind)
    planned = [OutputTensor(n, t.shape, int(t.kind), (Piece(path, 0, t.nbytes),)) for n, t in drawn.items()]
    (plan,) = lay_out(path, entries, [planned], gguf.GGUF_DEFAULT_ALIGNMENT)
    with path.open("wb") as file:
        file.write(plan.header)
        for output in plan.tensors:
            _write_tensor(file, content(output.name, drawn[output.name], seed))
            file.write(bytes(output.padded(plan.alignment) - output.nbytes))
    return plan.nbytes


def _write_tensor(file: BinaryIO, pieces: Iterator[np.ndarray]) -> None:
    for piece in pieces:
        file.write(memoryview(np.ascontiguousarray(piece)).cast("B"))


def _entry(key: str, value: Any) -> MetadataEntry:
    value, kind, item = tiny_gguf._typed(value)
    return encode(key, value.tolist() if isinstance(value, np.ndarray) else value, item or kind)


def check(path: Path, n_tokens: int) -> None:
    """Load the model in llama.cpp, run random tokens, and print what shows that it works."""
    from ggufreap.architecture.layout import bind
    from ggufreap.container import open_gguf
    from ggufreap.engine.session import LlamaSession
    from ggufreap.options.engine import EngineSettings

    file = open_gguf(path)
    layout = bind(file)
    with LlamaSession(path, layout.nodes, EngineSettings(n_ctx=n_tokens, n_ubatch=n_tokens)) as engine:
        tokens = np.random.default_rng(0).integers(0, engine.n_vocab, n_tokens).astype(np.int32)
        logits = engine.logits(tokens, None)
        assert np.isfinite(logits).all(), "NaN or infinite logits"
        print(f"logits: {logits.shape}, all finite, deviation {logits.std():.2f}")
        counts = np.zeros((len(layout.trunk), layout.n_expert), np.int64)
        rows = {block.index: row for row, block in enumerate(layout.trunk)}
        for batch in engine.route(tokens):
            counts[rows[batch.block]] += np.bincount(batch.experts.ravel(), minlength=layout.n_expert)
        if file.get("tokenizer.ggml.model") != "none":
            text = "any text, in words of 1 to 4 letters"
            assert engine.detokenize(engine.tokenize(text).tolist()) == text, "the text came back changed"
            print(f"tokenizer: {len(text)} letters are {len(engine.tokenize(text))} tokens")
    reached = (counts > 0).sum(axis=1)
    print(f"experts reached by {n_tokens} random tokens, of {layout.n_expert}: {' '.join(map(str, reached))}")
    print(f"busiest expert: {counts.max() / n_tokens:.1%} of the tokens (even: {layout.n_used / layout.n_expert:.1%})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--architecture", choices=SHAPES, default="qwen35moe")
    help = "fewer blocks than the real model, in the same pattern (of qwen35moe llama.cpp runs no less than 2)"
    parser.add_argument("--blocks", type=int, help=help)
    parser.add_argument("--mtp", action=argparse.BooleanOptionalAction, default=True, help="with the MTP block it has")
    parser.add_argument("--experts", type=int, help="fewer experts")
    parser.add_argument("--vocab", type=int, help="fewer tokens")
    parser.add_argument("--type", choices=[kind.name for kind in MIXES], default="Q4_K", help="of the experts (Q4_K)")
    parser.add_argument("--tokenizer", choices=("bpe", "none"), default="bpe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="run it in llama.cpp")
    options = parser.parse_args()
    real = SHAPES[options.architecture]
    shape = replace(
        real,
        n_block=options.blocks or real.n_block,
        n_expert=options.experts or real.n_expert,
        n_vocab=options.vocab or real.n_vocab,
        mtp=real.mtp and options.mtp,
    )
    if not 1 <= shape.n_block <= real.n_block:
        parser.error(f"{options.architecture} has 1 to {real.n_block} blocks")
    start = time.perf_counter()
    kind, tokenizer = Kind[options.type], options.tokenizer == "bpe"
    nbytes = write(options.path, shape, kind, tokenizer=tokenizer, seed=options.seed)
    seconds = time.perf_counter() - start
    print(f"{options.path}: {nbytes:,} bytes in {seconds:.1f} s, {nbytes / seconds / 1e6:.0f} MB/s")
    if options.check:
        check(options.path, 512)


if __name__ == "__main__":
    main()
