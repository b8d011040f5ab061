"""What every way of choosing experts costs on a trained model: KLD of the virtually pruned model on held-out text.

    python tests/benchmarks/selection.py MODEL.gguf FOLDER [--ratio 0.25 0.5] [--size 12 48 all] [--cache DIR]

FOLDER holds `<domain>.calib.txt` and `<domain>.eval.txt`. Nothing is written but the cache, with which a run that was
stopped goes on: the statistics of every size, and the KLD of every keep-set on every chunk. The experts are masked in
the router. `best` sees calibration text alone: it judges on each half of it what was chosen from the other.
"""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from bench import AGAINST, Trained, against, opened, trained_arguments

from ggufreap.corpus import Chunk
from ggufreap.engine.protocol import Keep
from ggufreap.observation import DomainStatistics, Held, HeldBack, Provenance, load, observables, save
from ggufreap.options.target import BEST
from ggufreap.planning import count_to_keep, select
from ggufreap.saliency import random_scores
from ggufreap.selection.choosing import choose
from ggufreap.selection.judging import Ledger, judge, mean_loss
from ggufreap.selection.portfolio import compete

REAP = ("reap", "tokens")
METHODS = (
    REAP,
    ("reap", "uniform"),
    ("reap", "maxmin"),
    ("reap_l2", "uniform"),
    ("weighted_ean_sum", "uniform"),
    ("reap_root", "uniform"),
    ("sum_squares", "uniform"),
    ("relative_squares", "uniform"),
    ("gram", "uniform"),
    ("rank_average", "uniform"),
    ("frequency", "uniform"),
)
Rows = tuple[tuple[int, ...], ...]


class Bench:
    """A loaded model, its text and what is known of it already."""

    def __init__(self, trained: Trained, cache: Path) -> None:
        self.engine, self.layout, self.text, self.cache = trained.engine, trained.model.layout, trained.text, cache
        self.model = trained.model.file.fingerprint
        self.blocks = [block.index for block in self.layout.trunk]
        self.held_out = {name: list(chunks) for name, chunks in trained.held_out.items()}

    def statistics(self, size: int | None) -> tuple[DomainStatistics, Mapping[str, list[Held]]]:
        """Of the first `size` chunks of every domain, and what calibration would keep of them to judge by."""
        path = self.cache / f"{size or 'all'}.npz"
        kept = HeldBack()
        passing = (
            Chunk(tokens, name, number)
            for name, chunks in self.text.items()
            for number, tokens in enumerate(chunks[:size])
        )
        if path.exists():
            for chunk in passing:
                kept.add(chunk)
            return load(path)[0], kept.chunks
        used = [block.n_used for block in self.layout.trunk]
        statistics = DomainStatistics.empty(self.blocks, used, self.layout.n_expert, self.text)
        for chunk in kept.noting(passing):
            batches = self.engine.route(chunk.tokens, observables=observables())
            statistics = statistics.observe(chunk.domain, chunk.number, batches, len(chunk.tokens))
        statistics.check()
        save(path, statistics, Provenance(self.model, "", 0, 0, "benchmark", ""))
        return statistics, kept.chunks

    def keep(self, rows: Rows) -> Keep:
        return dict(zip(self.blocks, rows, strict=True))

    def judged(
        self, keeps: Mapping[str, Sequence[Keep]], chunks: Mapping[str, Sequence[Held]]
    ) -> dict[str, dict[str, np.ndarray]]:
        return judge(self.engine, chunks, keeps, Ledger(self.cache / "judged.json", self.model))

    def best(self, statistics: DomainStatistics, chunks: Mapping[str, Sequence[Held]], n_keep: int) -> tuple[Rows, str]:
        judging = partial(judge, self.engine, chunks, ledger=Ledger(self.cache / "judged.json", self.model))
        verdict = compete(statistics, n_keep, self.layout.n_group, judging)
        print(f"\n{verdict.line}\n{verdict.dropped}")
        chosen = verdict.chosen
        rows = choose(statistics, chosen.method, chosen.blend, n_keep, self.layout.n_group).rows
        return rows, f"{BEST} ({chosen.name})"

    def table(self, size: int | None, ratio: str) -> None:
        statistics, kept = self.statistics(size)
        n_keep, n_group = count_to_keep(self.layout, ratio), self.layout.n_group
        sets, seconds = {}, {}
        for method, how in METHODS:
            started = time.process_time()
            sets[f"{method}, {how}"] = choose(statistics, method, how, n_keep, n_group).rows
            seconds[f"{method}, {how}"] = time.process_time() - started
        scores = random_scores(len(self.blocks), self.layout.n_expert, 0)
        sets["random"] = select(scores, n_keep, n_group)
        started = time.process_time()
        rows, name = self.best(statistics, kept, n_keep)
        sets[name], seconds[name] = rows, time.process_time() - started
        held_out = {domain: [Held(tokens, 0) for tokens in chunks] for domain, chunks in self.held_out.items()}
        found = self.judged({name: [self.keep(rows)] * 2 for name, rows in sets.items()}, held_out)
        reap = found[", ".join(REAP)]
        title = f"{size or 'all'} chunks of {', '.join(self.text)}; {ratio} removed, {n_keep} stay"
        header = f"| method | {AGAINST} | processor s |"
        print(f"\n{title}\n{header}\n{'|---' * 7}|")
        for name in sorted(found, key=lambda name: mean_loss(found[name])):
            print(f"| {name} | {against(found[name], reap)} | {seconds.get(name, 0):.2f} |", flush=True)


def main() -> None:
    parser = trained_arguments(__doc__.splitlines()[0], "selection-benchmark")
    parser.add_argument("--ratio", nargs="+", default=["0.125", "0.25", "0.375", "0.5"])
    parser.add_argument("--size", nargs="+", default=["12", "48", "all"], help="calibration chunks per domain")
    options = parser.parse_args()
    with opened(options) as trained:
        bench = Bench(trained, options.cache)
        for ratio in options.ratio:
            for size in options.size:
                bench.table(None if size == "all" else int(size), ratio)


if __name__ == "__main__":
    main()
