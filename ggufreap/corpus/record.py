"""Where calibration data came from, as it is told on: in statistics, plans, the pruned file and its card."""

from dataclasses import dataclass

from ggufreap.showing import as_text


@dataclass(frozen=True)
class SourceRecord:
    """One source and what was taken of it; `sha256` identifies the token ids, `revision` is a commit where known.

    `held_out`: the share of its documents that was not read, and the seed that drew them; empty where all were.
    `is_hub`: `name` is a data set on the Hugging Face hub, `organization/name`, and not a file.
    """

    name: str
    domain: str
    is_hub: bool = False
    revision: str = ""
    subset: str = ""
    split: str = ""
    samples: int = 0
    tokens: int = 0
    sha256: str = ""
    held_out: str = ""

    def __post_init__(self) -> None:
        """File names are bytes, and what is told on is text."""
        for name in ("name", "domain"):
            object.__setattr__(self, name, as_text(getattr(self, name)))
