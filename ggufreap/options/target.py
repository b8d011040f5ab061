"""How many experts go, and which, as one value."""

from dataclasses import dataclass
from pathlib import Path

from ggufreap.limits import SMALL
from ggufreap.options.fit import AUTO_SIZE, memory_size
from ggufreap.options.flag import MOST, Flag, Options, check, flagged, number, one_of, whole

REAP, RANK_AVERAGE, BEST, MIRROR, DROP = "reap", "rank_average", "best", "mirror", "drop"
DEFAULT_METHOD = RANK_AVERAGE  # of all that choose without judging, the one that never lost much
MTP_MODES = (MIRROR, DROP)
FRIENDLY, OFF = "friendly", "off"
ROUNDINGS = (FRIENDLY, OFF)
AUTO_RATIO = "auto"
MINUTES = 30  # for judging methods

SIZE, SHARE, FIT_SIZE, NEURONS, ORDER, ROUNDING = "size", "share", "fit size", "neurons", "order", "rounding"
SEARCH, CHOICE, WEIGHING, MTP, SEED = "search", "choice", "weighing", "mtp", "seed"


@dataclass(frozen=True)
class Target(Options):
    """How many experts go of every block, a `ratio` or all but `keep`, and which.

    `ratio` is the fraction to remove, taken as the decimal that was written, or `auto` where held-out text judges: as
    many as leave the worst domain at a mean KLD of `max_kld` nats or less. `fit`, for `prune` alone, takes their place:
    a memory in bytes (or `auto`, what is free) that the file has to fit in, as ggufreap.options.fit.Fit says.
    `method` is a criterion of ggufreap.saliency, a joint method of ggufreap.selection, or `best`: what loses least on
    chunks that calibration held back, judged for about `budget` minutes (0: on all of them). `from_imatrix`, a GGUF
    importance matrix of the model, takes the place of any calibration, and is a weaker choice. `blend` says how the
    domains of the text are weighed (ggufreap.blending; None: `uniform` where there are several). `mtp`: MTP blocks keep
    what the last block keeps, or are left out. `width_ratio`: the fraction of the neurons to remove from every expert
    that stays, as the decimal that was written; columns of down are computed anew to make up for them. `shrink`, in
    place of `ratio`, `keep` and `width_ratio`: the fraction of the routed experts' weights to remove, divided between
    experts and neurons (ggufreap.narrowing.splitting). `sequential`: narrowed blocks make up for the errors of those
    before them too (ggufreap.narrowing.sequential). `narrow_memory`: bytes for what narrowing sums up at a time, 0:
    half of what is free. `round`: `friendly` moves the number of experts to one that CUDA's fused router knows
    (ggufreap.planning.counts). `seed` draws for the method `random`. What a number can be, only the model tells:
    `count_to_keep` refuses.
    """

    ratio: str | float | None = flagged(
        None,
        Flag(
            ("--ratio",),
            SIZE,
            "fraction of the experts to remove from every block, such as 0.2; auto: see --max-kld",
            str,
            "R",
            int | float,
        ),
    )
    keep: int | None = flagged(None, Flag(("--keep",), SIZE, "experts to keep in every block", whole(-MOST), "N", int))
    shrink: str | float | None = flagged(
        None,
        Flag(
            ("--shrink",),
            SHARE,
            "fraction of the experts' weights to remove, divided between experts and neurons, such as 0.25",
            str,
            "S",
            int | float,
        ),
    )
    width_ratio: str | float | None = flagged(
        None,
        Flag(
            ("--width-ratio",),
            NEURONS,
            "fraction of the neurons to remove from every expert as well, such as 0.15; the others make up for them",
            str,
            "W",
            int | float,
        ),
    )
    sequential: bool = flagged(
        False,
        Flag(
            ("--sequential",),
            ORDER,
            "with fewer neurons: block by block, each making up for those before it; four times as long, on the CPU",
        ),
    )
    narrow_memory: int = flagged(
        0,
        Flag(
            ("--narrow-memory",),
            NEURONS,
            "with fewer neurons: memory for what is summed up at a time, such as 4GB (half of what is free)",
            memory_size(),
            "SIZE",
            recipe=None,
        ),
    )
    fit: int | str | None = flagged(
        None,
        Flag(
            ("--fit",),
            FIT_SIZE,
            "as few as leave a file that fits a memory of this size, such as 16GB, in the types that lose least; "
            "auto: what is free",
            memory_size(AUTO_SIZE),
            "SIZE",
            recipe=None,
        ),
    )
    round: str = flagged(
        OFF,
        Flag(
            ("--round",),
            ROUNDING,
            "friendly: only numbers of experts that CUDA's fused router knows, such as 64 and 128 ({})",
            one_of(*ROUNDINGS),
            "{friendly,off}",
            str,
        ),
    )
    max_kld: float = flagged(
        SMALL,
        Flag(("--max-kld",), SEARCH, "with --ratio auto: mean KLD of the worst domain ({})", number, "X", recipe=None),
    )
    method: str = flagged(
        DEFAULT_METHOD,
        Flag(
            ("--method",),
            CHOICE,
            "{} (default), reap, gram, ...; best judges several on held-back text (see the manual)",
            str,
            "NAME",
            str,
        ),
    )
    budget: int = flagged(
        MINUTES,
        Flag(
            ("--budget",),
            CHOICE,
            "for judging methods, with --method best ({}; 0: all that calibration held back)",
            whole(0),
            "MINUTES",
            int,
        ),
    )
    from_imatrix: str | Path | None = flagged(
        None,
        Flag(
            ("--from-imatrix",),
            CHOICE,
            "choose by a GGUF importance matrix of the model, without calibration: a weaker choice",
            str,
            "FILE",
            recipe=None,
        ),
    )
    blend: str | None = flagged(
        None,
        Flag(
            ("--blend",),
            WEIGHING,
            "domains of the text: uniform (default for several), tokens, maxmin, or NAME=WEIGHT,NAME=WEIGHT",
            str,
            "HOW",
            str,
        ),
    )
    mtp: str = flagged(
        MIRROR,
        Flag(
            ("--mtp",),
            MTP,
            "MTP blocks: as the last block ({}), or out",
            one_of(*MTP_MODES),
            "{mirror,drop}",
            str,
        ),
    )
    seed: int = flagged(
        0,
        Flag(
            ("--seed",),
            SEED,
            "draws the samples, and the experts of --method random ({})",
            whole(0),
            "N",
            recipe=None,
        ),
    )

    def __post_init__(self) -> None:
        check(self)
