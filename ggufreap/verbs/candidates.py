"""What pruning would cost, shown by masking experts in one loaded model: nothing is written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ggufreap import naming
from ggufreap.activity import doing
from ggufreap.corpus import Corpus
from ggufreap.engine.session import LlamaSession
from ggufreap.errors import InfeasiblePlan, InputError
from ggufreap.evaluation import METRICS, Comparison, Gate, Outcome, compare_with, of_engine, parse_gate, threads
from ggufreap.options.engine import EngineSettings
from ggufreap.planning import PruningPlan, as_fraction
from ggufreap.progress import Progress, silent
from ggufreap.rewriting import lower
from ggufreap.selection.portfolio import BEST
from ggufreap.verbs.choice import chosen_method
from ggufreap.verbs.choice import plan as make_plan
from ggufreap.verbs.evaluation import check_ctx, check_gates, named_texts, tokenised
from ggufreap.verbs.stages import open_model

RATIOS = ("0.1", "0.2", "0.3", "0.4", "0.5")
# Where nobody says what is too much: a rule of thumb. A 4-bit quantisation costs less than a tenth of it.
DEFAULT_GATE = "worst_domain.kld>0.2"
PER_ROUND = 3  # candidates that share a pass of the original; 4 intervals in 4 passes are as cheap as a bisection


@dataclass(frozen=True)
class Candidate:
    """One plan, the exact size of its file, and what it costs; `gates` as they stand for it."""

    plan: PruningPlan
    nbytes: int
    comparison: Comparison
    gates: tuple[Outcome, ...]

    @property
    def ok(self) -> bool:
        """Whether no gate fails."""
        return not any(outcome.failed for outcome in self.gates)


@dataclass(frozen=True)
class Preview:
    """Candidates by method and then by ratio, and which of them is recommended for which `reason` (None: none).

    `refused`: ratio -> why the router could not work with it. `ok`: some candidate passes all gates.
    """

    model: str
    nbytes: int
    n_ctx: int
    n_chunks: Mapping[str, int]
    candidates: tuple[Candidate, ...]
    refused: Mapping[str, str]
    recommended: Candidate | None
    reason: str

    @property
    def ok(self) -> bool:
        """Whether some candidate passes all gates."""
        return self.recommended is not None


def preview(
    model: str | Path,
    *,
    files: Sequence[str],
    stats: str | Path | None = None,
    ratios: Sequence[str | float] = RATIOS,
    methods: Sequence[str] = ("reap",),
    blend: str | None = None,
    mtp: str = "mirror",
    seed: int = 0,
    chunks: int | None = None,
    fail_if: Sequence[str] = (),
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> Preview:
    """Cost and size of every method and ratio on held-out text, from one load of the model.

    `files` as for `eval`. Recommended is, of every method, the largest ratio below the first that a gate of
    `fail_if` (or else DEFAULT_GATE) fails, and among the methods the smallest file, then the lower KLD.
    """
    for method in methods:
        chosen_method(method, mtp, blend=blend)
        if method == BEST:
            raise InputError(f"a preview compares methods itself; name some instead of {BEST}")
    texts, gates = named_texts(files), [parse_gate(text) for text in fail_if or (DEFAULT_GATE,)]
    plans, refused = [], {}
    for method in methods:
        for ratio in sorted(map(str, ratios), key=as_fraction):
            try:
                plans.append(
                    make_plan(
                        model,
                        stats=stats,
                        ratio=ratio,
                        method=method,
                        blend=blend,
                        mtp=mtp,
                        seed=seed,
                        progress=progress,
                    )
                )
            except InfeasiblePlan as error:
                refused[ratio] = str(error)
    if not plans:
        raise InfeasiblePlan(next(iter(refused.values()), "no ratio was given; give some with --ratios"))
    with _Stage(model, texts, chunks, gates, settings, progress) as stage:
        candidates = stage.measure(plans)
        best, reason = recommend(candidates)
        return stage.result(candidates, refused, best, reason)


def choose_ratio(
    model: str | Path,
    *,
    max_kld: float,
    files: Sequence[str],
    stats: str | Path | None = None,
    method: str = "reap",
    blend: str | None = None,
    mtp: str = "mirror",
    seed: int = 0,
    chunks: int | None = None,
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> Preview:
    """The fewest experts per block whose KLD in the worst domain is at most `max_kld`: `recommended.plan.n_keep`.

    A search over all that the router can work with, for a KLD that grows with what is removed. Raises InfeasiblePlan
    when already the smallest removal costs more.
    """
    chosen_method(method, mtp, blend=blend)
    if not max_kld > 0:
        raise InputError(f"--max-kld {max_kld}: it is the mean KLD in nats of the worst domain, such as 0.1")
    _, layout, _ = open_model(model)
    counts = [n_keep for n_keep in range(layout.n_expert - 1, 1, -1) if _feasible(layout.check_keep, n_keep)]
    if not counts:
        raise InfeasiblePlan(f"{model}: no expert can be removed: the router needs all {layout.n_expert}")
    tested: dict[int, Candidate] = {}
    gates = [parse_gate(f"worst_domain.kld>{max_kld}")]
    with _Stage(model, named_texts(files), chunks, gates, settings, progress) as stage:
        passed, failed = -1, len(counts)  # places in `counts`
        while failed - passed > 1:
            places = _between(passed, failed)
            plans = [
                make_plan(
                    model,
                    stats=stats,
                    keep=counts[place],
                    method=method,
                    blend=blend,
                    mtp=mtp,
                    seed=seed,
                    progress=progress,
                )
                for place in places
            ]
            tested |= dict(zip(places, stage.measure(plans), strict=True))
            failed = next((place for place in places if not tested[place].ok), failed)
            passed = max((place for place in places if place < failed), default=passed)
        found = [tested[place] for place in sorted(tested)]
        if passed < 0:
            raise InfeasiblePlan(f"{found[0].plan.summary}: already with that {_told(found[0])}; raise --max-kld")
        last = tested[passed]
        more = f"; one step more: {_told(tested[failed])}" if failed in tested else ""
        reason = f"{last.plan.summary}: {_told(last)}{more}"
        return stage.result(found, {}, last, reason)


def recommend(candidates: Sequence[Candidate]) -> tuple[Candidate | None, str]:
    """The candidate to take and why, by the rule of `preview`; they come sorted by method and ratio."""
    best: list[tuple[Candidate, Candidate | None]] = []
    for method in dict.fromkeys(candidate.plan.method for candidate in candidates):
        own = [candidate for candidate in candidates if candidate.plan.method == method]
        count = next((place for place, candidate in enumerate(own) if not candidate.ok), len(own))
        if count:
            best.append((own[count - 1], own[count] if count < len(own) else None))
    if not best:
        first = candidates[0]
        return None, f"already of {first.plan.label} {_told(first)}; try smaller ratios or another method"
    chosen, following = min(best, key=lambda pair: (pair[0].nbytes, pair[0].comparison.worst.kld))
    told = f"{chosen.plan.label}: {_told(chosen)}"
    if following is None:
        return chosen, f"{told}; no tested ratio reaches a limit, larger ones may not either"
    return chosen, f"{told}; {following.plan.label}: {_told(following)}; the limit lies between the two"


def _told(candidate: Candidate) -> str:
    """The gate that decides, in words: the first that fails, or the first at all."""
    outcome = next((outcome for outcome in candidate.gates if outcome.failed), candidate.gates[0])
    return f"{outcome.gate} {'fails' if outcome.failed else 'passes'} with {outcome.value:.4g} ({outcome.where})"


class _Stage:
    """The loaded model and the held-out text: measures plans as often as asked."""

    def __init__(
        self,
        model: str | Path,
        texts: Mapping[str, str],
        chunks: int | None,
        gates: Sequence[Gate],
        settings: EngineSettings | None,
        progress: Progress,
    ) -> None:
        self._model, self._gates, self._progress = str(model), gates, progress
        self._settings = settings or EngineSettings()
        check_ctx(self._settings)
        for gate in gates:
            gate.require(texts, METRICS)
        self._source, self._layout, _ = open_model(model)
        if self._layout.nodes.headless:
            raise InputError(f"{model}: this model ends in hidden states: it predicts no text that could be scored")
        self._engine = LlamaSession(self._source.path, self._layout.nodes, self._settings)
        self._domains: dict[str, Corpus] = {}
        try:
            self._domains = tokenised(self._engine, texts, self._settings.n_ctx, chunks)
        except BaseException:
            self._engine.close()
            raise

    def __enter__(self) -> "_Stage":
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()

    def measure(self, plans: Sequence[PruningPlan]) -> list[Candidate]:
        """One pass of the original and one of every plan."""
        masked = [
            of_engine(self._engine, {block.index: plan.keep[block.index] for block in self._layout.trunk})
            for plan in plans
        ]
        with (
            doing("masking experts of", self._model),
            threads(self._settings.cpu_threads) as run,
        ):
            found = compare_with(of_engine(self._engine), masked, self._domains, run, self._progress)
        return [
            Candidate(plan, self._nbytes(plan), comparison, check_gates(self._gates, comparison))
            for plan, comparison in zip(plans, found, strict=True)
        ]

    def _nbytes(self, plan: PruningPlan) -> int:
        out = naming.target(self._source.path, None, plan.label)
        return lower(self._source, self._layout, plan, out).nbytes

    def result(
        self, candidates: Sequence[Candidate], refused: Mapping[str, str], best: Candidate | None, reason: str
    ) -> Preview:
        n_chunks = {name: len(corpus.chunks) for name, corpus in self._domains.items()}
        return Preview(
            self._model,
            self._source.nbytes,
            self._settings.n_ctx,
            n_chunks,
            tuple(candidates),
            refused,
            best,
            reason,
        )


def _feasible(check: Callable[[int], None], n_keep: int) -> bool:
    try:
        check(n_keep)
    except InfeasiblePlan:
        return False
    return True


def _between(low: int, high: int) -> list[int]:
    """Up to PER_ROUND places strictly between two, evenly spread."""
    width = high - low
    return sorted({low + width * step // (PER_ROUND + 1) for step in range(1, PER_ROUND + 1)} - {low})
