"""What can be done with a model on this machine, from its header alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from ggufreap import imatrix as matrices
from ggufreap import saliency
from ggufreap.errors import GgufReapError
from ggufreap.finding import Machine
from ggufreap.inspection import Inspection, described
from ggufreap.model import AnyModel, Model
from ggufreap.options.output import Output
from ggufreap.planning import PruningPlan, make_plan
from ggufreap.quantization import QuantRequest
from ggufreap.sizing import Sizer
from ggufreap.verbs.apply import scripts_of
from ggufreap.verbs.variants import AUTO_TYPES, low_types

USUAL = "0.20"  # the ratio of the best-known REAP builds


@dataclass(frozen=True)
class Candidate:
    """A file that could be made: `ratio` of the experts removed, "" for none, `n_keep` kept, in `type`, "" for its own.

    `fits` as Machine.fits says it.
    """

    ratio: str
    n_keep: int
    type: str
    nbytes: int
    fits: str


@dataclass(frozen=True)
class Advice:
    """A model at a glance, the machine, and what could be made; `ratio` is the one that `commands` begin with.

    `verdict` says why, in one line; `commands`: (what it does, the words of a command behind `ggufreap`), in which the
    model stands as "MODEL".
    """

    inspection: Inspection
    machine: Machine
    candidates: tuple[Candidate, ...]
    ratio: str
    verdict: str
    commands: tuple[tuple[str, tuple[str, ...]], ...]


def advise(model: AnyModel) -> Advice:
    """Inspect, weigh what pruning would leave and what of it fits this machine, and tell the commands.

    A model in 8 bits or more is also weighed in 4, as `prune` would make it. Raises what opening a model does.
    """
    opened = Model.open(model)
    inspection, machine = described(opened), Machine.here()
    candidates = tuple(_candidates(opened, inspection, machine))
    ratio, verdict = _judged(candidates)
    return Advice(
        inspection, machine, candidates, ratio, verdict, tuple(_commands(inspection, ratio, candidates[0].fits))
    )


def _candidates(model: Model, inspection: Inspection, machine: Machine) -> Iterator[Candidate]:
    kinds = [""] if low_types(model.file) else ["", AUTO_TYPES[0]]
    rows = [("", inspection.n_expert, inspection.nbytes)]
    rows += [(row.ratio, row.n_keep, row.nbytes) for row in inspection.outlook if not row.refused]
    with Sizer(model.file, scripts_of(model, _any_plan(model), model.path, Output())) as sizer:
        for kind in kinds:
            for ratio, n_keep, nbytes in rows:
                weight = _quantised(sizer, model, n_keep if ratio else None, kind) if kind else nbytes
                if weight is not None:
                    yield Candidate(ratio, n_keep, kind, weight, machine.fits(weight))


def _quantised(sizer: Sizer, model: Model, n_keep: int | None, kind: str) -> int | None:
    """Bytes, None where llama.cpp's quantiser does not answer for this model."""
    tell = partial(sizer.quantised, n_keep, QuantRequest(kind))
    try:
        if n_keep is None:
            return tell().nbytes
        return tell(imatrix_later=matrices.reached(sizer.opened(n_keep), model.layout)).nbytes
    except GgufReapError:
        return None


def _any_plan(model: Model) -> PruningPlan:
    """Which experts stay changes no size."""
    layout = model.layout
    scores = saliency.random_scores(len(layout.trunk), layout.n_expert, 0)
    return make_plan(layout, model.identity, scores, method=saliency.RANDOM, ratio="0")


def _judged(candidates: tuple[Candidate, ...]) -> tuple[str, str]:
    """The ratio to begin with, and why."""
    kind = candidates[-1].type
    rows = [row for row in candidates if row.type == kind]
    as_type = f" as {kind}" if kind else ""
    fitting = next((row for row in rows if row.fits not in ("no", "unknown")), None)
    if fitting is None and any(row.fits == "unknown" for row in rows):
        return _least(rows), "this system does not tell its memory: compare the sizes yourself"
    if fitting is None:
        return rows[
            -1
        ].ratio or USUAL, f"none of these fits{as_type}; fewer bits are needed too, such as --quant IQ3_XXS"
    if not fitting.ratio:
        how = as_type if candidates[0].fits in ("no", "unknown") else " as it is"
        return _least(rows), (
            f"it fits unpruned{how}: pruning makes room for context and other programs, and --compare tells what "
            "it costs"
        )
    return fitting.ratio, f"unpruned it does not fit{as_type}, with {fitting.ratio} of the experts removed it does"


def _least(rows: list[Candidate]) -> str:
    """The usual ratio, or what this model can lose instead."""
    ratios = [row.ratio for row in rows if row.ratio]
    return USUAL if USUAL in ratios or not ratios else ratios[0]


def _commands(inspection: Inspection, ratio: str, fits: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """`fits`: where the model fits as it is."""
    if not inspection.proven:
        yield "try the laws of pruning out on it", ("doctor", "MODEL")
    yield "show the best unpruned and pruned file of every size, by estimate", ("frontier", "MODEL")
    if fits == "no":
        yield (
            "make the best that fits this machine, measured",
            ("prune", "MODEL", "--fit", "auto", "--eval-split", "5%"),
        )
    pruning = ("prune", "MODEL", "--ratio", ratio)
    yield "tell all files to the byte, make none", (*pruning, "--dry-run")
    yield "prune on the built-in mix of public data sets (-f text.txt: on your own text)", pruning
    yield (
        "the same, measured on text that was held out, with a report and a model card",
        (*pruning, "--eval-split", "5%", "--compare", "--report", "report"),
    )
