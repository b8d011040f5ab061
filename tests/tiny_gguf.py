"""GGUF files from Python values and numpy arrays; the models here need no llama.cpp to be written.

`write` is the only function that touches the format. `qwen3moe` is a model that llama.cpp loads, in the style of its
converter; `tiny_layouts` has the changes that turn it into other layouts.
"""

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count, islice, product
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFValueType as Value

Metadata = dict[str, Any]
Tensors = dict[str, tuple[np.ndarray, Kind]]

_VALUES = {
    np.dtype(np.uint8): Value.UINT8,
    np.dtype(np.int8): Value.INT8,
    np.dtype(np.uint16): Value.UINT16,
    np.dtype(np.int16): Value.INT16,
    np.dtype(np.uint32): Value.UINT32,
    np.dtype(np.int32): Value.INT32,
    np.dtype(np.uint64): Value.UINT64,
    np.dtype(np.int64): Value.INT64,
    np.dtype(np.float32): Value.FLOAT32,
    np.dtype(np.float64): Value.FLOAT64,
    np.dtype(np.bool_): Value.BOOL,
}
# What converters write for plain Python values: unsigned counts, single floats, signed array elements.
_SCALARS = {bool: Value.BOOL, int: Value.UINT32, float: Value.FLOAT32, str: Value.STRING}
_ELEMENTS = {bool: np.bool_, int: np.int32, float: np.float32}
_STORED_AS_IS = {Kind.I8: np.int8, Kind.I16: np.int16, Kind.I32: np.int32, Kind.I64: np.int64, Kind.F64: np.float64}


class _Writer(gguf.GGUFWriter):
    """GGUFWriter that can also write empty arrays, and long string arrays quickly."""

    def _pack_val(self, val: Any, vtype: Value, add_vtype: bool, sub_type: Value | None = None) -> bytes:
        if vtype is not Value.ARRAY:
            return super()._pack_val(val, vtype, add_vtype, sub_type)
        if sub_type is Value.STRING:
            body = b"".join(struct.pack("<Q", len(text)) + text for text in (text.encode() for text in val))
        else:
            body = val.tobytes()
        return struct.pack("<IIQ", vtype, sub_type, len(val)) + body


def _typed(value: Any) -> tuple[Any, Value, Value | None]:
    """Value, type and element type as GGUFWriter takes them; an empty list counts as an array of strings."""
    if isinstance(value, list):
        if not value or isinstance(value[0], str):
            return value, Value.ARRAY, Value.STRING
        value = np.array(value, dtype=_ELEMENTS[type(value[0])])
    if isinstance(value, np.ndarray):
        return value, Value.ARRAY, _VALUES[value.dtype]
    if isinstance(value, np.generic):
        return value.item(), _VALUES[value.dtype], None
    return value, _SCALARS[type(value)], None


def encode(array: np.ndarray, kind: Kind) -> np.ndarray:
    """The bytes of `array` in a ggml type; gguf-py writes the simple types, ggml itself the rest."""
    if kind in _STORED_AS_IS:
        return np.ascontiguousarray(array, dtype=_STORED_AS_IS[kind])
    try:
        return gguf.quants.quantize(np.ascontiguousarray(array, dtype=np.float32), kind)
    except NotImplementedError:
        import tiny_llama

        return tiny_llama.quantize_rows(array, kind)


def write(
    path: Path, arch: str, metadata: Metadata, tensors: Tensors, *, per_shard: int = 0, alignment: int = 32
) -> list[Path]:
    """Write one file, or with `per_shard` tensors in each `<stem>-00001-of-0000N.gguf` and so on; return the paths.

    Plain Python values become the types that converters use; numpy scalars and arrays keep their own type.
    """
    writer = _Writer(path, arch, split_max_tensors=per_shard)
    if alignment != writer.data_alignment:
        writer.add_custom_alignment(alignment)
    for key, value in metadata.items():
        writer.add_key_value(key, *_typed(value))
    for name, (array, kind) in tensors.items():
        writer.add_tensor(name, encode(array, kind), raw_dtype=kind)
    paths = writer.format_shard_names(path)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return paths


