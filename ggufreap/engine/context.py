"""A context of llama.cpp: what it is asked for, and how many texts at once there is room for.

Texts that run together lie in one graph one behind the other, each with its own positions and in its own part of the
memory (src/llama-kv-cache.cpp, n_stream), so that a weight is read once for all of them. llama.cpp puts them into one
graph where each gives it as many tokens (src/llama-batch.cpp, split_equal).
"""

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ggufreap.architecture.nodes import RoutingNodes
from ggufreap.container.gguf_file import shards_of
from ggufreap.engine import log
from ggufreap.engine.fitting import free_memory
from ggufreap.engine.protocol import Tokens
from ggufreap.errors import EngineError
from ggufreap.options.engine import CACHE_TYPES, FITTING_TEXTS, FLASH_ATTENTION, EngineSettings
from ggufreap.units import size

# What is tried where memory decides, and how much of what is free beside the weights it may take. Eight gained hardly
# more than four on a quiet machine, and lost beside programs that used its memory (tests/benchmarks/README.md).
AT_ONCE = (4, 2, 1)
SHARE = 0.5
SEQUENCE = 256  # tokens, of which each text's part of the memory holds a multiple (src/llama-context.cpp, n_ctx_seq)
_LOG = logging.getLogger(__name__)


def open_context(
    llama: Any, model: Any, path: Path, nodes: RoutingNodes, settings: EngineSettings, callback: Any, most: int
) -> tuple[Any, int]:
    """A context, and how many texts it takes at once: `settings.n_together`, or as many as there is room for.

    There is work for `most`. Raises EngineError when llama.cpp refuses.
    """
    counts = _counts(nodes, settings.n_together, most)
    for count in counts:
        before = log.context_nbytes()
        context = llama.llama_init_from_model(model, _parameters(llama, nodes, settings, callback, count))
        taken = log.context_nbytes() - before + _logits_nbytes(llama, model, nodes, settings, count)
        if context and (count == counts[-1] or taken <= SHARE * _room(path)):
            if counts[0] > 1:
                _LOG.info("%d texts at once, in %s of memory beside the weights", count, size(taken))
            return context, count
        if context:
            llama.llama_free(context)
    raise EngineError(f"llama.cpp cannot run {path} with -c {settings.n_ctx}: {log.reason()}; lower -c or -ub")


def _counts(nodes: RoutingNodes, wanted: int, most: int) -> list[int]:
    """How many texts at once are tried, the most first."""
    if alone := _why_alone(nodes):
        if min(wanted, most) > 1:
            _LOG.warning("-np %d: %s, so its chunks are run one by one", wanted, alone)
        return [1]
    if wanted != FITTING_TEXTS:
        return [min(wanted, most)]
    return [count for count in sorted({most, *AT_ONCE}, reverse=True) if count <= min(most, AT_ONCE[0])]


def fill(
    batch: Any, tokens: Tokens, positions: npt.ArrayLike, sequences: npt.ArrayLike, outputs: npt.ArrayLike
) -> None:
    """Put `[n]` tokens into a llama_batch; the rest is one for each of them, or the same for all."""
    batch.n_tokens = count = len(tokens)
    np.ctypeslib.as_array(batch.token, (count,))[:] = tokens
    np.ctypeslib.as_array(batch.pos, (count,))[:] = positions
    np.ctypeslib.as_array(batch.n_seq_id, (count,))[:] = 1
    np.ctypeslib.as_array(batch.logits, (count,))[:] = outputs
    for index, sequence in enumerate(np.broadcast_to(np.asarray(sequences), count).tolist()):
        batch.seq_id[index][0] = sequence


def _why_alone(nodes: RoutingNodes) -> str:
    """Why two texts of a model are never in one graph; empty where they may be."""
    if not nodes.causal:
        return "this model looks ahead and takes a chunk at once"
    if nodes.headless:  # src/llama-memory-hybrid.cpp, init_batch
        return "this model ends in hidden states, for which llama.cpp computes text by text"
    return ""


def _parameters(llama: Any, nodes: RoutingNodes, settings: EngineSettings, callback: Any, count: int) -> Any:
    parameters = llama.llama_context_default_params()
    n_batch, n_ubatch = settings.batches(nodes.causal)
    parameters.n_batch, parameters.n_ubatch = count * n_batch, count * n_ubatch
    if count > 1:
        parameters.n_ctx = count * -(-settings.n_ctx // SEQUENCE) * SEQUENCE
        parameters.n_seq_max, parameters.kv_unified = count, False
    else:
        parameters.n_ctx = settings.n_ctx
        parameters.n_seq_max, parameters.kv_unified = settings.n_parallel, settings.n_parallel > 1
    parameters.n_threads = settings.cpu_threads
    parameters.n_threads_batch = settings.n_threads_batch or parameters.n_threads
    if callback is not None:
        parameters.cb_eval = callback
    type_k, type_v, flash_attn = settings.attention
    parameters.type_k, parameters.type_v = CACHE_TYPES[type_k], CACHE_TYPES[type_v]
    parameters.flash_attn_type = FLASH_ATTENTION[flash_attn]
    if nodes.headless:
        parameters.embeddings, parameters.pooling_type = True, llama.LLAMA_POOLING_TYPE_NONE
    return parameters


def _logits_nbytes(llama: Any, model: Any, nodes: RoutingNodes, settings: EngineSettings, count: int) -> int:
    """What llama.cpp takes for logits of all tokens of a call (src/llama-context.cpp, output_reserve)."""
    n_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    return 4 * int(n_vocab) * count * settings.batches(nodes.causal)[0]


def _room(path: Path) -> float:
    """Bytes that are free beside the weights: the system counts those of a mapped file as free."""
    free = free_memory()
    return float("inf") if free is None else free - sum(map(os.path.getsize, shards_of(path)))
