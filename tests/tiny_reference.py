"""The forward pass of a qwen3moe file in numpy, written from the model's definition and not from llama.cpp's graph."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

# llama.cpp's floor for the sum of the chosen probabilities, the smallest normal number in half precision.
SMALLEST_SUM = 6.103515625e-5


@dataclass(frozen=True)
class Routed:
    """What one block's router chose and what its experts answered."""

    ids: np.ndarray  # [n_tokens, n_used], best first
    g: np.ndarray  # [n_tokens, n_used], renormalised weights
    f: np.ndarray  # [n_tokens, n_used, n_embd], outputs before weighting
    s: np.ndarray  # [n_tokens, n_embd], the residual stream behind the block
    h: np.ndarray  # [n_tokens, n_used, width], what the down matrices multiply


class _File:
    """Metadata and dequantised tensors of one model."""

    def __init__(self, path: Path, dtype: type[np.floating[Any]]) -> None:
        self._reader = gguf.GGUFReader(path)
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self._dtype = dtype
        self.unread = {name for name in self._tensors if not name.endswith(".input_scale")}
        assert self._reader.fields["general.architecture"].contents() == "qwen3moe"

    def __getitem__(self, key: str) -> Any:
        return self._reader.fields[f"qwen3moe.{key}"].contents()

    def tensor(self, name: str) -> np.ndarray:
        self.unread.discard(name)
        tensor = self._tensors[name]
        return gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(self._dtype)

    def experts(self, block: int, part: str) -> np.ndarray:
        """[n_expert, n_out, n_in] with the optional scale per expert applied."""
        stem = f"blk.{block}.ffn_{part}_exps"
        weight = self.tensor(f"{stem}.weight")
        if f"{stem}.scale" in self._tensors:
            weight *= self.tensor(f"{stem}.scale")[:, None, None]
        return weight

    def head(self) -> np.ndarray:
        """The output matrix, which may be the embedding."""
        return self.tensor("output.weight" if "output.weight" in self._tensors else "token_embd.weight")


def _rms_norm(x: np.ndarray, weight: np.ndarray, epsilon: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * weight


def _softmax(x: np.ndarray) -> np.ndarray:
    exponential = np.exp(x - x.max(-1, keepdims=True))
    return exponential / exponential.sum(-1, keepdims=True)


def _rotate(x: np.ndarray, base: float) -> np.ndarray:
    """Rotary embedding of x [n_tokens, heads, head] that pairs the two halves of a head (neox)."""
    n_tokens, _, head = x.shape
    angle = np.arange(n_tokens)[:, None] * base ** (-np.arange(0, head, 2) / head)
    cos, sin = np.cos(angle)[:, None].astype(x.dtype), np.sin(angle)[:, None].astype(x.dtype)
    first, second = x[..., : head // 2], x[..., head // 2 :]
    return np.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)


def _attention(file: _File, block: int, x: np.ndarray) -> np.ndarray:
    """Causal attention with normalised queries and keys; several query heads share one key-value head."""
    n_tokens, heads, kv_heads = len(x), file["attention.head_count"], file["attention.head_count_kv"]
    epsilon, base = file["attention.layer_norm_rms_epsilon"], file["rope.freq_base"]

    def project(part: str, count: int) -> np.ndarray:
        return (x @ file.tensor(f"blk.{block}.attn_{part}.weight").T).reshape(n_tokens, count, -1)

    q = _rms_norm(project("q", heads), file.tensor(f"blk.{block}.attn_q_norm.weight"), epsilon)
    k = _rms_norm(project("k", kv_heads), file.tensor(f"blk.{block}.attn_k_norm.weight"), epsilon)
    q, k, v = _rotate(q, base), _rotate(k, base), project("v", kv_heads)
    k, v = (np.repeat(part, heads // kv_heads, axis=1) for part in (k, v))
    scores = np.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    future = np.triu(np.ones((n_tokens, n_tokens), dtype=bool), 1)
    mixed = np.einsum("hqk,khd->qhd", _softmax(np.where(future, -np.inf, scores)), v)
    return mixed.reshape(n_tokens, -1) @ file.tensor(f"blk.{block}.attn_output.weight").T


def _route(file: _File, block: int, x: np.ndarray, kept: Sequence[int] | None) -> tuple[np.ndarray, ...]:
    """Softmax over the experts, the best `n_used` of them with weights that sum to one, and a SwiGLU per expert."""
    logits = x @ file.tensor(f"blk.{block}.ffn_gate_inp.weight").T
    if kept is not None:
        logits[:, np.setdiff1d(np.arange(logits.shape[1]), kept)] = -np.inf
    probability = _softmax(logits)
    ids = np.argsort(-probability, axis=-1, kind="stable")[:, : file["expert_used_count"]]
    chosen = np.take_along_axis(probability, ids, axis=-1)
    g = chosen / np.maximum(chosen.sum(-1, keepdims=True), SMALLEST_SUM)
    gate, up, down = (file.experts(block, part) for part in ("gate", "up", "down"))
    f = np.empty((*ids.shape, x.shape[-1]), dtype=x.dtype)
    h = np.empty((*ids.shape, gate.shape[1]), dtype=x.dtype)
    for expert in np.unique(ids):
        token, slot = np.nonzero(ids == expert)
        opened = x[token] @ gate[expert].T
        h[token, slot] = opened / (1 + np.exp(-opened)) * (x[token] @ up[expert].T)
        f[token, slot] = h[token, slot] @ down[expert].T
    return ids, g, f, h


def forward(
    path: Path,
    tokens: list[int],
    dtype: type[np.floating[Any]] = np.float64,
    keep: Mapping[int, Sequence[int]] | None = None,
) -> tuple[np.ndarray, list[Routed]]:
    """Logits [n_tokens, n_vocab] of one sequence, and per block what was routed, with `keep` among those experts."""
    file = _File(path, dtype)
    epsilon = file["attention.layer_norm_rms_epsilon"]
    x, blocks = file.tensor("token_embd.weight")[tokens], []
    for block in range(file["block_count"]):
        x = x + _attention(file, block, _rms_norm(x, file.tensor(f"blk.{block}.attn_norm.weight"), epsilon))
        normed = _rms_norm(x, file.tensor(f"blk.{block}.ffn_norm.weight"), epsilon)
        ids, g, f, h = _route(file, block, normed, keep and keep[block])
        x = x + (g[..., None] * f).sum(1)
        blocks.append(Routed(ids, g, f, x, h))
    logits = _rms_norm(x, file.tensor("output_norm.weight"), epsilon) @ file.head().T
    # A bias or scale that is not computed here must not pass for a difference of the engines.
    assert not file.unread, sorted(file.unread)
    return logits, blocks