def noise(
    name: str, shape: tuple[int, ...], seed: int, mean: float = 0.0, deviation: float | None = None
) -> np.ndarray:
    """Seeded normal noise for the tensor `name`; the default deviation keeps the activations near one."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    deviation = shape[-1] ** -0.5 if deviation is None else deviation
    return np.float32(mean) + np.float32(deviation) * rng.standard_normal(shape, dtype=np.float32)


# --- a model in the style of llama.cpp's converter --------------------------------------------------------------------


@dataclass
class Model:
    """A GGUF file before it is written."""

    arch: str
    metadata: Metadata
    tensors: Tensors
    n_block: int
    n_expert: int
    n_embd: int
    seed: int

    def add(
        self, name: str, *shape: int, kind: Kind = Kind.F32, mean: float = 0.0, deviation: float | None = None
    ) -> None:
        """Add one tensor of noise, sizes in numpy order."""
        self.tensors[name] = (noise(name, shape, self.seed, mean, deviation), kind)


Change = Callable[[Model], None]

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_end|>"]
CHAT_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def _byte_tokens() -> list[str]:
    """The 256 tokens of byte-level BPE: printable bytes stand for themselves, the others for characters from 256 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(256, 512))
    return [chr(byte if byte in printable else next(hidden)) for byte in range(256)]


def vocabulary(n_vocab: int) -> Metadata:
    """A byte-level BPE vocabulary that can tokenise any text; its merges build all words of two letters, three, ..."""
    pieces = _byte_tokens()
    letters = pieces[ord("a") : ord("z") + 1]
    every_word = ("".join(word) for length in count(2) for word in product(letters, repeat=length))
    words = list(islice(every_word, n_vocab - len(pieces) - len(SPECIAL_TOKENS)))
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": pieces + words + SPECIAL_TOKENS,
        "tokenizer.ggml.token_type": [1] * (n_vocab - len(SPECIAL_TOKENS)) + [3] * len(SPECIAL_TOKENS),
        "tokenizer.ggml.merges": [f"{word[:-1]} {word[-1]}" for word in words],
        "tokenizer.ggml.eos_token_id": n_vocab - 1,
        "tokenizer.ggml.padding_token_id": n_vocab - 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def _general(n_expert: int) -> Metadata:
    """What a converter says about a model, and one value of every type there is."""
    return {
        "general.type": "model",
        "general.name": "Tiny Qwen3 MoE",
        "general.basename": "Tiny-Qwen3",
        "general.size_label": f"{n_expert}x0.4M" if n_expert else "0.4M",
        "general.license": "apache-2.0",
        "general.description": "",
        "general.base_model.count": 1,
        "general.base_model.0.name": "Tiny Qwen3 Base",
        "general.base_model.0.organization": "Tiny",
        "general.base_model.0.repo_url": "https://example.org/tiny/base",
        "general.tags": ["text-generation", "größer"],
        "general.datasets": [],
        "general.quantization_version": 2,
        "general.file_type": 0,
        "tiny.u8": np.uint8(200),
        "tiny.i8": np.int8(-100),
        "tiny.u16": np.uint16(60000),
        "tiny.i16": np.int16(-30000),
        "tiny.i32": np.int32(-2000000000),
        "tiny.u64": np.uint64(2**63),
        "tiny.i64": np.int64(-(2**62)),
        "tiny.f64": np.float64(1 / 3),
        "tiny.bool": True,
        "tiny.flags": [True, False],
        "tiny.floats": [0.5, -0.25],
        "tiny.longs": np.array([1, 2**40], np.int64),
        "tiny.no_numbers": np.array([], np.int32),
    }


