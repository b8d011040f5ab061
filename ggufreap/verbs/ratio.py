"""How many experts can go until held-out text says that it is too much."""

from dataclasses import replace

from ggufreap.errors import InfeasiblePlan, InputError
from ggufreap.judging import Candidate, Exam, Masking
from ggufreap.model import AnyModel, Model
from ggufreap.observation import AnyStatistics, Stored
from ggufreap.options.engine import EngineSettings
from ggufreap.options.judgement import HeldOut
from ggufreap.options.target import FRIENDLY, Target
from ggufreap.planning.counts import KNOWN, feasible_counts
from ggufreap.progress import Progress, silent
from ggufreap.verbs.plan import chosen_method, plan
from ggufreap.verbs.preview import Preview, previewed, told_of

PER_ROUND = 3  # candidates that share a pass of the original; 4 intervals in 4 passes are as cheap as a bisection


def choose_ratio(
    model: AnyModel,
    target: Target,
    held_out: HeldOut,
    *,
    stats: AnyStatistics | None = None,
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> Preview:
    """The fewest experts per block whose KLD in the worst domain is at most `target.max_kld`, as `recommended`.

    A search over all that the router can work with, for a KLD that grows with what is removed. Raises InfeasiblePlan
    when already the smallest removal costs more.
    """
    chosen_method(target)
    exam = Exam.of(replace(held_out, fail_if=(limit_of(target),)), settings)
    return search(Model.open(model), target, exam, stats, progress)


def limit_of(target: Target) -> str:
    """The gate that `target.max_kld` is; raises InputError for a limit that nothing can keep."""
    if not target.max_kld > 0:
        raise InputError(f"--max-kld {target.max_kld}: it is the mean KLD in nats of the worst domain, such as 0.1")
    return f"worst_domain.kld>{target.max_kld}"


def search(
    model: Model, target: Target, exam: Exam, stats: AnyStatistics | None, progress: Progress = silent
) -> Preview:
    """The same for an exam whose only gate is the one to keep to."""
    layout = model.layout
    counts = feasible_counts(layout, friendly=target.round == FRIENDLY)[1:]
    if not counts:
        why = f"{KNOWN} (--round)" if target.round == FRIENDLY else f"the router needs all {layout.n_expert}"
        raise InfeasiblePlan(f"{model.path}: no expert can be removed: {why}")
    stats = None if stats is None else Stored.of(stats)
    tested: dict[int, Candidate] = {}
    with Masking(model, exam, PER_ROUND, progress) as masking:
        passed, failed = -1, len(counts)  # places in `counts`
        while failed - passed > 1:
            places = _between(passed, failed)
            wanted = [replace(target, ratio=None, keep=counts[place]) for place in places]
            plans = [plan(model, each, stats=stats, progress=progress) for each in wanted]
            tested |= dict(zip(places, masking.measure(plans), strict=True))
            failed = next((place for place in places if not tested[place].ok), failed)
            passed = max((place for place in places if place < failed), default=passed)
        candidates = [tested[place] for place in sorted(tested)]
        if passed < 0:
            first = candidates[0]
            raise InfeasiblePlan(f"{first.plan.summary}: already with that {told_of(first)}; raise --max-kld")
        last = tested[passed]
        more = f"; one step more: {told_of(tested[failed])}" if failed in tested else ""
        reason = f"{last.plan.summary}: {told_of(last)}{more}"
        return previewed(model, exam, masking.n_chunks, candidates, {}, last, reason)


def _between(low: int, high: int) -> list[int]:
    """Up to PER_ROUND places strictly between two, evenly spread."""
    width = high - low
    return sorted({low + width * step // (PER_ROUND + 1) for step in range(1, PER_ROUND + 1)} - {low})
