"""By what pruned files are judged, as one value."""

from dataclasses import dataclass
from pathlib import Path

from ggufreap.options.flag import Flag, Options, check, flagged, whole

LEAST_CTX = 4  # of fewer tokens, none is scored

HELD_OUT, SPLIT, LENGTH = "held-out text", "split", "length"
GATES, RIVAL, REPORT = "gates", "rival", "report"


@dataclass(frozen=True)
class HeldOut(Options):
    """Text that calibration has not seen: `files`, `NAME=FILE` or `FILE`, each a domain.

    A FILE is a text, or whatever else calibration can read: rows, packed files, folders, data sets.

    Of each at most `chunks` chunks of `ctx_size` tokens are run (None: as many tokens as the engine's settings say).
    `fail_if`: gates on what is found, such as `worst_domain.kld>0.2`.
    """

    files: tuple[str, ...] = flagged(
        (),
        Flag(
            ("--eval-file",),
            HELD_OUT,
            "held-out text, a domain each; repeatable",
            str,
            "[NAME=]FILE",
            str,
            many=True,
            recipe="files",
        ),
    )
    chunks: int | None = flagged(
        None,
        Flag(
            ("--eval-chunks",),
            HELD_OUT,
            "at most this many chunks of each held-out text",
            whole(1),
            "N",
            int,
            recipe="chunks",
        ),
    )
    ctx_size: int | None = flagged(
        None,
        Flag(
            ("--eval-ctx-size",),
            LENGTH,
            "tokens per chunk of held-out text (as -c, else 512)",
            whole(LEAST_CTX),
            "N",
            int,
            recipe="ctx_size",
        ),
    )
    fail_if: tuple[str, ...] = flagged(
        (),
        Flag(("--fail-if",), GATES, "exit with 4 if so, such as worst_domain.kld>0.2", str, "GATE", str, many=True),
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Judgement(HeldOut):
    """Held-out text, and what else to do with it.

    `split`: hold out such a share of the documents of the calibration data too, 5% or 0.05, for `prune`;
    `compare`: also quantise the unpruned model to the size of the first file and measure that; `report`: a folder for
    report.json, a page and a model card.
    """

    split: str | None = flagged(
        None,
        Flag(
            ("--eval-split",),
            SPLIT,
            "hold out this share of the documents, such as 5%%, and never calibrate on them",
            str,
            "SHARE",
            recipe=None,
        ),
    )
    compare: bool = flagged(
        False, Flag(("--compare",), RIVAL, "also measure the unpruned model, quantised to the same size")
    )
    report: str | Path | None = flagged(
        None,
        Flag(("--report",), REPORT, "write report.json, report.html and README.md there", str, "DIR", recipe=None),
    )


def split_name(text: str) -> tuple[str, str]:
    """(name, path) of `NAME=FILE` or `FILE`; a file that is there is one, whatever it is called."""
    name, path = given_name(text)
    return name or ("stdin" if path == "-" else Path(path).stem), path


def given_name(text: str) -> tuple[str, str]:
    """The same with an empty name where none was given."""
    name, equals, path = text.partition("=")
    return (name, path) if equals and not Path(text).exists() else ("", text)
