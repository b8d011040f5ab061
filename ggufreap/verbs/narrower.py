"""What a preview takes to foresee narrower experts: what was asked for, one pass of text for every plan, masks."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ggufreap.errors import InputError
from ggufreap.judging import Candidate, Exam, Expected, Masking
from ggufreap.judging.expected import FORESEEN, masks_of
from ggufreap.model import Model
from ggufreap.narrowing.workplace import Solution
from ggufreap.options.data import Request
from ggufreap.options.engine import EngineSettings
from ggufreap.options.target import Target
from ggufreap.planning import PruningPlan
from ggufreap.progress import Progress
from ggufreap.verbs.compensation import compensated
from ggufreap.verbs.data import Data, open_data
from ggufreap.verbs.narrowing import settled


def wanted(model: Model, target: Target, ratios: Sequence[str | float], data: Data, exam: Exam) -> tuple[Target, int]:
    """The target without a ratio, and the neurons that stay in each expert; 0 for all of them.

    Raises InputError for what says nothing, or what cannot be foreseen.
    """
    named = data.names_data if isinstance(data, Request) else data is not None
    target = replace(target, ratio=None, keep=None)
    if target.shrink is None and target.width_ratio is None:
        if named:
            raise InputError(
                "text to calibrate on (--calibration-file and its like) has no effect in a preview of whole experts; "
                "give --width-ratio or --shrink, or leave it out"
            )
        return settled(model, target)
    if target.shrink is not None and ratios:
        raise InputError("--shrink divides the cut between experts and neurons itself; leave --ratios out")
    if target.sequential:
        raise InputError("what --sequential gains cannot be foreseen; leave it out, it loses a little less")
    if unforeseen := next((gate.text for gate in exam.gates if gate.metric not in FORESEEN), None):
        raise InputError(
            f"--fail-if {unforeseen}: of narrower experts only {', '.join(FORESEEN)} can be foreseen; give such a "
            "gate, or make the file and measure it with eval"
        )
    if not named:
        raise InputError(
            "which neurons go, and what makes up for them, is told by text; give it with --calibration-file, another "
            "than the held-out one"
        )
    return settled(model, target)


def solved(
    model: Model,
    plans: Sequence[PruningPlan],
    width: int,
    data: Data,
    memory: int,
    settings: EngineSettings | None,
    progress: Progress,
) -> list[Solution]:
    """Which neurons would stay in the experts of every plan, and what that costs: one pass of the text each."""
    opened = open_data(data)
    with tempfile.TemporaryDirectory() as folder:
        return [
            compensated(
                *(model, plan, width, Path(folder, str(number)), opened),
                memory=memory,
                downs=False,
                settings=settings,
                progress=progress,
            )
            for number, plan in enumerate(plans)
        ]


def expected(
    model: Model, exam: Exam, masking: Masking, candidates: Sequence[Candidate], found: Sequence[Solution]
) -> list[Expected]:
    """What these candidates would cost with the narrowing that was found for each."""
    if not found:
        return []
    costly = [solution.as_costly for solution in found]
    fewer = [masks_of(model, each.plan, neurons) for each, (neurons, _) in zip(candidates, costly, strict=True)]
    masked = masking.measure_fewer([each.plan for each in candidates], fewer)
    return [
        Expected.of(model, solution.narrowing, share, whole, each, exam.gates)
        for solution, (_, share), whole, each in zip(found, costly, candidates, masked, strict=True)
    ]
