"""An engine without llama.cpp: deterministic routing and logits, so that most tests need no native library."""

from collections.abc import Collection, Sequence

import numpy as np

from ggufreap.architecture.nodes import EXPERT_OUTPUT, RoutedBlock, RoutingNodes
from ggufreap.engine.importance import ImportanceSums, Sums
from ggufreap.engine.protocol import Keep, RoutedBatch, Tokens


class FakeEngine:
    """Routes by a seeded table of token and block, so equal chunks give equal results wherever they come."""

    n_vocab = 128
    n_together = 1

    def __init__(
        self, blocks: Sequence[int] = (0, 1), n_expert: int = 8, n_used: int = 2, bos: int | None = None
    ) -> None:
        routed = tuple(RoutedBlock(block, n_used, EXPERT_OUTPUT) for block in blocks)
        self.nodes = RoutingNodes(routed, n_expert, weighted_input=False, causal=True, headless=False)
        self.bos = bos
        self.n_routed = 0

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> Tokens:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32) % self.n_vocab

    def route(
        self, tokens: Tokens, importance: ImportanceSums | None = None, observables: Collection[str] = ()
    ) -> list[RoutedBatch]:
        self.n_routed += 1
        if importance is not None:
            squares = np.bincount(tokens, minlength=self.n_vocab).astype(np.float32)
            sums = {"blk.0.attn_q.weight": Sums(squares[None] / 3, np.array([len(tokens)]))}
            importance.add(ImportanceSums(sums, {"blk.0.attn_q.weight": "blk.0.attn_q.weight"}))
        batches = []
        for block in self.nodes.blocks:
            table = np.random.default_rng(block.index)
            order = table.random((self.n_vocab, self.nodes.n_expert)).argsort(axis=1)[:, : block.n_used]
            weights, norms, peaks = table.random((3, self.n_vocab, block.n_used)).astype(np.float32)
            experts = order.astype(np.int32)[tokens]
            g, f = weights[tokens], norms[tokens]
            directions = table.normal(size=(self.n_vocab, block.n_used, 3))
            directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
            outputs = (g * f)[..., None] * directions[tokens]
            known = {
                "norms": f,
                "contributions": g * f,
                "peaks": peaks[tokens],
                "products": outputs @ outputs.swapaxes(1, 2),
                "stream_norms": 1 + table.random(self.n_vocab).astype(np.float32)[tokens],
            }
            batches.append(RoutedBatch(block.index, experts, g, {name: known[name] for name in observables}))
        return batches

    def route_together(
        self, chunks: Sequence[Tokens], importance: ImportanceSums | None = None, observables: Collection[str] = ()
    ) -> list[list[RoutedBatch]]:
        return [self.route(chunk, importance, observables) for chunk in chunks]

    def logits(self, tokens: Tokens, keep: Keep | None = None, scored_from: int = 0) -> np.ndarray:
        table = np.random.default_rng(7).normal(size=(self.n_vocab, self.n_vocab)).astype(np.float32)
        return table[tokens][scored_from:]