def _add_attention(model: Model, block: str, heads: int, kv_heads: int, head: int) -> None:
    width, kv_width = heads * head, kv_heads * head
    model.add(f"{block}.attn_norm.weight", model.n_embd, mean=1.0, deviation=0.1)
    model.add(f"{block}.attn_q.weight", width, model.n_embd)
    model.add(f"{block}.attn_k.weight", kv_width, model.n_embd)
    model.add(f"{block}.attn_v.weight", kv_width, model.n_embd)
    model.add(f"{block}.attn_output.weight", model.n_embd, width)
    model.add(f"{block}.attn_q_norm.weight", head, mean=1.0, deviation=0.1)
    model.add(f"{block}.attn_k_norm.weight", head, mean=1.0, deviation=0.1)
    model.add(f"{block}.ffn_norm.weight", model.n_embd, mean=1.0, deviation=0.1)


def _add_experts(model: Model, block: str, n_ff: int, kind: Kind) -> None:
    n_expert, n_embd = model.n_expert, model.n_embd
    model.add(f"{block}.ffn_gate_inp.weight", n_expert, n_embd, deviation=2 * n_embd**-0.5)
    model.add(f"{block}.ffn_gate_exps.weight", n_expert, n_ff, n_embd, kind=kind)
    model.add(f"{block}.ffn_up_exps.weight", n_expert, n_ff, n_embd, kind=kind)
    model.add(f"{block}.ffn_down_exps.weight", n_expert, n_embd, n_ff, kind=kind)


def _add_dense(model: Model, block: str, n_ff: int, kind: Kind) -> None:
    model.add(f"{block}.ffn_gate.weight", n_ff, model.n_embd, kind=kind)
    model.add(f"{block}.ffn_up.weight", n_ff, model.n_embd, kind=kind)
    model.add(f"{block}.ffn_down.weight", model.n_embd, n_ff, kind=kind)


def qwen3moe(
    path: Path,
    *,
    n_block: int = 2,
    n_expert: int = 16,
    n_used: int = 4,
    n_embd: int = 256,
    n_ff: int = 256,
    n_vocab: int = 320,
    heads: int = 4,
    kv_heads: int = 2,
    head: int = 32,
    types: Kind = Kind.F32,
    tokenizer: bool = True,
    seed: int = 0,
    changes: Sequence[Change] = (),
    metadata: Metadata | None = None,
    per_shard: int = 0,
    alignment: int = 32,
) -> Path:
    """Write a model that llama.cpp loads, or with `n_expert=0` its dense sister qwen3; return the first shard's path.

    `types` is the type of the expert weights; the K- and I-types need widths that are multiples of 256.
    """
    arch = "qwen3moe" if n_expert else "qwen3"
    own: Metadata = {
        "block_count": n_block,
        "context_length": 512,
        "embedding_length": n_embd,
        "feed_forward_length": 3 * n_ff if n_expert else n_ff,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": head,
        "attention.value_length": head,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 10000.0,
        "vocab_size": n_vocab,
    }
    if n_expert:
        own |= {"expert_count": n_expert, "expert_used_count": n_used, "expert_feed_forward_length": n_ff}
    words = vocabulary(n_vocab) if tokenizer else {"tokenizer.ggml.model": "none"}
    everything = _general(n_expert) | {f"{arch}.{key}": value for key, value in own.items()} | words
    model = Model(arch, everything | (metadata or {}), {}, n_block, n_expert, n_embd, seed)
    model.add("token_embd.weight", n_vocab, n_embd, deviation=1.0)
    for block in range(n_block):
        _add_attention(model, f"blk.{block}", heads, kv_heads, head)
        (_add_experts if n_expert else _add_dense)(model, f"blk.{block}", n_ff, types)
    model.add("output_norm.weight", n_embd, mean=1.0, deviation=0.1)
    model.add("output.weight", n_vocab, n_embd)
    for change in changes:
        change(model)
    return write(path, model.arch, model.metadata, model.tensors, per_shard=per_shard, alignment=alignment)[0]
