"""What fewer neurons cost on a trained model, alone and beside fewer experts: KLD on held-out text, against REAP.

    python tests/benchmarks/narrowing.py MODEL.gguf FOLDER [--bytes 0.75 0.5] [--splits 27x224 ...] [--expected]

FOLDER holds `<domain>.calib.txt` and `<domain>.eval.txt`. All rows of a table have about as many bytes of routed
experts left. Nothing is written but the cache, with which a run that was stopped goes on: the solved blocks of every
candidate, and its KLD on every chunk. Experts are masked in the router; narrower ones, their down in half precision,
are computed in place of the whole ones.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from bench import AGAINST, Trained, against, opened, trained_arguments

from ggufreap.corpus import Chunk
from ggufreap.corpus.request import open_request
from ggufreap.engine.graph import Piece
from ggufreap.engine.neuron_mask import Fewer
from ggufreap.engine.neuron_tap import FewerNeurons
from ggufreap.engine.prefixes import Prefixes
from ggufreap.engine.protocol import Keep, Tokens
from ggufreap.evaluation.scores import Reference, compare, first_scored, targets_of
from ggufreap.files import writing
from ggufreap.narrowing.collecting import Run, narrow
from ggufreap.narrowing.solving import down_name
from ggufreap.narrowing.splitting import split
from ggufreap.narrowing.widths import BLOCK
from ggufreap.narrowing.workplace import Solution, Task, Workplace
from ggufreap.observation import DomainStatistics, Texts, observables
from ggufreap.options.data import Request
from ggufreap.options.engine import EngineSettings
from ggufreap.planning import make_plan
from ggufreap.saliency import random_scores
from ggufreap.selection.choosing import choose
from ggufreap.selection.judging import mean_loss, worst_loss
from ggufreap.verbs.compensation import compensated

REAP = "reap, tokens"


@dataclass(frozen=True)
class Candidate:
    """Experts that stay, by a method and a blend, and the neurons that each of them keeps."""

    method: str
    blend: str
    n_keep: int
    width: int
    sequential: bool = False

    @property
    def name(self) -> str:
        """As in the tables."""
        how = ", sequentially" if self.sequential else ""
        return f"{self.method}, {self.blend}: {self.n_keep} x {self.width}{how}"


class Bench:
    """One loaded model, its texts, and what was found so far."""

    def __init__(self, trained: Trained, options: argparse.Namespace) -> None:
        self.engine, self.model, self.cache = trained.engine, trained.model, options.cache
        self.layout = self.model.layout
        self.blocks = [block.index for block in self.layout.trunk]
        self.source_width = self.model.file.by_name[down_name(self.blocks[0])].shape[-1]
        self.n_ctx = options.ctx_size
        self.settings = EngineSettings(options.ctx_size, options.ctx_size, options.threads)
        text = {name: chunks[: options.calibration_chunks] for name, chunks in trained.text.items()}
        rounds = max(map(len, text.values()))
        self.texts = Texts(
            tuple(Chunk(text[name][i], name, i) for i in range(rounds) for name in text if i < len(text[name])), ""
        )
        self.held_out = trained.held_out
        self.ledger = self.cache / "judged.json"
        self.judged = json.loads(self.ledger.read_text()) if self.ledger.exists() else {}
        self.foresees = options.expected
        self._statistics: DomainStatistics | None = None

    @property
    def statistics(self) -> DomainStatistics:
        if self._statistics is None:
            used = [block.n_used for block in self.layout.trunk]
            found = DomainStatistics.empty(self.blocks, used, self.layout.n_expert, self.held_out)
            for chunk in self.texts.chunks:
                batches = self.engine.route(chunk.tokens, observables=observables())
                found = found.observe(chunk.domain, chunk.number, batches, len(chunk.tokens))
            self._statistics = found
        return self._statistics

    def keep(self, candidate: Candidate) -> dict[int, tuple[int, ...]]:
        path = self.cache / f"{candidate.method}-{candidate.blend}-{candidate.n_keep}.json"
        if not path.exists():
            n_group = self.layout.n_group
            rows = (
                [range(self.layout.n_expert)] * len(self.blocks)
                if candidate.n_keep == self.layout.n_expert
                else choose(self.statistics, candidate.method, candidate.blend, candidate.n_keep, n_group).rows
            )
            path.write_text(json.dumps([list(map(int, row)) for row in rows]))
        return dict(zip(self.blocks, map(tuple, json.loads(path.read_text())), strict=True))

    def solution(self, candidate: Candidate) -> Solution:
        folder = self.cache / candidate.name.replace(", ", "-").replace(": ", "-").replace(" ", "")
        folder.mkdir(exist_ok=True)
        keep = self.keep(candidate)
        if candidate.sequential:
            return self.sequentially(candidate, folder, keep)
        task = Task(
            self.model.file.fingerprint, keep, self.source_width, candidate.width, "", "all", self.n_ctx, self.n_ctx
        )
        with writing():
            place = Workplace(folder, task)
            if len(place.solved) == len(keep):
                return place.solution()
            pieces = [Piece(0, self.layout.n_trunk - 1, True)]
            engine = Prefixes(self.engine, self.layout.n_trunk)
            return narrow(Run(engine, self.layout.nodes, self.model.file, self.texts, place), pieces)

    def sequentially(self, candidate: Candidate, folder: Path, keep: Keep) -> Solution:
        """The same text as token ids: domains of equal size need no names."""
        ids = self.cache / "ids.npy"
        np.save(ids, np.stack([chunk.tokens for chunk in self.texts.chunks]))
        scores = random_scores(len(self.blocks), self.layout.n_expert, 0)  # which are not used
        chosen = [keep[block] for block in self.blocks]
        plan = make_plan(
            self.layout, self.model.identity, scores, method=candidate.method, n_keep=candidate.n_keep, chosen=chosen
        )
        data = open_request(Request(tokens=str(ids)))
        return compensated(self.model, plan, candidate.width, folder, data, sequential=True, settings=self.settings)

    def losses(self, candidate: Candidate) -> dict[str, np.ndarray]:
        """Domain -> KLD of each chunk."""
        keep, fewer = self.keep(candidate), {}
        if candidate.width < self.source_width and candidate.name not in self.judged:
            found = self.solution(candidate).narrowing
            fewer = {
                block: FewerNeurons(kept, found.neurons[block], half(found.downs[block]))
                for block, kept in keep.items()
            }
        return self.judge(candidate.name, keep, fewer)

    def expected(self, candidate: Candidate) -> str:
        """Mean and worst KLD that a preview foresees, see ggufreap.judging.expected, by what it is."""
        if candidate.width == self.source_width or candidate.sequential:
            return ""
        keep, lost = self.keep(candidate), self.losses(candidate)
        neurons, share = self.solution(candidate).as_costly
        whole = self.losses(replace(candidate, width=self.source_width))
        fewer = {block: FewerNeurons(kept, neurons[block]) for block, kept in keep.items()}
        masked = self.judge(f"{candidate.name}, masked", keep, fewer)
        foreseen = {name: each + share * (masked[name] - each) for name, each in whole.items()}
        return (
            f"{mean_loss(foreseen):.4f} / {worst_loss(foreseen):.4f} ({mean_loss(foreseen) / mean_loss(lost):.2f} / "
            f"{worst_loss(foreseen) / worst_loss(lost):.2f})"
        )

    def judge(self, name: str, keep: Keep, fewer: Fewer) -> dict[str, np.ndarray]:
        """The same, of what may be known by its name."""
        if name not in self.judged:
            self.judged[name] = {
                domain: [self._loss(chunk, keep, fewer) for chunk in chunks] for domain, chunks in self.held_out.items()
            }
            self.ledger.write_text(json.dumps(self.judged))
        return {domain: np.array(losses) for domain, losses in self.judged[name].items()}

    def _loss(self, tokens: Tokens, keep: Keep, fewer: Fewer) -> float:
        start = first_scored(len(tokens))
        reference = Reference.of(self.engine.logits(tokens, None, start)[:-1], map)
        logits = self.engine.logits(tokens, keep, start, fewer)
        return float(compare(reference, logits[:-1], targets_of(tokens), map).kld.mean())

    def table(self, share: float, candidates: Sequence[Candidate]) -> None:
        whole = self.layout.n_expert * self.source_width
        reap = self.losses(candidates[0])
        print(f"\n{share:.0%} of the routed experts' bytes; {len(self.texts.chunks)} chunks of {', '.join(reap)}")
        print(f"| experts x neurons | bytes | {AGAINST} | seconds | foreseen (x) |\n{'|---' * 9}|")
        for candidate in candidates:
            started = time.process_time()
            found = self.losses(candidate)
            kept, seconds = candidate.n_keep * candidate.width / whole, time.process_time() - started
            cells = f"{candidate.name} | {kept:.1%} | {against(found, reap)} | {seconds:.0f}"
            print(f"| {cells} | {self.expected(candidate) if self.foresees else ''} |", flush=True)


def half(values: np.ndarray) -> np.ndarray:
    """What half precision leaves of them."""
    return values.astype(np.float16).astype(np.float32)


def splits(n_expert: int, width: int, share: float, step: int) -> list[tuple[int, int]]:
    """(experts, neurons) with at most `share` of all, from experts alone to neurons alone, a width in `step` each."""
    most = share * n_expert * width
    narrowest = max(step, int(share * width) // step * step)
    return [(min(n_expert, int(most / each)), each) for each in range(width, narrowest - 1, -step)]


def pair(text: str) -> tuple[int, int]:
    """The numbers of `27x224`."""
    n_keep, _, width = text.partition("x")
    return int(n_keep), int(width)


def main() -> None:
    parser = trained_arguments(__doc__.splitlines()[0], "narrowing-benchmark")
    parser.add_argument("--bytes", nargs="+", type=float, default=[0.75, 0.5], help="of the routed experts")
    parser.add_argument("--method", nargs="+", default=["rank_average"], help="which experts stay beside fewer neurons")
    parser.add_argument("--step", type=int, default=BLOCK, help=f"widths are multiples of it ({BLOCK})")
    parser.add_argument("--splits", nargs="+", type=pair, default=[], help="EXPERTSxNEURONS, instead of all")
    parser.add_argument("--calibration-chunks", type=int, default=48, help="per domain")
    parser.add_argument("--expected", action="store_true", help="also what a preview would foresee")
    options = parser.parse_args()
    with opened(options) as trained:
        bench, n_expert = Bench(trained, options), trained.model.layout.n_expert
        for share in options.bytes:
            pairs = splits(n_expert, bench.source_width, share, options.step)
            rule = split(n_expert, bench.source_width, 1 - share, block=options.step)
            candidates = [Candidate("reap", "tokens", *pairs[0])]
            for method in options.method:
                candidates += [Candidate(method, "uniform", *pair) for pair in options.splits or pairs]
                wanted = options.splits or [(rule.n_keep, rule.width)]
                candidates += [Candidate(method, "uniform", *pair, sequential=True) for pair in wanted]
            bench.table(share, candidates)


if __name__ == "__main__":
    main()
