"""The architecture that llama.cpp calls qwen3moe, in as little torch as trains well on a CPU."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    """Sizes of the demo model; rows are multiples of 32, as Q8_0 needs."""

    vocabulary: int = 2048
    width: int = 256
    blocks: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_size: int = 64
    experts: int = 16
    experts_used: int = 2
    expert_width: int = 128
    context: int = 256
    rope_base: float = 10_000.0
    epsilon: float = 1e-6


def rotate(x: Tensor, base: float) -> Tensor:
    """Apply RoPE in the "neox" layout: the halves of a head are the pairs' coordinates."""
    length, size = x.shape[-2:]
    frequencies = base ** -(torch.arange(0, size, 2) / size)
    angles = torch.arange(length)[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


class Attention(nn.Module):
    """Grouped-query attention with normalised queries and keys."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.q = nn.Linear(s.width, s.heads * s.head_size, bias=False)
        self.k = nn.Linear(s.width, s.kv_heads * s.head_size, bias=False)
        self.v = nn.Linear(s.width, s.kv_heads * s.head_size, bias=False)
        self.output = nn.Linear(s.heads * s.head_size, s.width, bias=False)
        self.q_norm = nn.RMSNorm(s.head_size, eps=s.epsilon)
        self.k_norm = nn.RMSNorm(s.head_size, eps=s.epsilon)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape

        def heads(y: Tensor) -> Tensor:
            return y.view(batch, length, -1, self.s.head_size)

        q = rotate(self.q_norm(heads(self.q(x))).transpose(1, 2), self.s.rope_base)
        k = rotate(self.k_norm(heads(self.k(x))).transpose(1, 2), self.s.rope_base)
        v = heads(self.v(x)).transpose(1, 2)
        group = self.s.heads // self.s.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.output(y.transpose(1, 2).reshape(batch, length, -1))


class Experts(nn.Module):
    """Softmax router over all experts, the best ones' weights renormalised, SwiGLU experts."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.router = nn.Linear(s.width, s.experts, bias=False)
        self.gate = nn.Parameter(torch.empty(s.experts, s.expert_width, s.width))
        self.up = nn.Parameter(torch.empty(s.experts, s.expert_width, s.width))
        self.down = nn.Parameter(torch.empty(s.experts, s.width, s.expert_width))
        self.balance = torch.zeros(())
        self.usage = torch.zeros(s.experts)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, self.s.width)
        probabilities = self.router(tokens).softmax(dim=-1)
        weights, chosen = probabilities.topk(self.s.experts_used, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)

        # Sorted by expert, each expert's tokens are one contiguous matrix.
        order = chosen.flatten().argsort(stable=True)
        counts = chosen.flatten().bincount(minlength=self.s.experts)
        source = order // self.s.experts_used
        outputs = []
        parts = tokens[source].split(counts.tolist())
        # unbind() gives each expert its own small gradient; indexing would give full-size ones.
        for part, gate, up, down in zip(parts, self.gate.unbind(), self.up.unbind(), self.down.unbind(), strict=True):
            outputs.append((F.silu(part @ gate.T) * (part @ up.T)) @ down.T)
        weighted = torch.cat(outputs) * weights.flatten()[order, None]

        # Switch-Transformer loss: 1 when the experts share the tokens evenly.
        self.usage = counts.float() / counts.sum()
        self.balance = self.s.experts * (self.usage * probabilities.mean(dim=0)).sum()
        return torch.zeros_like(tokens).index_add(0, source, weighted).view_as(x)


class Block(nn.Module):
    """Attention and experts, each behind a norm and added to the stream."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(s.width, eps=s.epsilon)
        self.attention = Attention(s)
        self.experts_norm = nn.RMSNorm(s.width, eps=s.epsilon)
        self.experts = Experts(s)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.experts(self.experts_norm(x))


class Model(nn.Module):
    """Tokens in, logits out; the embedding is the output matrix too."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.embedding = nn.Embedding(s.vocabulary, s.width)
        self.blocks = nn.ModuleList(Block(s) for _ in range(s.blocks))
        self.norm = nn.RMSNorm(s.width, eps=s.epsilon)
        for name, weight in self.named_parameters():
            if weight.dim() > 1:
                last = name.endswith(("output.weight", "down"))
                nn.init.normal_(weight, std=0.02 / (2 * s.blocks) ** 0.5 if last else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.embedding.weight)

    def balance(self) -> Tensor:
        """Return the load-balancing loss of the last forward pass."""
        return torch.stack([block.experts.balance for block in self.blocks]).mean()
