"""Local files as entries: texts, JSON, CSV and Parquet, plain or compressed; folders and globs of them in sorted order.

Whatever a file holds, memory stays bounded: a row has 16 MiB at most, a long text comes in pieces.
"""

import csv
import glob
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from ggufreap.corpus import quiet
from ggufreap.corpus.rows import EMPTY
from ggufreap.corpus.samples import Entry, Unusable
from ggufreap.corpus.spec import COMPRESSED, SUFFIXES, suffix_of
from ggufreap.corpus.streams import CsvLines, elements, lines, opened, pieces
from ggufreap.decoding import Damaged, check_limits
from ggufreap.decoding.documents import DEPTH, VALUES
from ggufreap.decoding.signatures import HEAD, PAGE, what_is
from ggufreap.errors import InputError
from ggufreap.showing import excerpt, shown

NOT_UTF8 = "a row is not UTF-8"
NOT_JSON = "a row is not JSON"
NOT_OBJECT = "a row is no JSON object"
NOT_CSV = "a row is not CSV"
TOO_MUCH = f"a row nests more than {DEPTH} deep or holds more than {VALUES:,} values"
LONGEST_NAME = 255  # of the file systems that people use
PARQUET_ROWS = 32  # as many are held at once

_LOG = logging.getLogger(__name__)
_CARD = re.compile(r"---\s*\n(?:(?!---).*\n)*?(configs|dataset_info):")
_CARD_SIZE = 1 << 20


@dataclass(frozen=True)
class LocalFiles:
    """Files in the order in which they are read; `base` is the folder that holds them all.

    `passed_over`: other files of that folder, whose suffix says nothing of text.
    """

    base: Path
    paths: tuple[Path, ...]
    passed_over: tuple[Path, ...] = ()

    @classmethod
    def find(cls, name: str) -> Self:
        """The file of that name, whatever its suffix, or all files of a folder or glob; raises InputError.

        Of a folder those files are taken whose suffix is known, at any depth, but none that is hidden.
        """
        path = Path(name).expanduser()
        if path.is_dir():
            inside = cls.all_of(path).paths
            files = tuple(file for file in inside if suffix_of(file.name)[0])
            if not files:
                kinds = " ".join(SUFFIXES)
                raise InputError(f"the folder {name} holds no file that is read ({kinds}, also {' '.join(COMPRESSED)})")
            return cls(path, files, tuple(file for file in inside if file not in set(files)))
        if path.exists():
            if not path.is_file():
                raise InputError(f"{name} is no file on disk, and data is read more than once; save it in a file")
            return cls(path.parent, (path,))
        matches = sorted(glob.glob(str(path), recursive=True))
        files = tuple(Path(match) for match in matches if os.path.isfile(match))
        if not files:
            raise InputError(f"there is no file {name}; correct the path")
        return cls(Path(os.path.commonpath([file.parent for file in files])), files)

    @classmethod
    def all_of(cls, folder: Path) -> Self:
        """All files of a folder at any depth, but none that is hidden."""
        inside = ((file, file.relative_to(folder).parts) for file in sorted(folder.rglob("*")) if file.is_file())
        return cls(folder, tuple(file for file, parts in inside if not any(part.startswith(".") for part in parts)))

    @property
    def has_rows(self) -> bool:
        """Whether any of them is read row by row, and not as text."""
        return any(not _is_text(path) for path in self.paths)

    def check(self) -> None:
        """Raise InputError where what is to be read as text is none, as far as its beginning tells."""
        for path in filter(_is_text, self.paths):
            with opened(path) as (file, _):
                _check_text(path, file.peek(HEAD)[:HEAD])
                next(pieces(file, path))

    @property
    def nbytes(self) -> int:
        """The size of all files."""
        return sum(path.stat().st_size for path in self.paths)

    @cached_property
    def identity(self) -> str:
        """SHA-256 over the names, seen from `base`, the sizes and the bytes of all files."""
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(
                f"{path.relative_to(self.base).as_posix()}\0{path.stat().st_size}\0".encode(errors="surrogateescape")
            )
            try:
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
            except OSError as error:
                raise InputError(f"cannot read {path}: {error.strerror}") from error
        return digest.hexdigest()

    def entries(self) -> Iterator[Entry]:
        """What all files hold, one after the other; positions are bytes of the files as they lie on disk."""
        before = 0
        for path in self.paths:
            name = path.relative_to(self.base).as_posix()
            kind, compression = suffix_of(path.name)
            if kind == ".parquet" and compression:
                raise InputError(f"{path} is compressed twice; unpack it to {path.stem}")
            for number, position, value in READERS.get(kind, _texts)(path):
                yield Entry(f"{name}:{number}", before + position, value)
            before += path.stat().st_size


