"""What all default statistics cost over those that REAP needs, at the width of a 35B model, and what planning takes.

    python tests/benchmarks/statistics_cost.py [--rounds N] [--dir DIR] [--blocks N] [--domains N]

A random model of 256 experts, 8 used, n_embd 2048 is written (1.3 GB for 2 blocks) and calibrated by both, taking
turns. Processor time of one thread, the least of the rounds, so that a busy machine counts little. Memory and planning
are of 40 such blocks, whose statistics are made up.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from bench import Sizes, arguments, report, take_turns, write_moe
from gguf import GGMLQuantizationType as Kind

from ggufreap.architecture.layout import bind
from ggufreap.container import open_gguf
from ggufreap.coverage import measure
from ggufreap.engine.session import LlamaSession
from ggufreap.observation import STATISTICS, DomainStatistics, ExpertStatistics, Provenance, save
from ggufreap.options.engine import EngineSettings
from ggufreap.options.target import DEFAULT_METHOD
from ggufreap.saliency import METHODS
from ggufreap.selection.choosing import choose
from ggufreap.selection.methods import JOINT
from ggufreap.selection.portfolio import crossed

REAP_ALONE = ("count", "sum_gf", "max_f")  # the criterion, and the guard of super experts
N_BLOCK, N_EXPERT, N_USED = 40, 256, 8


def processor(run: Callable[[], object]) -> float:
    """Seconds of processor time that a call takes."""
    start = time.process_time()
    run()
    return time.process_time() - start


def observed(path: Path, rounds: int) -> dict[str, list[float]]:
    """Processor seconds of one chunk of 512 tokens with either choice of statistics."""
    layout = bind(open_gguf(path))
    blocks, used = [block.index for block in layout.trunk], [block.n_used for block in layout.trunk]
    with LlamaSession(path, layout.nodes, EngineSettings(512, 512, 1, n_gpu_layers=0)) as engine:
        chunk = np.random.default_rng(0).integers(0, engine.n_vocab, 512).astype(np.int32)

        def calibrate(names: tuple[str, ...]) -> None:
            needs = frozenset(need for name in names for need in STATISTICS[name].needs)
            empty = ExpertStatistics.empty(blocks, used, layout.n_expert, names)
            empty.observe(engine.route(chunk, observables=needs), len(chunk))

        contestants = {
            "REAP alone": lambda: processor(lambda: calibrate(REAP_ALONE)),
            "all statistics": lambda: processor(lambda: calibrate(tuple(STATISTICS))),
        }
        take_turns(contestants, 1)  # the first touch of every page belongs to nobody
        return take_turns(contestants, rounds)


def made_up(n_domain: int) -> DomainStatistics:
    """Statistics of 40 blocks: what experts put out overlaps by chance, and differs in size by orders of magnitude."""
    rng, halves = np.random.default_rng(0), {}
    for domain in range(n_domain):
        both = []
        for _ in range(2):
            values = {}
            for name, row in STATISTICS.items():
                shape = row.shape(N_EXPERT)
                scales = rng.lognormal(0, 1, (N_BLOCK, N_EXPERT))
                outputs = rng.normal(size=(N_BLOCK, N_EXPERT, 64)) * scales[..., None] if len(shape) == 2 else None
                values[name] = scales if outputs is None else outputs @ outputs.transpose(0, 2, 1)
            both.append(ExpertStatistics(tuple(range(N_BLOCK)), (N_USED,) * N_BLOCK, N_EXPERT, 10_000, 20, values))
        halves[f"d{domain}"] = (both[0], both[1])
    return DomainStatistics(tuple(range(N_BLOCK)), (N_USED,) * N_BLOCK, N_EXPERT, halves)


def planned(statistics: DomainStatistics) -> dict[str, list[float]]:
    """Processor seconds of choosing half of the experts by every method, of coverage, and of what `best` judges."""
    keep = dict(zip(statistics.blocks, choose(statistics, DEFAULT_METHOD, "uniform", N_EXPERT // 2).rows, strict=True))
    other = {
        "coverage": [processor(lambda: measure(statistics, keep, DEFAULT_METHOD, "uniform"))],
        "the sets of best": [processor(lambda: crossed(statistics, N_EXPERT // 2, 1))],
    }
    return other | {
        f"plan by {method}": [processor(lambda: choose(statistics, method, "uniform", N_EXPERT // 2))]  # noqa: B023
        for method in (*METHODS, *JOINT)
    }


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--blocks", type=int, default=2, help="of the random model (2)")
    parser.add_argument("--domains", type=int, default=13, help="of the text, for memory and planning (13)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        path = Path(folder, "model.gguf")
        write_moe(path, Sizes(options.blocks, N_EXPERT, n_ff=512, n_used=N_USED), (Kind.Q4_K, Kind.Q8_0))
        seconds = observed(path, options.rounds)
        path.unlink()
        statistics = made_up(options.domains)
        saved = Path(folder, "statistics.npz")
        save(saved, statistics, Provenance("model", "", 0, 0, "benchmark", ""))
        file_mb = saved.stat().st_size / 1e6
    held = sum(
        array.nbytes for halves in statistics.halves.values() for half in halves for array in half.values.values()
    )
    plans = planned(statistics)
    least = {name: min(values) for name, values in seconds.items()}
    figures = {
        "all statistics / REAP alone": least["all statistics"] / least["REAP alone"],
        f"statistics of {options.domains} domains, MB in memory": held / 1e6,
        f"statistics of {options.domains} domains, MB in file": file_mb,
        "planning, the slowest step, s": max(values[0] for values in plans.values()),
    }
    report(seconds | plans, figures)


if __name__ == "__main__":
    main()
