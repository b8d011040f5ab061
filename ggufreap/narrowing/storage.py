"""A narrowing as a file that a person can read, and the columns of down that it computed in a file beside it.

What was computed is mapped, not read: of a large model it takes as much as its down matrices in F32. The hash of the
whole solution binds both files to each other and to what was made by them.
"""

import json
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf.constants import GGUFValueType
from msgspec import Meta, Struct

from ggufreap.architecture.layout import MAX_BLOCKS
from ggufreap.container import Computed, GgufFile, OutputTensor, encode, lay_out, open_gguf, write
from ggufreap.decoding import load_json
from ggufreap.errors import InputError, MismatchError
from ggufreap.files import replacing
from ggufreap.narrowing.narrowing import Ids, Narrowing, Weights
from ggufreap.planning import PruningPlan
from ggufreap.planning.storage import ModelRecord
from ggufreap.progress import Progress, silent

SCHEMA = "ggufreap.narrowing/1"
WHAT, ADVICE = "a narrowing of ggufreap", "make one with narrow"
MOST = 256 << 20  # bytes of the readable file: 60 blocks of 384 experts of 2,048 neurons take half of it
MAX_WIDTH = 1 << 16

_Line = Annotated[str, Meta(max_length=4096)]
_Hash = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Width = Annotated[int, Meta(ge=1, le=MAX_WIDTH)]
_Block = Annotated[int, Meta(ge=0, lt=MAX_BLOCKS)]
_Ranges = Annotated[str, Meta(pattern=r"^[0-9]{1,5}(-[0-9]{1,5})?(,[0-9]{1,5}(-[0-9]{1,5})?)*\Z")]


class _Stored(Struct, forbid_unknown_fields=True):
    """The keys of the file; `layers`: block -> the neurons of every expert that stays, as ranges."""

    schema: str
    model: ModelRecord
    plan: _Hash
    sha256: _Hash
    source_width: _Width
    width: _Width
    method: _Line
    layers: Annotated[dict[_Block, list[_Ranges]], Meta(min_length=1)]
    task: Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?\Z")] = ""
    downs: bool = False
    remarks: Annotated[list[_Line], Meta(max_length=MAX_BLOCKS)] = []


def downs_path(path: Path) -> Path:
    """Where the columns of the narrowing at `path` lie."""
    return path.with_name(f"{path.name.removesuffix('.json')}.downs.gguf")


def save_narrowing(
    path: Path, narrowing: Narrowing, plan: PruningPlan, *, task: str = "", progress: Progress = silent
) -> None:
    """Write the narrowing of what `plan` leaves as JSON, and its columns of down beside it; raises OutputError.

    `task`: the SHA-256 of what it is the solution of.
    """
    if narrowing.downs:
        _save_downs(downs_path(path), narrowing, progress)
    head = {
        "schema": SCHEMA,
        "model": vars(plan.model),
        "plan": plan.sha256,
        "sha256": narrowing.sha256,
        "source_width": narrowing.source_width,
        "width": narrowing.width,
        "method": narrowing.method,
        "task": task,
        "downs": bool(narrowing.downs),
        "remarks": list(narrowing.remarks),
    }
    lines = "".join(f"  {json.dumps(key)}: {json.dumps(value)},\n" for key, value in head.items())
    layers = ",\n    ".join(
        f'"{block}": [\n      ' + ",\n      ".join(f'"{as_ranges(row.tolist())}"' for row in ids) + "\n    ]"
        for block, ids in sorted(narrowing.neurons.items())
    )
    with replacing(path) as file:
        file.write(f'{{\n{lines}  "layers": {{\n    {layers}\n  }}\n}}\n'.encode())


def load_narrowing(path: Path, plan: PruningPlan) -> Narrowing:
    """Read the narrowing of what `plan` leaves; its columns of down are mapped from the file beside it.

    Raises InputError for anything else, and for files that contradict themselves or each other; MismatchError for the
    narrowing of another plan.
    """
    data = load_json(path, _Stored, WHAT, ADVICE, SCHEMA, MOST)
    if data.plan != plan.sha256:
        raise MismatchError(
            f"{path} belongs to the plan {data.plan[:12]}, this one is {plan.sha256[:12]}; give what belongs together"
        )
    try:
        if data.width > data.source_width:
            raise InputError(f"it keeps {data.width} of {data.source_width} neurons")
        neurons = {block: _ids(block, rows, data) for block, rows in data.layers.items()}
        downs = _map_downs(open_gguf(downs_path(path))) if data.downs else {}
        found = Narrowing(data.source_width, data.width, neurons, downs, data.method, tuple(data.remarks))
        if found.sha256 != data.sha256:
            raise InputError(f"its solution has the SHA-256 {found.sha256[:12]}, it says {data.sha256[:12]}")
    except InputError as error:
        raise InputError(f"{path} contradicts itself: {error}; {ADVICE}") from error
    return found


def solves(path: Path, task: str, plan: PruningPlan) -> bool:
    """Whether the narrowing at `path` is the solution of the `task`, for the experts that `plan` keeps."""
    try:
        data = load_json(path, _Stored, WHAT, ADVICE, SCHEMA, MOST)
    except InputError:
        return False
    return (data.task, data.plan) == (task, plan.sha256)


def as_ranges(ids: Sequence[int]) -> str:
    """Ascending numbers as `0-3,7,9-12`."""
    parts: list[list[int]] = []
    for number in ids:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in parts)


def from_ranges(text: str, end: int) -> list[int]:
    """The numbers of `0-3,7,9-12`; raises InputError unless they ascend and stay below `end`."""
    ids: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        if low > high or high >= end or (ids and low <= ids[-1]):
            raise InputError(f"neurons {part} are not ascending numbers below {end}")
        ids += range(low, high + 1)
    return ids


def _ids(block: int, rows: Sequence[str], data: _Stored) -> Ids:
    try:
        ids = [from_ranges(row, data.source_width) for row in rows]
    except InputError as error:
        raise InputError(f"block {block}: {error}") from error
    if wrong := next((row for row in ids if len(row) != data.width), None):
        raise InputError(f"block {block} keeps {len(wrong)} neurons of an expert, width is {data.width}")
    return np.array(ids, np.int32)


def _save_downs(path: Path, narrowing: Narrowing, progress: Progress) -> None:
    def bytes_of(expert: Weights) -> Any:
        return np.ascontiguousarray(expert, "<f4").view(np.uint8)

    tensors = [
        OutputTensor(
            f"blk.{block}.ffn_down_exps.weight",
            down.shape,
            Kind.F32,
            tuple(Computed(None, 4 * down[0].size, partial(bytes_of, expert)) for expert in down),
        )
        for block, down in sorted(narrowing.downs.items())
    ]
    entries = [encode("general.type", "narrowing", GGUFValueType.STRING)]
    files = lay_out(path, entries, [tensors], 32)
    with progress("write columns", sum(file.nbytes for file in files), "B") as bar:
        write(files, bar)


def _map_downs(file: GgufFile) -> dict[int, Weights]:
    downs: dict[int, Weights] = {}
    for record in file.tensors:
        match = re.fullmatch(r"blk\.(\d+)\.ffn_down_exps\.weight", record.name)
        if match is None or record.type != Kind.F32 or len(record.shape) != 3 or not record.nbytes:
            raise InputError(f"{file.path} holds {record.name}, which is no column of down in F32")
        downs[int(match[1])] = file.map(record).view("<f4").reshape(record.shape)
    return downs
