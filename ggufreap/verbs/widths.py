"""Which widths of the experts are prospects of a model; where there is none but its own, why."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from ggufreap.architecture.width import expert_width
from ggufreap.container import TensorRecord, bits_per_weight, is_quantized, type_name
from ggufreap.engine.fitting import free_memory
from ggufreap.errors import UnsupportedModel
from ggufreap.fitting import Prospect, table, widths_to_try
from ggufreap.model import Model
from ggufreap.narrowing.curvature import curvature_nbytes
from ggufreap.narrowing.forecast import solving_seconds
from ggufreap.narrowing.solving import down_name
from ggufreap.narrowing.widths import BLOCK
from ggufreap.options.engine import CALIBRATING
from ggufreap.units import size
from ggufreap.verbs.job import Job
from ggufreap.verbs.narrowing import GOOD_BITS

_LOG = logging.getLogger(__name__)
_UNITS = ((86_400, "days"), (3_600, "h"), (60, "min"))
NO_TEXT = "neurons are chosen by what text runs through them, and none will"


@dataclass(frozen=True)
class Widths:
    """Neurons that experts could keep, `all` of them first; `reason`: why no fewer are looked at."""

    all: tuple[int, ...]
    reason: str = ""


def source_width(model: Model) -> int:
    """The neurons of an expert of the first MoE block."""
    return _down(model).shape[-1]


def widths_of(model: Model, wanted: bool, *, text: bool = True) -> Widths:
    """The widths to look at, if that is `wanted`; `text`: whether some will run, to choose neurons by."""
    width = source_width(model)
    reason = "" if wanted else "as asked (--no-narrow)"
    if reason := reason or _obstacle(model) or ("" if text else NO_TEXT):
        return Widths((width,), reason)
    if narrower := widths_to_try(width, max(table().narrowing)):
        return Widths((width, *narrower))
    return Widths(
        (width,), f"experts of {width} neurons have too few: rows of quantised weights come in blocks of {BLOCK}"
    )


def widths_for(job: Job, wanted: bool) -> Widths:
    """The same of a job on this machine."""
    found = widths_of(job.model, wanted, text=job.data is not None)
    if found.reason or job.data is None:
        return found
    reason = _too_large(job.model, job.data.chunk_length((job.settings or CALIBRATING).n_ctx))
    return Widths(found.all[:1], reason) if reason else found


def announce(job: Job, widths: Widths, likely: Sequence[Prospect]) -> None:
    """Say what narrower experts will take if the `likely` prospects are made, or why there will be none."""
    if widths.reason:
        _LOG.info("no narrower experts are looked at: %s", widths.reason)
    for each in likely:
        if each.narrowed:
            n_experts = each.n_keep * len(job.model.layout.trunk)
            seconds = n_experts * solving_seconds(each.source_width, each.width, _down(job.model).shape[1])
            _LOG.info(
                "narrower experts are among the best, such as %s: to make that file the text runs once more, as long "
                "as to calibrate, and solving %d experts takes about %s here; --no-narrow leaves it out",
                *(each.label, n_experts, _duration(seconds)),
            )


def _duration(seconds: float) -> str:
    """As much as an estimate is worth."""
    value, unit = next(((seconds / size, unit) for size, unit in _UNITS if seconds > 1.5 * size), (seconds, "s"))
    return f"{max(1.0, value):.0f} {unit}"


def _obstacle(model: Model) -> str:
    """Why experts of this file cannot be narrower, or should not."""
    try:
        expert_width(model.file, model.layout)
    except UnsupportedModel as error:
        return str(error).removeprefix(f"{model.file.path}: ")
    kind = _down(model).type
    if is_quantized(kind) and bits_per_weight(kind) < GOOD_BITS:
        return (
            f"down is {type_name(kind)}, and narrower experts have it encoded anew, which would lose twice; start from "
            "F16, BF16 or Q8_0"
        )
    return ""


def _too_large(model: Model, n_ctx: int) -> str:
    block, free = model.layout.trunk[0], free_memory()
    needed = curvature_nbytes(model.layout.n_expert, source_width(model), n_ctx, block.n_used)
    if free is None or needed <= free:
        return ""
    return f"what is summed up of one block takes {size(needed)} of memory, and {size(free)} are free"


def _down(model: Model) -> TensorRecord:
    return model.file.by_name[down_name(model.layout.blocks[0].index)]
