"""Text that a model writes on."""

import numpy as np

from ggufreap.engine.protocol import Engine, Tokens


def continuation(engine: Engine, prompt: Tokens, n_tokens: int, temperature: float, seed: int) -> Tokens:
    """Sample `n_tokens` after `prompt`; runs the whole text for every token, so it is for short samples only."""
    random = np.random.default_rng(seed)
    tokens = prompt
    for _ in range(n_tokens):
        logits = engine.logits(tokens)[-1].astype(np.float64) / temperature
        weights = np.exp(logits - logits.max())
        tokens = np.append(tokens, np.int32(random.choice(len(weights), p=weights / weights.sum()))).astype(np.int32)
    return tokens[len(prompt) :]
