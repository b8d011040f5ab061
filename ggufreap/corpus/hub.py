"""Data sets by name on the Hugging Face hub, and folders laid out like one, streamed with `datasets`.

Nothing is downloaded that is not read, and no code of a data set is run: `datasets` has no way to since 4.0. Without a
network, or with HF_HUB_OFFLINE=1, what lies in the caches of `datasets` and `huggingface_hub` is read.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

from ggufreap.corpus import quiet
from ggufreap.corpus.samples import Entry
from ggufreap.corpus.spec import Slice, SourceSpec
from ggufreap.errors import InputError, OutOfReach

SHUFFLED_ROWS = 1000  # rows from which the next one is drawn; `datasets` fills them from several files

_ADVICE = "or give text of your own with -f FILE"
_LONGEST_LINE = 240
_CHOICES = re.compile(r"[Aa]vailable[^\[]*\[(.*?)\]|configurations in the cache: (.*)", re.DOTALL)


@dataclass(frozen=True)
class DataSet:
    """The rows of one subset and split; `revision` is the commit on the hub, None where it is a local folder."""

    name: str
    revision: str | None
    subset: str
    split: str
    rows: Any

    @classmethod
    def open(cls, spec: SourceSpec) -> Self:
        """Find the data set; raises InputError where it, its subset or its split cannot be had, and says what could."""
        try:
            builder, revision = _found(spec)
            splits = builder.as_streaming_dataset()
        except InputError:
            raise
        except Exception as error:  # `datasets`, `huggingface_hub`, httpx, fsspec, pyarrow and yaml raise their own
            _refuse(spec, error)
        parts = spec.slices() or (Slice(_default_split(spec, list(splits)), None, None),)
        for part in parts:
            if part.split not in splits:
                raise InputError(f"{spec.name} has no split {part.split}; it has {', '.join(splits)}")
        lengths = builder.info.splits or {}
        sliced = [_sliced(splits[part.split], part, lengths.get(part.split), spec.name) for part in parts]
        rows = sliced[0] if len(sliced) == 1 else quiet.datasets().concatenate_datasets(sliced)
        return cls(
            spec.name,
            revision,
            builder.config.name,
            spec.split or parts[0].split,
            rows.decode(False) if rows.features else rows,  # pictures and sounds stay bytes
        )

    @property
    def identity(self) -> str:
        """Name, commit, subset and split: what the hub never changes."""
        return f"{self.name}@{self.revision}[{self.subset}]({self.split})"

    def entries(self, seed: int | None = None) -> Iterator[Entry]:
        """The rows in their order, or shuffled with a seed: its place tells which in this order a row is."""
        rows = self.rows if seed is None else self.rows.shuffle(seed, buffer_size=SHUFFLED_ROWS)
        try:
            for number, row in enumerate(rows, 1):
                yield Entry(f"{self.name}:{number}", number, row)
        except Exception as error:  # as in open
            raise InputError(
                f"cannot read the rows of {self.name}: {_first_line(error)}; try again, {_ADVICE}"
            ) from error


def _found(spec: SourceSpec) -> tuple[Any, str | None]:
    """The builder of `datasets`, which knows the subset and the splits, and the commit on the hub."""
    datasets = quiet.datasets()
    if spec.local:
        return datasets.load_dataset_builder(str(Path(spec.name).expanduser()), spec.subset), None
    try:
        builder = datasets.load_dataset_builder(spec.name, spec.subset, revision=spec.revision)
    except ConnectionError as error:
        return _downloaded(spec, error)
    if builder.repo_id is None:  # csv, json, text ...: for `datasets` these are the files of the working directory
        raise InputError(f"{spec.name} is a kind of file, not a data set; name the files, as in ./*.{spec.name}")
    # Without a network `datasets` takes the newest revision that it has prepared, whichever was asked for.
    prepared = type(builder).__module__.endswith(".cache.cache")
    if prepared and spec.revision not in (None, "main") and not str(builder.hash).startswith(str(spec.revision)):
        raise InputError(
            f"{spec.name}@{spec.revision} cannot be had offline, the cache holds revision {builder.hash}; "
            f"name that one, {_ADVICE}"
        )
    return builder, builder.hash


def _downloaded(spec: SourceSpec, error: Exception) -> tuple[Any, str]:
    """The data set in the hub's own cache, where `hf download` puts it; raises `error` where it is not there."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(spec.name, repo_type="dataset", revision=spec.revision, local_files_only=True)
        return quiet.datasets().load_dataset_builder(folder, spec.subset), Path(folder).name
    except OSError:  # nothing of it, or the card without the data
        raise error from None


def _default_split(spec: SourceSpec, splits: list[str]) -> str:
    if "train" in splits or len(splits) == 1:
        return "train" if "train" in splits else splits[0]
    raise InputError(f"{spec.name} has the splits {', '.join(splits)}; name one, as in {spec.name}({splits[0]})")


def _sliced(rows: Any, part: Slice, info: Any, name: str) -> Any:
    """Rows `[start:stop]` of a split; `datasets` itself slices no stream."""
    n_rows = info.num_examples if info else None
    start, stop = (_bound(bound, n_rows, part, name) for bound in (part.start, part.stop))
    if start:
        rows = rows.skip(start)
    return rows if stop is None else rows.take(max(0, stop - (start or 0)))


def _bound(bound: str | None, n_rows: int | None, part: Slice, name: str) -> int | None:
    if bound is None or bound.isdecimal():
        return None if bound is None else int(bound)
    if not n_rows:
        raise InputError(
            f"{name} does not tell how many rows {part.split} has, which {bound} depends on; "
            f"give rows from its start, as in {part.split}[:256]"
        )
    number = round(int(bound[:-1]) * n_rows / 100) if bound.endswith("%") else int(bound)  # as datasets rounds
    return max(0, number + n_rows) if bound.startswith("-") else number


def _first_line(error: Exception) -> str:
    line = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__).rstrip(".;")
    return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}..."


def _refuse(spec: SourceSpec, error: Exception) -> NoReturn:
    """Raise the one line that says what to do about an error of `datasets`."""
    text = str(error)
    if match := _CHOICES.search(text):
        choices = ", ".join(sorted(choice.strip(" '\"\n") for choice in (match[1] or match[2]).split(",")))
        if spec.subset is not None:
            raise InputError(f"{spec.name} has no subset {spec.subset}; it has {choices}") from None
        example = choices.partition(",")[0]
        raise InputError(f"{spec.name} has the subsets {choices}; name one, as in {spec.name}[{example}]") from None
    kind, what, remedy = InputError, _first_line(error), "correct the name"
    if isinstance(error, ConnectionError):
        kind, what, remedy = (
            OutOfReach,
            "the hub is out of reach, and no cache holds it",
            "check the name and the network",
        )
    elif "is a gated dataset" in text:
        what, remedy = "it is gated", "ask for access on its page and log in with hf auth login"
    raise kind(f"cannot read the data set {spec.name}: {what}; {remedy}, {_ADVICE}") from error
