"""How much slower calibration is than plain prefill of the same tokens by the same llama.cpp, and one pass than two.

Plain prefill is llama_decode without an eval callback, once with the logits of the last token only (as llama-bench
measures pp), once with the logits of all tokens (as perplexity needs them). The former skips the experts of the last
block for all tokens but one, which calibration cannot, so the fewer blocks the more it is favoured: --blocks says how
many there are. "the same graph" ends where calibration ends and looks at nothing: what is above it is observation.

One pass gives the statistics of REAP and the importance matrix. The alternative is a pass for each: "calibrate" and
"imatrix alone", which is the same code without the routing tap. "at once": of several chunks in one graph, per chunk.
All in seconds of processor time.
"""

import ctypes
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from bench import Sizes, arguments, processor_timed, report, take_turns, write_moe
from gguf import GGMLQuantizationType as Kind

from ggufreap.architecture.layout import bind
from ggufreap.architecture.nodes import FINAL_NORM, WEIGHTED
from ggufreap.container import open_gguf
from ggufreap.engine.importance import ImportanceSums
from ggufreap.engine.importance_tap import ImportanceTap
from ggufreap.engine.native import bindings
from ggufreap.engine.protocol import Tokens
from ggufreap.engine.session import LlamaSession
from ggufreap.engine.taps import StopTap, Together
from ggufreap.observation import ExpertStatistics, observables
from ggufreap.options.engine import EngineSettings


class PlainPrefill:
    """llama_decode of one chunk without an eval callback, in a second context of the session's loaded model."""

    def __init__(self, engine: LlamaSession, settings: EngineSettings) -> None:
        self.llama: Any = bindings()
        parameters = self.llama.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = settings.n_ctx
        parameters.n_ubatch = settings.n_ubatch
        parameters.n_threads = parameters.n_threads_batch = settings.n_threads
        self.context = self.llama.llama_init_from_model(engine._model, parameters)

    def run(self, tokens: Tokens, n_outputs: int) -> None:
        """Decode with the logits of the last `n_outputs` tokens."""
        llama, count = self.llama, len(tokens)
        llama.llama_memory_clear(llama.llama_get_memory(self.context), True)
        batch = llama.llama_batch_get_one(tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)), count)
        wanted = (np.arange(count) >= count - n_outputs).astype(np.int8)
        batch.logits = wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))
        assert llama.llama_decode(self.context, batch) == 0
        llama.llama_synchronize(self.context)

    def close(self) -> None:
        self.llama.llama_free(self.context)


def measure(path: Path, settings: EngineSettings, rounds: int) -> dict[str, list[float]]:
    layout = bind(open_gguf(path))
    blocks, used = [block.index for block in layout.trunk], [block.n_used for block in layout.trunk]
    statistics, sums = ExpertStatistics.empty(blocks, used, layout.n_expert), ImportanceSums()
    with LlamaSession(path, layout.nodes, settings, together=settings.n_together) as engine:
        plain, n_together = PlainPrefill(engine, settings), engine.n_together
        shape = n_together, settings.n_ctx
        chunks = np.random.default_rng(0).integers(0, engine.n_vocab, shape).astype(np.int32)
        chunk = chunks[0]

        def calibrate(chunks: Tokens, importance: ImportanceSums | None) -> None:
            nonlocal statistics
            for batches in engine.route_together(list(chunks), importance, observables()):
                statistics = statistics.observe(batches, chunks.shape[1])

        def imatrix_alone() -> None:
            found = ImportanceSums()
            tap = Together((ImportanceTap(found, engine._reader), StopTap(FINAL_NORM)))
            list(engine._decode(chunk[None], tap))
            sums.add(found)

        def both(chunks: Tokens) -> None:
            found = ImportanceSums()
            calibrate(chunks, found)
            sums.add(found)

        end = StopTap(f"{WEIGHTED}-{blocks[-1]}")
        contestants = {
            "plain prefill, last logits": lambda: processor_timed(lambda: plain.run(chunk, 1)),
            "plain prefill, all logits": lambda: processor_timed(lambda: plain.run(chunk, len(chunk))),
            "the same graph": lambda: processor_timed(lambda: list(engine._decode(chunk[None], end))),
            "calibrate": lambda: processor_timed(lambda: calibrate(chunk[None], None)),
            "imatrix alone": lambda: processor_timed(imatrix_alone),
            "calibrate with imatrix": lambda: processor_timed(lambda: both(chunk[None])),
            "at once, calibrate": lambda: processor_timed(lambda: calibrate(chunks, None)) / n_together,
            "at once, with imatrix": lambda: processor_timed(lambda: both(chunks)) / n_together,
        }
        take_turns(contestants, 1)  # the first touch of every page belongs to nobody
        seconds = take_turns(contestants, rounds)
        plain.close()
    statistics.check()
    return seconds


def main() -> None:
    parser = arguments(__doc__, rounds=7)
    parser.add_argument("--model", type=Path, help="an existing MoE model instead of a random one")
    parser.add_argument("--blocks", type=int, default=24, help="of the random model (24)")
    parser.add_argument("--experts", type=int, default=64, help="of the random model (64)")
    parser.add_argument("--type", choices=("Q8_0", "Q4_K"), default="Q4_K", help="of its gate and up experts (Q4_K)")
    parser.add_argument("-c", type=int, default=512, help="tokens per chunk (512)")
    parser.add_argument("-ub", type=int, default=512, help="tokens at once (512)")
    parser.add_argument("-np", type=int, default=8, help="chunks at once (8)")
    parser.add_argument("-t", type=int, default=1, help="threads (1)")
    options = parser.parse_args()
    settings = EngineSettings(options.c, options.ub, options.t, n_gpu_layers=0, n_together=options.np)
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        path = options.model
        if path is None:
            path = Path(folder, "model.gguf")
            write_moe(path, Sizes(options.blocks, options.experts, n_ff=768), (Kind[options.type], Kind.Q8_0))
        seconds = measure(path, settings, options.rounds)
    last, every, same, calibrate, imatrix, both, calibrate_at_once, both_at_once = map(median, seconds.values())
    plain = {"last logits": last, "all logits": every, "the same graph": same}
    passes = {
        "calibrate": calibrate,
        "calibrate with imatrix": both,
        "at once": calibrate_at_once,
        "at once with imatrix": both_at_once,
    }
    figures = {f"{name} / {other}": passes[name] / plain[other] for name in passes for other in plain}
    figures |= {"one pass / two": both / (calibrate + imatrix)}
    report(seconds, figures)


if __name__ == "__main__":
    main()