def check_name(path: str) -> None:
    """Raise InputError for what no file can be called; the system's own error would repeat all of it."""
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in Path(path).parts):
        raise InputError(f"there is no file {excerpt(path)}: no name has more than {LONGEST_NAME} bytes")


def is_repository(folder: Path) -> bool:
    """Whether a folder is laid out as a data set on the hub: its README.md says which files are which subset."""
    try:
        with (folder / "README.md").open(encoding="utf-8", errors="replace") as file:
            return _CARD.match(file.read(_CARD_SIZE)) is not None
    except OSError:
        return False


# What a reader yields: the number of the row, the bytes read by then, and the value of an Entry.
_Found = Iterator[tuple[int, int, Any]]


def _is_text(path: Path) -> bool:
    return READERS.get(suffix_of(path.name)[0], _texts) is _texts


def _texts(path: Path) -> _Found:
    with opened(path) as (file, position):
        first = True
        for piece in pieces(file, path):
            empty = first and not piece.continues and not piece.text.strip()
            yield 1, position(), Unusable(EMPTY) if empty else piece
            first = False


def _check_text(path: Path, head: bytes) -> None:
    """Raise InputError, or say, that what is read as text is something else."""
    if not (found := what_is(head)):
        return
    if found not in ("JSON", PAGE):
        raise InputError(f"{path} is {found}, and no text; name the text itself")
    way = "name it .json or .jsonl to read its rows" if found == "JSON" else "take the text out of it"
    _LOG.warning("%s is %s, and read as if it were text; %s", path, found, way)


def _json_lines(path: Path) -> _Found:
    with opened(path) as (file, position):
        for number, line in enumerate(lines(file), 1):
            if not isinstance(line, bytes) or line.strip():
                yield number, position(), _parsed(line)


def _json(path: Path) -> _Found:
    """An array, or JSON lines under another name."""
    with opened(path) as (file, position):
        array = file.peek(1).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
        if array:
            for number, element in enumerate(elements(file), 1):
                yield number, position(), _parsed(element)
    if not array:
        yield from _json_lines(path)


def _parsed(row: bytes | Unusable) -> Any:
    if isinstance(row, Unusable):
        return row
    try:
        check_limits(row)
        # Not by msgspec: Python's own writer leaves NaN and halves of surrogate pairs in data sets, in good rows too.
        value = json.loads(row.decode("utf-8-sig"))
    except Damaged:
        return Unusable(TOO_MUCH)
    except UnicodeDecodeError:
        return Unusable(NOT_UTF8)
    except (ValueError, RecursionError):
        return Unusable(NOT_JSON)
    if isinstance(value, str):
        return {"text": value}
    return value if isinstance(value, dict) else Unusable(NOT_OBJECT)


def _csv(path: Path) -> _Found:
    """Rows under the names in the first line; every value is text, as it stands."""
    with opened(path) as (file, position):
        source = CsvLines(file)
        rows = csv.DictReader(source, restkey="")
        number, more = 0, True
        while more:
            source.start_row()
            value: Any = None
            try:
                value = next(rows)
            except StopIteration:
                more = False
            except csv.Error:
                value = source.fault or Unusable(NOT_CSV)
            if value is not None:
                number += 1
                yield number, position(), value


def _parquet(path: Path) -> _Found:
    datasets = quiet.datasets()
    from pyarrow import ArrowException
    from pyarrow.parquet import read_metadata

    try:
        n_rows, size = read_metadata(path).num_rows, path.stat().st_size
        rows = datasets.load_dataset(
            "parquet", data_files=glob.escape(str(path)), split="train", streaming=True, batch_size=PARQUET_ROWS
        )
        for number, row in enumerate(rows.decode(False), 1):
            yield number, size * number // n_rows, row
    except (ArrowException, OSError, ValueError) as error:
        raise InputError(f"cannot read {path} as Parquet: {shown(str(error), 200)}; download it again") from error


READERS: dict[str, Callable[[Path], _Found]] = {
    ".txt": _texts,
    ".md": _texts,
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
