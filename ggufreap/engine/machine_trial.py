"""Runs the embedded model in one way, for ggufreap.engine.machine, which wants to know whether that ends well.

Run as `python -m ggufreap.engine.machine_trial` with a job as JSON on standard input; answers with logits as JSON.
"""

import json
import sys
from pathlib import Path

import numpy as np

from ggufreap.architecture.nodes import RoutingNodes
from ggufreap.engine.machine import Machine
from ggufreap.engine.session import LlamaSession
from ggufreap.errors import GgufReapError
from ggufreap.options.engine import EngineSettings

MODEL = Path(__file__).parents[1] / "demonstration" / "demo-moe-Q8_0.gguf"
N_TOKENS = 64  # enough for the kernels of many rows
SETTINGS = EngineSettings(n_ctx=N_TOKENS + 1, n_ubatch=N_TOKENS, n_threads=2)


def _main() -> None:
    job = json.load(sys.stdin)
    way = Machine(job["extra_buffers"], job["offload"], devices=("whatever there is",))
    nodes = RoutingNodes((), 0, weighted_input=False, causal=True, headless=False)
    with LlamaSession(MODEL, nodes, SETTINGS, way) as engine:
        tokens = np.random.default_rng(0).integers(0, engine.n_vocab, N_TOKENS + 1).astype(np.int32)
        memory = engine.sequences()
        many, one = (memory.feed({0: part})[0] for part in (tokens[:-1], tokens[-1:]))
    json.dump(np.concatenate([many, one]).tolist(), sys.stdout)


if __name__ == "__main__":
    try:
        _main()
    except GgufReapError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
