"""What narrowing takes: time and memory of summing up and of solving, a block, and how both grow to a whole model.

    python tests/benchmarks/narrowing_cost.py MODEL.gguf [--chunks N] [--width N] [--of-blocks N] [--of-tokens N]

MODEL.gguf may have fewer blocks than the model that is meant, of the same shapes (real_shape.py writes one); what is
said of all --of-blocks blocks and --of-tokens tokens is extrapolated from it. Processor time, since other work on the
machine changes wall-clock time.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from bench import peak

from ggufreap.corpus import Chunk
from ggufreap.engine.graph import Piece
from ggufreap.engine.prefixes import Prefixes
from ggufreap.engine.session import LlamaSession
from ggufreap.files import writing
from ggufreap.model import Model
from ggufreap.narrowing.collecting import Run, collect
from ggufreap.narrowing.curvature import curvature_nbytes
from ggufreap.narrowing.solving import down_name
from ggufreap.narrowing.workplace import Task, Workplace
from ggufreap.observation import Texts
from ggufreap.options.engine import EngineSettings
from ggufreap.progress import silent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--chunks", type=int, default=4, help="of random tokens")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--of-blocks", type=int, default=40)
    parser.add_argument("--of-tokens", type=int, default=150_000)
    parser.add_argument("-c", "--ctx-size", type=int, default=512)
    parser.add_argument("-t", "--threads", type=int, default=1)
    parser.add_argument("--dir", type=Path, help="where solved blocks go while it runs")
    options = parser.parse_args()
    model, n_ctx = Model.open(options.model), options.ctx_size
    layout = model.layout
    keep = {block.index: tuple(range(layout.n_expert)) for block in layout.trunk}
    source_width = model.file.by_name[down_name(layout.trunk[0].index)].shape[-1]
    settings = EngineSettings(n_ctx, n_ctx, options.threads, n_gpu_layers=0, mmap=True, repack=False)
    with (
        LlamaSession(model.path, layout.nodes, settings) as engine,
        tempfile.TemporaryDirectory(dir=options.dir) as folder,
        writing(),
    ):
        tokens = np.random.default_rng(0).integers(0, engine.n_vocab, (options.chunks, n_ctx)).astype(np.int32)
        texts = Texts(tuple(Chunk(chunk, "random", number) for number, chunk in enumerate(tokens)), "")
        place = Workplace(
            Path(folder), Task(model.file.fingerprint, keep, source_width, options.width, "", "all", n_ctx, n_ctx)
        )
        engine.route(tokens[0])  # the first touch of the weights belongs to nobody
        before, started = peak(), time.process_time()
        for chunk in tokens:
            engine.route(chunk)
        plain = (time.process_time() - started) / tokens.size
        started = time.process_time()
        piece = Piece(0, layout.n_trunk - 1, True)
        with silent("", None, "") as bar:
            run = Run(Prefixes(engine, layout.n_trunk), layout.nodes, model.file, texts, place)
            found = collect(run, piece, -1, bar)
        summing, summed = (time.process_time() - started) / tokens.size, peak()
        started = time.process_time()
        with silent("", None, "") as bar:
            for curvature in found.values():
                place.write(curvature, model.file, bar)
        solving, solved = (time.process_time() - started) / len(found), peak()
    n_blocks, sums = len(found), curvature_nbytes(layout.n_expert, source_width, n_ctx, layout.n_used)
    share = options.of_blocks / n_blocks
    print(f"{n_blocks} blocks of {layout.n_expert} experts x {source_width} neurons, {options.width} stay")
    print(f"running the text  {1e3 * plain / n_blocks:.3f} ms of processor time a token and block")
    print(f"summing up        {1e3 * (summing - plain) / n_blocks:.3f} ms more, {summing / plain:.2f} of running")
    print(f"solving           {solving:.1f} s of processor time a block")
    print(
        f"memory            {sums / 1e6:.0f} MB a block announced; peaks {before:.0f}, {summed:.0f} and {solved:.0f} MB"
    )
    print(
        f"extrapolated to {options.of_blocks} blocks and {options.of_tokens:,} tokens: "
        f"{share * summing * options.of_tokens / 3600:.1f} h summing up, {options.of_blocks * solving / 3600:.2f} h "
        f"solving, {options.of_blocks * sums / 1e9:.1f} GB of sums, as much of it at a time as memory allows"
    )


if __name__ == "__main__":
    main()
