"""What a report knows, as values; `report.json` is these and what follows from them.

Everything but the model and the plan is optional: what was not measured is not there, and the report says so. Sizes
are bytes, shares lie in [0, 1], KLD is in nats, speeds are tokens per second.
"""

from dataclasses import dataclass

from ggufreap.errors import InputError
from ggufreap.reporting.consistency import check_block


@dataclass(frozen=True)
class Estimate:
    """A measured value with its standard error."""

    value: float
    stderr: float | None = None


@dataclass(frozen=True)
class BaseModel:
    """A model it descends from, as `general.base_model.*` of the GGUF names it."""

    name: str
    organization: str = ""
    repo_url: str = ""


@dataclass(frozen=True)
class Model:
    """The model that was pruned and what the byte-exact result is; `n_used` experts per token, `n_group` 1 for none,
    `n_ff_*` neurons per expert where they are fewer, `compensated` by changed weights of the others.
    """

    name: str
    architecture: str
    file: str
    fingerprint: str
    n_block: int
    n_moe_block: int
    n_mtp_block: int
    n_expert_before: int
    n_expert_after: int
    n_used: int
    n_shared: int
    n_group: int
    nbytes_before: int
    nbytes_after: int
    parameters_before: int | None = None
    parameters_after: int | None = None
    active_before: int | None = None
    active_after: int | None = None
    n_ff_before: int | None = None
    n_ff_after: int | None = None
    compensated: bool = False
    license: str = ""
    license_name: str = ""
    license_link: str = ""
    base_models: tuple[BaseModel, ...] = ()


@dataclass(frozen=True)
class PlannedBlock:
    """One MoE block: the experts that stay, all experts' `scores` `[n_expert]` (none: never routed, or not scored).

    `retained`: the share of the block's score that stays.
    """

    block: int
    keep: tuple[int, ...]
    scores: tuple[float | None, ...] = ()
    retained: float | None = None


@dataclass(frozen=True)
class Plan:
    """The choice of experts; `sha256` is the plan file's."""

    method: str
    ratio: str
    mtp: str
    sha256: str
    blocks: tuple[PlannedBlock, ...]
    blend: str = ""


@dataclass(frozen=True)
class Source:
    """One part of the calibration text, a data set or a file; `sha256` of what was read."""

    name: str
    domain: str = ""
    revision: str = ""
    subset: str = ""
    split: str = ""
    n_samples: int | None = None
    n_tokens: int | None = None
    sha256: str = ""
    held_out: str = ""


@dataclass(frozen=True)
class Routed:
    """Routed tokens per expert over all blocks; `never`: experts that no token reached."""

    lowest: int
    median: float
    highest: int
    never: int


@dataclass(frozen=True)
class Calibration:
    """What the model read before the choice; `count_mode`: whether samples or tokens of a source are counted.

    `built_in`: text that came with the program, to try out. `split_half`: the share of experts that both halves keep.
    """

    n_ctx: int
    n_tokens: int
    sha256: str = ""
    sources: tuple[Source, ...] = ()
    count_mode: str = ""
    built_in: bool = False
    split_half: float | None = None
    routed: Routed | None = None


@dataclass(frozen=True)
class Coverage:
    """The share of a domain's own score that the kept experts hold: mean over the blocks, and in the worst block."""

    domain: str
    mean: float
    worst: float
    worst_block: int | None = None


@dataclass(frozen=True)
class Meters:
    """A model against the unpruned one on the same held-out text.

    `top1`: how often both find the same token likeliest; `overlap`: 1 - total variation of the two distributions.
    """

    domain: str
    kld: Estimate
    n_tokens: int | None = None
    kld_median: float | None = None
    kld_p90: float | None = None
    kld_p99: float | None = None
    top1: Estimate | None = None
    overlap: Estimate | None = None
    ppl_before: Estimate | None = None
    ppl_after: Estimate | None = None
    ppl_ratio: Estimate | None = None


@dataclass(frozen=True)
class Candidate:
    """One point of the curve: what a ratio would cost."""

    ratio: float
    method: str
    n_keep: int
    domains: tuple[Meters, ...]
    nbytes: int | None = None
    overall: Meters | None = None


@dataclass(frozen=True)
class Task:
    """Questions with right answers; `low` and `high` bound the pruned accuracy, `p_value` is of the difference."""

    name: str
    n: int
    before: float
    after: float
    low: float | None = None
    high: float | None = None
    p_value: float | None = None


@dataclass(frozen=True)
class Probes:
    """What shows when it writes: shares of `n` answers that loop or never end, and how far they drift."""

    n: int
    loops: float
    endless: float
    drift: float | None = None


@dataclass(frozen=True)
class Speed:
    """Prompt (`pp`) and generation (`tg`) in tokens/s, with `batch` sequences at once."""

    batch: int
    pp: Estimate | None = None
    tg: Estimate | None = None


@dataclass(frozen=True)
class Subject:
    """What was measured of one model by itself; `memory` is what it takes once it is loaded."""

    nbytes: int
    type: str = ""
    perplexity: Estimate | None = None
    memory: int | None = None
    speed: tuple[Speed, ...] = ()
    probes: Probes | None = None


@dataclass(frozen=True)
class Variant:
    """One pruned file; everything about its loss is against the unpruned model."""

    name: str
    itself: Subject
    overall: Meters | None = None
    domains: tuple[Meters, ...] = ()
    tasks: tuple[Task, ...] = ()


@dataclass(frozen=True)
class EqualSize:
    """The honest rival: the unpruned model in the type whose size is nearest to the variant's."""

    variant: str
    name: str
    type: str
    nbytes: int
    kld: Estimate
    kld_pruned: Estimate


@dataclass(frozen=True)
class File:
    """A file that belongs to the result."""

    name: str
    nbytes: int
    sha256: str
    type: str = ""


@dataclass(frozen=True)
class Reproduction:
    """How to make it again: the command as it was given, and the recipe's text."""

    command: str
    recipe: str = ""


@dataclass(frozen=True)
class Verification:
    """What the proof found: `findings` are its lines."""

    ok: bool
    findings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """The whole account.

    `original` is the unpruned model, `notes` are caveats that only the caller knows, `publisher` is who made the files.
    """

    version: str
    date: str
    model: Model
    plan: Plan
    calibration: Calibration | None = None
    coverage: tuple[Coverage, ...] = ()
    curve: tuple[Candidate, ...] = ()
    original: Subject | None = None
    variants: tuple[Variant, ...] = ()
    equal_size: tuple[EqualSize, ...] = ()
    files: tuple[File, ...] = ()
    reproduction: Reproduction | None = None
    verification: Verification | None = None
    notes: tuple[str, ...] = ()
    publisher: str = ""

    def __post_init__(self) -> None:
        before, after = self.model.n_expert_before, self.model.n_expert_after
        if min(before, self.model.nbytes_before, self.original.nbytes if self.original else 1) < 1:
            raise InputError("the unpruned model has no experts or no bytes; give what it has")
        for block in self.plan.blocks:
            check_block(block.block, block.keep, len(block.scores), before, after)
        names = [variant.name for variant in self.variants]
        told = ", ".join(names)
        if len(set(names)) != len(names):
            raise InputError(f"variants are named {told}; every name once")
        for rival in self.equal_size:
            if rival.variant not in names:
                raise InputError(f"the equal-size comparison is of {rival.variant}, the variants are {told}")
