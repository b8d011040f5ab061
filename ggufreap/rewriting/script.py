"""Lowers a plan to a script in which every output tensor, offset and byte is known, and executes it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ggufreap.architecture.layout import BLOCK_TENSOR
from ggufreap.container import (
    GgufFile,
    MetadataEntry,
    OutputFile,
    OutputTensor,
    Piece,
    TensorRecord,
    lay_out,
    write,
)
from ggufreap.errors import InputError, OutputError, UnsupportedModel
from ggufreap.files import publish
from ggufreap.model import Model
from ggufreap.planning import PruningPlan
from ggufreap.progress import Progress, silent
from ggufreap.rewriting.metadata import pruned_metadata
from ggufreap.rewriting.narrow import Narrow, Narrower
from ggufreap.version import __version__

_UNITS = {"M": 1000**2, "G": 1000**3}


@dataclass(frozen=True)
class RewriteScript:
    """The files to be written; what `--dry-run` shows.

    `n_parameters` are the weights that stay, `metadata` what the file says of itself, in its order; shards are named
    after `target`; `notes` tell what narrower experts change besides their width.
    """

    files: tuple[OutputFile, ...]
    source_nbytes: int
    n_parameters: int
    metadata: tuple[MetadataEntry, ...]
    target: Path
    notes: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """The exact size on disk of all files together."""
        return sum(file.nbytes for file in self.files)


def lower(
    model: Model,
    plan: PruningPlan,
    out: Path,
    *,
    split_max_size: int | None = None,
    keep_split: bool = False,
    narrow: Narrow | None = None,
) -> RewriteScript:
    """The script that writes `plan` of `model` to `out`, with `narrow` experts; the plan must have passed `check_plan`.

    One file, or the source's own shards with `keep_split`, or shards of at most `split_max_size` bytes of tensors.
    Raises UnsupportedModel or InfeasiblePlan where experts cannot be narrowed so.
    """
    file, n_block = model.file, blocks_that_stay(model, plan)
    records = [record for record in file.tensors if _block(record) < n_block]
    narrower = Narrower(model, plan, narrow) if narrow else None
    tensors = {
        record.name: (narrower and narrower.output(record)) or _output(model, record, plan) for record in records
    }
    n_parameters = sum(tensor.n_elements for tensor in tensors.values())
    said = narrower.said(n_block) if narrower else None
    metadata = pruned_metadata(model, plan, n_block, n_parameters, __version__, said)
    groups = _groups(file, records, tensors, split_max_size, keep_split)
    files = lay_out(out, metadata, groups, file.alignment)
    notes = narrower.notes(tensors.values()) if narrower else ()
    return RewriteScript(files, file.nbytes, n_parameters, tuple(metadata), out, notes)


def execute(script: RewriteScript, progress: Progress = silent) -> None:
    """Write the script's files, all or none; raises OutputError."""
    with progress("write", script.nbytes, "B") as bar:
        write(script.files, bar)


def release(hidden: RewriteScript, final: RewriteScript) -> None:
    """Give the files that were written as `hidden` the names that they have in `final`, all or none; raises
    OutputError.
    """
    places = {file.path: file for file in final.files}
    names = dict(zip((file.path for file in hidden.files), places, strict=True))
    publish(names, lambda path: places[path].is_at(path))


def write_skeleton(script: RewriteScript, folder: Path) -> Path:
    """Write the script's headers into `folder`, followed by nothing up to their full size; returns the first file.

    Files as large as the real ones that take no space (holes), for programs that look at headers alone. Raises
    OutputError where the file system has no such files.
    """
    paths = [folder / file.path.name for file in script.files]
    try:
        for file, path in zip(script.files, paths, strict=True):
            with path.open("wb") as handle:
                handle.write(file.header)
                handle.truncate(file.nbytes)
    except OSError as error:
        raise OutputError(
            f"cannot make a file of {script.nbytes:,} bytes without content in {folder}: {error.strerror}; "
            "set TMPDIR to a folder on another disk"
        ) from error
    return paths[0]


def parse_size(text: str) -> int:
    """Bytes of `300M` or `2G`, as gguf-split takes them."""
    match = re.fullmatch(r"(\d+)([MG])", text)
    if match is None or not int(match[1]):
        raise InputError(f"size {text!r} is not understood; write a number and M or G, such as 2G")
    return int(match[1]) * _UNITS[match[2]]


def _block(record: TensorRecord) -> int:
    match = BLOCK_TENSOR.fullmatch(record.name)
    return int(match[1]) if match else -1


def blocks_that_stay(model: Model, plan: PruningPlan) -> int:
    """How many blocks the file of `plan` has: fewer than the model where MTP blocks are dropped."""
    layout = model.layout
    if plan.mtp != "drop" or layout.n_trunk == layout.n_block:
        return layout.n_block
    if layout.architecture.mtp_drop_refuse:
        raise UnsupportedModel(f"{model.path}: --mtp drop: {layout.architecture.mtp_drop_refuse}; use --mtp mirror")
    return layout.n_trunk


def _output(model: Model, record: TensorRecord, plan: PruningPlan) -> OutputTensor:
    path = model.file.headers[record.shard].path
    block = model.layout.per_expert.get(record.name)
    if block is None:
        return OutputTensor(record.name, record.shape, record.type, (Piece(path, record.offset, record.nbytes),))
    size = record.nbytes // model.layout.n_expert
    pieces = [Piece(path, record.offset + first * size, count * size) for first, count in _runs(plan.keep[block])]
    return OutputTensor(record.name, (plan.n_keep, *record.shape[1:]), record.type, tuple(pieces))


def _runs(kept: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbours that stay together, as (first, count): one copy each."""
    runs: list[tuple[int, int]] = []
    for expert in kept:
        if runs and expert == sum(runs[-1]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((expert, 1))
    return runs


def _groups(
    file: GgufFile,
    records: Sequence[TensorRecord],
    tensors: dict[str, OutputTensor],
    split_max_size: int | None,
    keep_split: bool,
) -> list[list[OutputTensor]]:
    if keep_split:
        groups: list[list[OutputTensor]] = [[] for _ in file.headers]
        for record in records:
            groups[record.shard].append(tensors[record.name])
        return groups
    groups, filled = [[]], 0
    for tensor in tensors.values():
        if split_max_size and groups[-1] and filled + tensor.nbytes > split_max_size:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.nbytes
    return groups
