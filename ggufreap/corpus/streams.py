"""Bytes of local files cut into lines, array elements and pieces of text, in memory that no file can exceed."""

import codecs
import csv
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

from ggufreap.corpus.samples import Text, Unusable
from ggufreap.corpus.spec import suffix_of
from ggufreap.errors import InputError

LONGEST = 16 << 20
PIECE = 1 << 20
TOO_LONG = f"a row is larger than {LONGEST >> 20} MiB"

_BLOCK = 1 << 18
# A whole string is one match; possessive, or a string without an end would be tried in every way there is.
_INSIDE = re.compile(rb'(?:[^"\\]++|\\.)*+"', re.DOTALL)
_OUTSIDE = re.compile(rb'"' + _INSIDE.pattern + rb'|[\[{]+|["\]},]', re.DOTALL)
_BREAK = re.compile(r"\n(?=\S)")


@contextmanager
def opened(path: Path) -> Iterator[tuple[io.BufferedReader, Callable[[], int]]]:
    """The content of a file, uncompressed, and how many bytes of the file itself have been read.

    Raises InputError where the file cannot be read or what compresses it is damaged.
    """
    try:
        with ExitStack() as stack:
            raw = stack.enter_context(path.open("rb"))
            yield stack.enter_context(_uncompressed(raw, suffix_of(path.name)[1])), raw.tell
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"cannot unpack {path}: {error}; compress it again") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _uncompressed(raw: io.BufferedReader, suffix: str) -> io.BufferedReader:
    if suffix == ".gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), PIECE)
    if suffix == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), "zstd"), PIECE)
    return raw


def lines(file: io.BufferedReader) -> Iterator[bytes | Unusable]:
    """The lines of a file; of one that is too long nothing is kept."""
    while line := file.readline(LONGEST + 1):
        if len(line) <= LONGEST:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(LONGEST)
        yield Unusable(TOO_LONG)


class CsvLines:
    """The lines of a file for csv.reader, which joins them into rows; a row that gets too long is a csv.Error.

    Iterating goes on after it, with the next line as the start of a row. A byte that is no UTF-8 becomes half of a
    surrogate pair.
    """

    def __init__(self, file: io.BufferedReader) -> None:
        self._lines, self._held = lines(file), 0
        self.fault: Unusable | None = None
        csv.field_size_limit(LONGEST)

    def start_row(self) -> None:
        """A row begins."""
        self._held, self.fault = 0, None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._held += LONGEST + 1 if isinstance(line, Unusable) else len(line)
        if isinstance(line, Unusable) or self._held > LONGEST:
            self.fault = Unusable(TOO_LONG)
            raise csv.Error(TOO_LONG)
        return line.decode("utf-8", "surrogateescape").removeprefix("\ufeff")


def elements(file: io.BufferedReader) -> Iterator[bytes | Unusable]:
    """The elements of a JSON array as they stand; an array that ends too early ends with what there is of its last.

    No library does it: ijson holds an element, or one string of it, whatever its size, and ends at the first fault.
    """
    depth, quoted, too_long, held = 0, False, False, bytearray()
    while block := file.read(_BLOCK):
        if (len(block) - len(block.rstrip(b"\\"))) % 2:  # the escape goes on in the next block
            block += file.read(1)
        start = at = 0
        while match := _INSIDE.match(block, at) if quoted else _OUTSIDE.search(block, at):
            at, mark = match.end(), match[0]
            if quoted or mark[:1] == b'"':
                quoted = not quoted and mark == b'"'  # the rest of the string is in the next block
                continue
            if mark == b"," and depth > 1:
                continue
            if mark[:1] in b"[{":
                start = start if depth else match.start() + 1
                depth += len(mark)
                continue
            depth -= mark in b"]}"
            if depth == 0 or mark == b",":
                held += block[start : match.start()]
                if too_long or held.strip() or mark == b",":
                    yield Unusable(TOO_LONG) if too_long or len(held) > LONGEST else bytes(held)
                start, too_long, held = at, False, bytearray()
                if depth == 0:
                    return
        held += block[start:]
        if len(held) > LONGEST:
            too_long, held = True, bytearray()
    if too_long or held.strip():
        yield Unusable(TOO_LONG) if too_long else bytes(held)


def pieces(file: io.BufferedReader, path: Path) -> Iterator[Text]:
    """A UTF-8 text in pieces of at least 1 MiB, each cut after a newline before a character that is no white space.

    There no tokeniser has a word or a run of newlines that reaches over the cut. A text without such a place is cut
    before a space, or anywhere, once 16 MiB are held. Raises InputError, with the offset, for what is not UTF-8.
    """
    decoder, held, offset, sought = codecs.getincrementaldecoder("utf-8")(), "", 0, 0
    try:
        while block := file.read(PIECE):
            pending = len(decoder.getstate()[0])
            held += decoder.decode(block)
            if b"\0" in block:
                place = offset + block.index(b"\0")
                raise InputError(f"{path} is no text: a NUL byte at offset {place:,}; convert it, or give another file")
            offset += len(block)
            while len(held) > PIECE and (cut := _cut(held, sought)):
                yield Text(held[:cut], continues=True)
                held, sought = held[cut:], 0
            sought = len(held) - 1
        pending = len(decoder.getstate()[0])
        yield Text(held + decoder.decode(b"", final=True))
    except UnicodeDecodeError as error:
        place = offset - pending + error.start
        raise InputError(
            f"{path} is not UTF-8 text: byte {error.object[error.start]:#04x} at offset {place:,}; "
            "convert it, for example with iconv -t UTF-8"
        ) from error


def _cut(text: str, sought: int) -> int:
    """Where the first piece of at least 1 MiB ends, which is not before `sought`; 0 where no place is known yet."""
    if match := _BREAK.search(text, max(PIECE - 1, sought)):
        return match.end()
    if len(text) < LONGEST:
        return 0
    return max(text.rfind(" ", PIECE), 0) or len(text) - 1  # the last piece is never empty
