"""One source of samples: what was named, opened, and drawn from by a seed.

Which samples `name:N` takes:

- of local files N of all usable samples, each as likely as any other, in the order of the files. They are read twice,
  once to draw and once to yield; nothing is held but N numbers. The same seed with a larger N adds samples.
- of a data set on the hub, or a folder laid out like one, the first N usable rows after `datasets` has shuffled it:
  files in a random order, and rows from a window of 1,000, so that N rows are not paid for with all of them.

Without N all samples come, in their order. Reading again gives the same samples: that is how a run is resumed.
"""

import hashlib
import heapq
import logging
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ggufreap.corpus.hub import DataSet
from ggufreap.corpus.local import LocalFiles, check_name, is_repository
from ggufreap.corpus.rows import to_sample
from ggufreap.corpus.samples import Entry, Sample, Text, Unusable
from ggufreap.corpus.spec import SourceSpec
from ggufreap.errors import InputError

_LOG = logging.getLogger(__name__)
GIVE_UP = 10_000  # unusable rows before the first usable one


@dataclass(frozen=True)
class Skipped:
    """How many rows gave no sample for one reason, and where the first stands, as `file:row`."""

    count: int
    first: str


class Source:
    """An open source: iterate over its samples, again if need be.

    `taken` samples were yielded and `position` bytes or rows read so far; `skipped` counts, by reason, the rows that
    gave no sample. `identity` says which data this is, before any is read: SHA-256 of the files, or name, commit,
    subset and split on the hub. `nbytes` is what `position` ends with, None for what streams: there it counts rows.
    """

    def __init__(self, spec: SourceSpec, data: LocalFiles | DataSet, seed: int, text_field: str | None = None) -> None:
        self.spec, self.data, self.seed, self.text_field = spec, data, seed, text_field
        self.skipped: dict[str, Skipped] = {}
        self.taken = self.position = 0

    @property
    def identity(self) -> str:
        """Which data this is."""
        if isinstance(self.data, DataSet) and self.data.revision is None:  # a folder, which can change
            files = LocalFiles.all_of(Path(self.spec.name).expanduser())
            return f"{files.identity}[{self.data.subset}]({self.data.split})"
        return self.data.identity

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files on this machine that are read."""
        if isinstance(self.data, LocalFiles):
            return self.data.paths
        folder = Path(self.spec.name).expanduser()
        return LocalFiles.all_of(folder).paths if self.spec.local and folder.is_dir() else ()

    @property
    def nbytes(self) -> int | None:
        """Bytes that will be read in all."""
        if isinstance(self.data, DataSet):
            return None
        return self.data.nbytes * (1 if self.spec.samples is None else 2)

    @property
    def has_rows(self) -> bool:
        """Whether any of it is read row by row, and not as text."""
        return isinstance(self.data, DataSet) or self.data.has_rows

    def files(self) -> Sequence["Source"]:
        """Every file as a source of its own, in an order that the seed draws; itself where it is one, streams, or is
        drawn from.
        """
        if isinstance(self.data, DataSet) or self.spec.samples is not None or len(self.data.paths) < 2:
            return (self,)
        order = sorted(range(len(self.data.paths)), key=lambda number: _key(self.seed, number))
        return [_File(self, self.data.paths[number]) for number in order]

    @property
    def n_missing(self) -> int:
        """How many samples fewer than were asked for were there, once it was read."""
        return max(0, (self.spec.samples or 0) - self.taken)

    @property
    def record(self) -> dict[str, Any]:
        """What a report says of this source; revision, subset and split are those that were found."""
        data_set = self.data if isinstance(self.data, DataSet) else None
        return {
            "name": self.spec.name,
            "revision": data_set and data_set.revision,
            "subset": data_set and data_set.subset,
            "split": data_set and data_set.split,
            "samples": self.taken,
        }

    def __iter__(self) -> Iterator[Sample]:
        """The samples; raises InputError where there is none or the data cannot be read."""
        self.skipped, self.taken, self.position = {}, 0, 0
        if self.spec.samples is None:
            yield from self._first(None, self.data.entries())
        elif isinstance(self.data, DataSet):
            yield from self._first(self.spec.samples, self.data.entries(self.seed))
        else:
            yield from self._drawn(self.spec.samples, self.data)

    def _first(self, limit: int | None, entries: Iterator[Entry]) -> Iterator[Sample]:
        for sample in self._usable(entries):
            self.taken += not _continues(sample)
            yield sample
            if self.taken == limit:
                return

    def _drawn(self, samples: int, files: LocalFiles) -> Iterator[Sample]:
        whole = (sample for sample in self._usable(files.entries()) if not _continues(sample))
        keys = ((_key(self.seed, number), number) for number, _ in enumerate(whole))
        drawn = {number for _, number in heapq.nsmallest(samples, keys)}
        self.skipped, number = {}, 0
        for sample in self._usable(files.entries(), files.nbytes):
            if number in drawn:
                self.taken += not _continues(sample)
                yield sample
            number += not _continues(sample)

    def _usable(self, entries: Iterator[Entry], before: int = 0) -> Iterator[Sample]:
        """The samples in `entries`; what gives none is counted."""
        used = False
        for entry in entries:
            self.position = before + entry.position
            try:
                sample = self._sample(entry)
            except Unusable as reason:
                self._skip(str(reason), entry.place)
                if not used and sum(skipped.count for skipped in self.skipped.values()) >= GIVE_UP:
                    break
                continue
            used = True
            yield sample
        if not used:
            self._refuse()

    def _sample(self, entry: Entry) -> Sample:
        if isinstance(entry.value, Unusable):
            raise entry.value
        return entry.value if isinstance(entry.value, Text) else to_sample(entry.value, self.text_field)

    def _skip(self, reason: str, place: str) -> None:
        before = self.skipped.get(reason, Skipped(0, place))
        self.skipped[reason] = Skipped(before.count + 1, before.first)

    def _refuse(self) -> None:
        if not self.skipped:
            raise InputError(f"{self.spec.name} holds no rows: calibration needs some text")
        if isinstance(self.data, LocalFiles) and not self.data.has_rows:
            raise InputError(f"{self.spec.name} has no text: calibration needs some")
        reason, most = max(self.skipped.items(), key=lambda item: item[1].count)
        total = sum(skipped.count for skipped in self.skipped.values())
        raise InputError(
            f"{self.spec.name} has no usable row among {total:,}: {reason} in {most.count:,} of them, "
            f"first in {most.first}; name the column of the text, or give other data"
        )


class _File(Source):
    """One file of several, which may be of no use as long as the others are."""

    def __init__(self, source: Source, path: Path) -> None:
        assert isinstance(source.data, LocalFiles)
        super().__init__(source.spec, replace(source.data, paths=(path,)), source.seed, source.text_field)

    def _refuse(self) -> None:
        pass


def open_source(spec: SourceSpec, *, seed: int, text_field: str | None = None) -> Source:
    """Find the data that `spec` names; raises InputError where there is none, and says what could be had."""
    if not spec.local:
        return Source(spec, DataSet.open(spec), seed, text_field)
    check_name(spec.name)
    folder = Path(spec.name).expanduser()
    chosen = spec.subset is not None or spec.split is not None
    if folder.is_dir() and (chosen or is_repository(folder)):
        return Source(spec, DataSet.open(spec), seed, text_field)
    if chosen:
        raise InputError(f"{spec} names a subset or split, {spec.name} is no folder with data sets; leave it out")
    files = LocalFiles.find(spec.name)
    if files.passed_over:
        kinds = Counter(path.suffix or "no suffix" for path in files.passed_over)
        told = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
        _LOG.warning(
            "%s: %d of its files are read, %d are not, since their suffix says nothing of text (%s); to read them too: "
            "-f %s",
            spec.name,
            len(files.paths),
            len(files.passed_over),
            told,
            shlex.quote(
                f"{spec.name.rstrip('/')}/**/*{next((kind for kind, _ in kinds.most_common() if kind[0] == '.'), '')}"
            ),
        )
    files.check()
    return Source(spec, files, seed, text_field)


def _continues(sample: Sample) -> bool:
    return isinstance(sample, Text) and sample.continues


def _key(seed: int, number: int) -> bytes:
    """A random number for a sample that is the same with every version of every library."""
    return hashlib.blake2b(f"{seed}:{number}".encode(), digest_size=8).digest()
