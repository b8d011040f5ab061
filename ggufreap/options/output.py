"""Where the result goes, as one value."""

from dataclasses import dataclass
from pathlib import Path

from ggufreap.options.flag import Flag, Options, flagged

PLACE, SPLIT, DRY_RUN, PROOF, FORCE = "place", "split", "dry run", "proof", "force"


@dataclass(frozen=True)
class Output(Options):
    """Where the result goes, a file or a folder (None: beside the model), and how it is cut into files.

    `split_max_size`: shards of at most so many bytes, or of `300M` or `2G`; `keep_split`: as many shards as the model
    has; `dry_run`: tell exactly what would be made, and make nothing; `verify`: prove the result; `force`: replace
    files that this very work did not make.
    """

    out: str | Path | None = flagged(
        None, Flag(("-o", "--output"), PLACE, "file or folder (beside the model)", str, "OUT")
    )
    split_max_size: int | str | None = flagged(
        None, Flag(("--split-max-size",), SPLIT, "shards of at most this size", str, "N(M|G)")
    )
    keep_split: bool = flagged(False, Flag(("--keep-split",), SPLIT, "as many shards as the model has"))
    dry_run: bool = flagged(False, Flag(("--dry-run",), DRY_RUN, "print what would be written, to the byte"))
    verify: bool = flagged(True, Flag(("--no-verify",), PROOF, "do not prove the result"))
    force: bool = flagged(
        False, Flag(("--force",), FORCE, "replace files that are there already and not of this work (never an input)")
    )
