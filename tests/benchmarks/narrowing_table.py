"""Measures what narrower experts cost the trained model, alone and beside fewer experts, and prints the table of them.

    python tests/benchmarks/narrowing_table.py MODEL.gguf FOLDER --cache DIR > ggufreap/fitting/narrowing.toml

FOLDER holds `<domain>.calib.txt` and `<domain>.eval.txt`. Every figure is a mean KLD over the domains, measured as
`narrowing.py` does it, and goes on from the same cache. On the error output stands what fewer experts and fewer neurons
lose together beside the sum of both alone.
"""

import argparse
import sys
from itertools import product
from pathlib import Path

from loss_table import CHUNKS, CTX
from narrowing import Bench, Candidate

from ggufreap.architecture.layout import bind
from ggufreap.container import open_gguf
from ggufreap.engine.session import LlamaSession
from ggufreap.options.engine import EngineSettings
from ggufreap.options.target import DEFAULT_METHOD

WIDTHS = (1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2)  # fractions of the neurons that go
EXPERTS = (1 / 8, 1 / 4, 1 / 2)  # of the experts
TOGETHER = (1 / 8, 1 / 4, 1 / 2)  # of the neurons, beside each of EXPERTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--calibration-chunks", type=int, default=48, help="per domain")
    parser.add_argument("--chunks", type=int, default=CHUNKS, help="held-out chunks per domain")
    parser.add_argument("-c", "--ctx-size", type=int, default=CTX)
    parser.add_argument("-t", "--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path("narrowing-benchmark"), help="folder")
    options = parser.parse_args()
    options.cache.mkdir(exist_ok=True)
    file = open_gguf(options.model)
    layout = bind(file)
    with LlamaSession(
        file.path, layout.nodes, EngineSettings(options.ctx_size, options.ctx_size, options.threads)
    ) as engine:
        bench = Bench(engine, file, layout, options)

        def lost(experts: float, neurons: float) -> float:
            kept = round((1 - experts) * layout.n_expert), round((1 - neurons) * bench.source_width)
            found = bench.losses(Candidate(DEFAULT_METHOD, "uniform", *kept))
            mean = float(sum(each.mean() for each in found.values()) / len(found))
            print(f"{kept[0]} experts x {kept[1]} neurons: {mean:.5f}", file=sys.stderr, flush=True)
            return mean

        alone = {share: lost(0, share) for share in WIDTHS}
        pruned = {share: lost(share, 0) for share in EXPERTS}
        for experts, neurons in product(EXPERTS, TOGETHER):
            both, total = lost(experts, neurons), pruned[experts] + alone[neurons]
            print(f"{experts} and {neurons}: {both:.5f}, {both / total:.2f} of the sum", file=sys.stderr, flush=True)
    print(f"# Mean KLD in nats on held-out text of {options.model.name}, {options.chunks} chunks of {options.ctx_size}")
    print(
        "# tokens of each domain, by the fraction of the neurons of every expert that go and are made up for; made by"
    )
    print("# tests/benchmarks/narrowing_table.py.\n\n[narrowing]")
    for share, kld in alone.items():
        print(f'"{share:g}" = {kld:.5f}')


if __name__ == "__main__":
    main()
