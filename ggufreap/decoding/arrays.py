"""numpy's files, .npy and .npz, whose headers are read before a byte is allocated for what they claim.

numpy itself allocates first and asks then (numpy/lib/_format_impl.py, read_array), and unpacks a zip archive of any
size; pickled objects are refused here as everywhere.
"""

import math
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import numpy as np
import numpy.typing as npt

from ggufreap.decoding.documents import Damaged, parse_json
from ggufreap.decoding.signatures import HEAD, what_is
from ggufreap.errors import InputError
from ggufreap.showing import excerpt, shown

T = TypeVar("T")
Array = npt.NDArray[Any]

KINDS = "biufU"  # truth values, integers, floats, text
MOST_DIMS = 8
MOST_MEMBERS = 1 << 16
# A file unpacks to this many times its size at most: counts and sums hardly compress, repeated zeros do.
MOST_GROWTH = 64
_BROKEN = (BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError, zlib.error, struct.error)


def read_array(file: BinaryIO, nbytes: int) -> Array:
    """The array in the next `nbytes` of an open .npy; raises Damaged unless its header and its size are one."""
    start = file.tell()
    try:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise Damaged(f"it is .npy version {version[0]}.{version[1]}, versions 1.0 and 2.0 are read")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except Damaged:
        raise
    except Exception as error:  # numpy parses the header as Python: SyntaxError, TypeError, RecursionError and more
        raise Damaged(f"its header is no .npy header ({shown(error, 80)})") from error
    if dtype.hasobject or dtype.kind not in KINDS or dtype.names or dtype.subdtype:
        raise Damaged(f"it holds {shown(dtype, 80)}; plain numbers and text are read")
    if len(shape) > MOST_DIMS or any(length < 0 for length in shape):
        raise Damaged(f"it has the shape {excerpt(shape)}")
    header, claimed = file.tell() - start, math.prod(shape) * dtype.itemsize
    if header + claimed != nbytes:
        raise Damaged(f"shape {excerpt(shape)} of {dtype} takes {claimed:,} bytes, it has {nbytes - header:,}")
    data = file.read(claimed)
    if len(data) != claimed:
        raise Damaged(f"it ends after {len(data):,} of {claimed:,} bytes")
    array = np.frombuffer(bytearray(data), dtype) if claimed else np.empty(math.prod(shape), dtype)
    if dtype.kind == "U" and claimed and array.view(dtype.byteorder + "u4").max() > 0x10FFFF:
        raise Damaged("its text holds what is no character")
    return array.reshape(shape, order="F" if fortran else "C")


@contextmanager
def open_arrays(path: Path, what: str, advice: str) -> Iterator[Mapping[str, Array]]:
    """The arrays of an .npz by name, each read and checked when it is asked for.

    Raises InputError for a file that is not `what`, also where the block raises Damaged: the file, the fault, what to
    do.
    """
    try:
        with path.open("rb") as file:
            kind, size = what_is(file.read(HEAD)), file.seek(0, 2)
            if kind and "zip" not in kind:
                raise InputError(f"{path} is {kind}, not {what}; {advice}")
            file.seek(0)
            yield _Members(file, size)
    except Damaged as error:
        raise InputError(f"{path} is not {what}: {error}; {advice}") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def parse_header(arrays: Mapping[str, Array], name: str, kind: type[T]) -> T:
    """The JSON in the text array `name` as a value of `kind`; raises Damaged."""
    array = take(arrays, name, "U", ())
    return parse_json(str(array).encode(errors="surrogatepass"), kind)


def take(
    arrays: Mapping[str, Array],
    name: str,
    kinds: str,
    shape: tuple[int, ...],
    least: float = -math.inf,
    most: float = math.inf,
) -> Array:
    """The array `name`, of one of the dtype `kinds` and of this shape, finite and from `least` to `most`; raises
    Damaged.
    """
    array = arrays.get(name)
    if array is None:
        raise Damaged(f"it has no {name}")
    if array.dtype.kind not in kinds:
        raise Damaged(f"{name} holds {array.dtype}")
    if array.shape != shape:
        raise Damaged(f"{name} has shape {excerpt(array.shape)}, the rest says {excerpt(shape)}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise Damaged(f"{name} holds what is no number")
    if array.dtype.kind in "iuf" and array.size and not least <= array.min() <= array.max() <= most:
        worst, side = (array.min(), f"below {least:g}") if array.min() < least else (array.max(), f"above {most:g}")
        raise Damaged(f"{name} holds {worst}, {side}")
    return array


class _Members(Mapping[str, Array]):
    """What an archive says that it holds; raises Damaged for more than its bytes can hold, or for other things."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        with _whole():
            self._archive = ZipFile(file)
        members = self._archive.infolist()
        if len(members) > MOST_MEMBERS:
            raise Damaged(f"it holds {len(members):,} arrays")
        if (claimed := sum(member.file_size for member in members)) > MOST_GROWTH * size:
            raise Damaged(f"its {size:,} bytes claim to unpack to {claimed:,}")
        self._members: dict[str, ZipInfo] = {}
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name == member.filename or name in self._members:
                raise Damaged(f"its member {excerpt(member.filename)} is no array, or stands twice")
            self._members[name] = member

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __getitem__(self, name: str) -> Array:
        member = self._members[name]
        if member.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
            raise Damaged(f"{excerpt(name)} is packed in a way that numpy does not write")
        try:
            with _whole(), self._archive.open(member) as file:
                return read_array(file, member.file_size)  # type: ignore[arg-type]  # IO[bytes], which is read forward
        except Damaged as error:
            raise Damaged(f"{excerpt(name)}: {error}") from error


@contextmanager
def _whole() -> Iterator[None]:
    """Raises Damaged where zipfile finds that an archive is not whole."""
    try:
        yield
    except Damaged:
        raise
    except OSError as error:
        if error.strerror:  # the disk's fault, not the file's
            raise
        raise Damaged(shown(error, 120)) from error
    except _BROKEN as error:
        raise Damaged(shown(error, 120)) from error
