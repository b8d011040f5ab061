"""Which model a file is: by its weights, and by what all conversions of one model have in common.

Measured on a file of 21 GB with 256 experts in 40 blocks, 2 cores: the fingerprint takes 1.7 s, 2.5 s if nothing of
the file is in memory; to hash the whole file takes 50 s. So samples are taken, once for as long as the file stays as it
is.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ggufreap.container.header import Header, TensorRecord, type_name
from ggufreap.container.unchanged import of_unchanged

WHOLE_MODEL = 256 << 20  # bytes: of a smaller one every byte is read
WHOLE_TENSOR = 4 << 20  # bytes: of a smaller one too, which is what routers and norms are
STRETCH, SAMPLE = 1 << 20, 4096  # bytes: of every stretch the first ones are read
N_READERS = 16  # reads wait for the disk, not for a core
SPLIT = "split."
TEMPLATE = "tokenizer.chat_template"


def fingerprint(headers: Sequence[Header]) -> str:
    """SHA-256 that tells weights apart: the same for a split and a merged copy, another one for every fine-tune.

    It covers the metadata but `split.*`, every tensor's name, shape and type, and of its data all bytes where the
    tensor or the model is small. Of other tensors it reads 4 KiB of every slice along the first axis and of every MiB
    of it: a slice that was changed, or moved, is seen, and so is any change to a whole MiB. Not seen: a change that
    leaves all samples as they are, such as a few weights of one expert edited by hand.
    """
    if sum(record.nbytes for header in headers for record in header.tensors) <= WHOLE_MODEL:
        return _hashed(headers, whole=True)
    # The headers were read before, of a file that may have been another one then: so they are part of the question.
    tensors = [header.tensors for header in headers]
    question = f"fingerprint {STRETCH} {SAMPLE} {WHOLE_TENSOR} {_of_metadata(headers).hexdigest()} {tensors}"
    return of_unchanged(question, [header.path for header in headers], lambda: _hashed(headers, whole=False))


def _of_metadata(headers: Sequence[Header]) -> "hashlib._Hash":
    digest = hashlib.sha256()
    for entry in headers[0].metadata.values():
        if not entry.key.startswith(SPLIT):
            digest.update(entry.raw)
    return digest


def _hashed(headers: Sequence[Header], whole: bool) -> str:
    digest = _of_metadata(headers)
    records = sorted((record for header in headers for record in header.tensors), key=lambda record: record.name)
    with ThreadPoolExecutor(N_READERS) as pool:
        data = pool.map(lambda record: _sampled(headers[record.shard].path, record, whole), records)
        for record, sampled in zip(records, data, strict=True):
            digest.update(f"{record.name}{record.shape}{record.type}".encode() + sampled)
    return digest.hexdigest()


def _sampled(path: Path, record: TensorRecord, whole: bool) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise") and not (whole or record.nbytes <= WHOLE_TENSOR):
            os.posix_fadvise(file.fileno(), record.offset, record.nbytes, os.POSIX_FADV_RANDOM)
        for offset, length in _samples(record, whole):
            file.seek(offset)
            digest.update(file.read(length))
    return digest.digest()


def _samples(record: TensorRecord, whole: bool) -> Iterator[tuple[int, int]]:
    """The ranges of the file that stand for a tensor, as (offset, bytes)."""
    if whole or record.nbytes <= WHOLE_TENSOR:
        for start in range(0, record.nbytes, STRETCH):
            yield record.offset + start, min(STRETCH, record.nbytes - start)
        return
    n_slices = record.shape[0] if len(record.shape) > 2 else 1
    size = record.nbytes // n_slices
    for index in range(n_slices):
        for start in range(0, size, STRETCH):
            yield record.offset + index * size + start, min(SAMPLE, size - start)


def structure(headers: Sequence[Header]) -> str:
    """SHA-256 of what all conversions of one model share: architecture, tensor names and shapes, and the tokenizer.

    Fine-tunes share it too, so it says that two files have one shape, not that they are one model. The chat template
    is left out: it is corrected in files that are published again.
    """
    digest = hashlib.sha256()
    for key, entry in sorted(headers[0].metadata.items()):
        if key == "general.architecture" or (key.startswith("tokenizer.") and not key.startswith(TEMPLATE)):
            digest.update(entry.raw)
    for name, shape in sorted((record.name, record.shape) for header in headers for record in header.tensors):
        digest.update(f"{name}{shape}".encode())
    return digest.hexdigest()


def types(headers: Sequence[Header]) -> str:
    """How many tensors are of which type, such as `F32 5, Q8_0 12`: tells one conversion from another."""
    counts = Counter(type_name(record.type) for header in headers for record in header.tensors)
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
