"""What pruning would cost, shown by masking experts in one loaded model: nothing is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from ggufreap.errors import InfeasiblePlan, InputError
from ggufreap.judging import Candidate, Exam, Expected, Masking
from ggufreap.limits import SMALL
from ggufreap.model import AnyModel, Model
from ggufreap.observation import AnyStatistics, Stored
from ggufreap.options.engine import EngineSettings
from ggufreap.options.flag import refuse_unused
from ggufreap.options.judgement import HeldOut
from ggufreap.options.target import BEST, DEFAULT_METHOD, Target
from ggufreap.planning import PruningPlan, as_fraction
from ggufreap.progress import Progress, silent
from ggufreap.saliency import CONTROLS, RANDOM
from ggufreap.selection.methods import calibrates
from ggufreap.verbs import narrower
from ggufreap.verbs.data import Data
from ggufreap.verbs.plan import chosen_method, plan

RATIOS = ("0.1", "0.2", "0.3", "0.4", "0.5")
Either = TypeVar("Either", Candidate, Expected)
DEFAULT_GATE = f"worst_domain.kld>{SMALL:g}"  # where nobody says what is too much


@dataclass(frozen=True)
class Preview:
    """Candidates by method and then by ratio, and which of them is recommended for which `reason` (None: none).

    `narrower`: the same with fewer neurons in their experts, where that was asked for; then one of these is
    recommended. `refused`: ratio -> why the router could not work with it.
    """

    model: str
    nbytes: int
    n_ctx: int
    n_chunks: Mapping[str, int]
    candidates: tuple[Candidate, ...]
    refused: Mapping[str, str]
    recommended: Candidate | Expected | None
    reason: str
    narrower: tuple[Expected, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether some candidate passes all gates, of those that were asked for."""
        return any(candidate.ok for candidate in self.narrower or self.candidates)


def preview(
    model: AnyModel,
    held_out: HeldOut,
    *,
    target: Target | None = None,
    stats: AnyStatistics | None = None,
    ratios: Sequence[str | float] = (),
    methods: Sequence[str] = (DEFAULT_METHOD,),
    data: Data = None,
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> Preview:
    """Cost and size of every method and ratio on held-out text, from one load of the model.

    Where no `ratios` are given, they are RATIOS. All else is as in `target`. Recommended is, of every method, the
    largest ratio below the first that a gate of `held_out` (or else DEFAULT_GATE) fails, and among the methods the
    smallest file, then the lower KLD. Where the target has a `width_ratio` or a `shrink`, `data` runs through the model
    once for every plan, and what narrower experts are expected to cost is told as well (ggufreap.judging.expected); of
    `shrink` there is one plan a method.
    """
    target = target or Target()
    for method in methods:
        if chosen_method(replace(target, method=method, ratio=None, keep=None)) == BEST:
            raise InputError(f"a preview compares methods itself; name some instead of {BEST}")
    if RANDOM not in methods:
        refuse_unused(target or Target(), {"seed": f"--methods {RANDOM}"})
    if stats is not None and not any(map(calibrates, methods)):
        raise InputError(f"--stats: {', '.join(methods)} chooses without statistics; leave them out, or add a method")
    exam = Exam.of(held_out, settings, gates=(DEFAULT_GATE,))
    model, stats = Model.open(model), None if stats is None else Stored.of(stats)
    wanted, width = narrower.wanted(model, target, ratios, data, exam)
    targets = [replace(wanted, method=method) for method in methods]
    plans, refused = plans_of(model, targets, () if wanted.keep else ratios or RATIOS, stats, progress)
    if not plans:
        raise InfeasiblePlan(next(iter(refused.values()), "no ratio was given; give some with --ratios"))
    found = narrower.solved(model, plans, width, data, wanted.narrow_memory, settings, progress) if width else []
    with Masking(model, exam, len(plans), progress) as masking:
        if stats is not None:
            masking.warn_of_source(stats)
        candidates = masking.measure(plans)
        expected = narrower.expected(model, exam, masking, candidates, found)
        told = recommend(expected) if expected else recommend(candidates)
        preview = previewed(model, exam, masking.n_chunks, candidates, refused, *told)
        return replace(preview, narrower=tuple(expected))


def plans_of(
    model: Model,
    targets: Sequence[Target],
    ratios: Sequence[str | float],
    stats: Stored | None,
    progress: Progress = silent,
) -> tuple[list[PruningPlan], dict[str, str]]:
    """A plan for every target and ratio, and why those ratios were refused that the router could not work with.

    Of a target that names a number of experts there is that one too.
    """
    plans, refused = [], {}
    for target in targets:
        known = stats if calibrates(target.method) else None
        if target.keep:
            plans.append(plan(model, target, stats=known, progress=progress))
        for ratio in sorted(map(str, ratios), key=as_fraction):
            try:
                plans.append(plan(model, replace(target, ratio=ratio), stats=known, progress=progress))
            except InfeasiblePlan as error:
                refused[ratio] = str(error)
    return plans, refused


def previewed(
    model: Model,
    exam: Exam,
    n_chunks: Mapping[str, int],
    candidates: Sequence[Candidate],
    refused: Mapping[str, str],
    recommended: Candidate | Expected | None,
    reason: str,
) -> Preview:
    """What was found, with what is known of the model and the text."""
    known = str(model.path), model.file.nbytes, exam.settings.n_ctx, n_chunks
    return Preview(*known, tuple(candidates), refused, recommended, reason)


def recommend(candidates: Sequence[Either]) -> tuple[Either | None, str]:
    """The candidate to take and why, by the rule of `preview`; they come sorted by method and ratio."""
    best: list[tuple[Either, Either | None]] = []
    for method in dict.fromkeys(candidate.plan.method for candidate in candidates):
        if method in CONTROLS:  # to be beaten, not to be taken
            continue
        own = [candidate for candidate in candidates if candidate.plan.method == method]
        count = next((place for place, candidate in enumerate(own) if not candidate.ok), len(own))
        if count:
            best.append((own[count - 1], own[count] if count < len(own) else None))
    if all(candidate.plan.method in CONTROLS for candidate in candidates):
        return None, f"{candidates[0].plan.method} is a control, which is never recommended; add a method, such as reap"
    if not best:
        first = next(candidate for candidate in candidates if candidate.plan.method not in CONTROLS)
        return None, f"already of {first.label} {told_of(first)}; try smaller ratios or another method"
    chosen, following = min(best, key=lambda pair: (pair[0].nbytes, pair[0].worst_kld))
    told = f"{chosen.label}: {told_of(chosen)}"
    if following is None:
        return chosen, f"{told}; no tested ratio reaches a limit, larger ones may not either"
    return chosen, f"{told}; {following.label}: {told_of(following)}; the limit lies between the two"


def told_of(candidate: Candidate | Expected) -> str:
    """The gate that decides, in words: the first that fails, or the first at all."""
    outcome = next((outcome for outcome in candidate.gates if outcome.failed), candidate.gates[0])
    return f"{outcome.gate} {'fails' if outcome.failed else 'passes'} with {outcome.value:.4g} ({outcome.where})"
