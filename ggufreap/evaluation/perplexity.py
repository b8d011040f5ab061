"""How well a model predicts held-out text."""

from dataclasses import dataclass

import numpy as np

from ggufreap.corpus import Corpus
from ggufreap.engine.protocol import Engine
from ggufreap.progress import Progress, silent


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log-likelihood, with the standard error of that mean carried over."""

    value: float
    stderr: float
    n_scored: int


def perplexity(engine: Engine, corpus: Corpus, progress: Progress = silent, stage: str = "perplexity") -> Perplexity:
    """Perplexity over the second half of every chunk, as llama-perplexity scores it (tools/perplexity)."""
    n_ctx = corpus.chunks.shape[1]
    losses = []
    with progress(stage, corpus.n_tokens, "tokens") as bar:
        for chunk in corpus.chunks:
            # Positions n_ctx/2 .. n_ctx-2 predict the token after them.
            logits = engine.logits(chunk)[n_ctx // 2 : -1].astype(np.float64)
            logits -= logits.max(axis=1, keepdims=True)
            log_total = np.log(np.exp(logits).sum(axis=1))
            targets = chunk[n_ctx // 2 + 1 :]
            losses.append(log_total - logits[np.arange(len(targets)), targets])
            bar.update(n_ctx)
    scored = np.concatenate(losses)
    value = float(np.exp(scored.mean()))
    return Perplexity(value, float(value * scored.std() / np.sqrt(len(scored) - 1)), len(scored))
