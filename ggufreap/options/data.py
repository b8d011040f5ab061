"""What the model reads, as one value."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ggufreap.options.flag import Flag, Options, check, flagged, flags_of, one_of, whole

ALL, ASSISTANT = "all", "assistant"
STANDARD_INPUT = "-"

SOURCES, READING, DRAWING = "sources", "reading", "drawing"


@dataclass(frozen=True)
class Reading(Options):
    """How samples become chunks.

    `count`: which tokens count for the statistics, `all` or what the `assistant` says; with `packing` samples follow
    each other in full chunks, without it each opens a chunk of its own and is cut there; `parse_special`: also read
    special tokens in plain text; `n_chunks`: at most so many chunks in all.
    """

    count: str = flagged(
        ALL,
        Flag(
            ("--count",),
            READING,
            "which tokens count for the statistics ({})",
            one_of(ALL, ASSISTANT),
            "{all,assistant}",
            str,
        ),
    )
    packing: bool = flagged(
        True, Flag(("--no-packing",), READING, "a chunk per sample, cut there, instead of full chunks")
    )
    parse_special: bool = flagged(False, Flag(("--parse-special",), READING, "read special tokens in plain text too"))
    n_chunks: int | None = flagged(
        None, Flag(("--chunks",), READING, "run at most this many chunks", whole(1), "N", int)
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Request(Options):
    """The flags of the same names.

    `file`: local files, folders and globs, `-` is standard input; `dataset`: lists of NAME@REV[subset](split):N;
    `domain`: NAME=SPEC; `tokens`: an .npy file of ids, alone; `text`: name -> text that is there already. `seed` draws
    samples; `chat_template`: render conversations with the model's own.
    """

    file: Sequence[str] = flagged(
        (),
        Flag(
            ("-f", "--file"),
            SOURCES,
            "text (.txt .md), rows (.jsonl .json .csv .parquet), also .gz and .zst, a folder or a glob; repeatable; "
            "- is standard input",
            str,
            "FILE",
            str,
            many=True,
        ),
    )
    dataset: Sequence[str] = flagged(
        (),
        Flag(
            ("--dataset",),
            SOURCES,
            "NAME[subset](split):N, N samples of a data set on the hub or in a file; repeatable, or comma list",
            str,
            "SPEC",
            str,
            many=True,
            recipe="datasets",
        ),
    )
    domain: Sequence[str] = flagged(
        (),
        Flag(("--domain",), SOURCES, "a data set or file of the domain NAME", str, "NAME=SPEC", str, many=True),
    )
    tokens: str | Path | None = flagged(
        None,
        Flag(("--tokens",), SOURCES, "token ids, [n] or [n_chunks, n_ctx], instead of text", str, "IDS.npy", str),
    )
    text: Mapping[str, str] = field(default_factory=dict)
    text_field: str | None = flagged(
        None,
        Flag(
            ("--text-field",),
            READING,
            "the column of rows that holds the text (found by its usual names)",
            str,
            "NAME",
            str,
        ),
    )
    chat_template: bool = flagged(True, Flag(("--no-chat-template",), READING, "join messages as plain text"))
    seed: int = flagged(0, Flag(("--seed",), DRAWING, "draws the samples ({})", whole(0), "N", int))
    reading: Reading = field(default_factory=Reading)

    def __post_init__(self) -> None:
        check(self)

    @property
    def names_data(self) -> bool:
        """Whether it names any; if not, there is only a way of reading in it."""
        return bool(self.file or self.dataset or self.domain or self.tokens or self.text)

    @property
    def asks(self) -> bool:
        """Whether anything is said of text at all: which, or how it is read; a seed may be for something else."""
        read = any(map(self.reading.told, flags_of(self.reading)))
        return read or self.names_data or any(self.told(name) for name in ("text_field", "chat_template"))

    @property
    def paths(self) -> tuple[str, ...]:
        """The files that it names as they are: outputs must be none of them."""
        return (*(name for name in self.file if name != STANDARD_INPUT), *([str(self.tokens)] if self.tokens else []))
