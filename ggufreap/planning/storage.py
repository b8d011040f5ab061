"""A plan as a file, and back: nothing of a file is believed before it was checked against the rest of it."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct
from msgspec.structs import asdict

from ggufreap.architecture.layout import MAX_BLOCKS, MAX_EXPERTS
from ggufreap.corpus.record import SourceRecord
from ggufreap.decoding import load_json
from ggufreap.errors import InputError
from ggufreap.files import replacing
from ggufreap.planning.choosing import SCHEMA, ModelIdentity, PruningPlan, as_fraction
from ggufreap.showing import excerpt

WHAT, ADVICE = "a plan of ggufreap", "make one with plan"

_Line = Annotated[str, Meta(max_length=4096)]
_Word = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_+.-]{1,64}\Z")]  # stands in file names
_Hash = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Count = Annotated[int, Meta(ge=1, le=MAX_EXPERTS)]
_Amount = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_Block = Annotated[int, Meta(ge=0, lt=MAX_BLOCKS)]
_Expert = Annotated[int, Meta(ge=0, lt=MAX_EXPERTS)]


class ModelRecord(Struct, forbid_unknown_fields=True):
    """A ModelIdentity."""

    fingerprint: _Hash
    architecture: _Line
    name: _Line
    structure: Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?\Z")] = ""
    types: _Line = ""


class _Source(Struct, forbid_unknown_fields=True):
    """A SourceRecord."""

    name: _Line
    domain: _Line
    is_hub: bool = False
    revision: _Line = ""
    subset: _Line = ""
    split: _Line = ""
    samples: _Amount = 0
    tokens: _Amount = 0
    sha256: _Line = ""
    held_out: _Line = ""


class _Plan(Struct, forbid_unknown_fields=True):
    """The keys of the file; those with a default are missing in plans of earlier versions."""

    schema: str
    model: ModelRecord
    method: _Word
    ratio: _Word
    n_expert: _Count
    n_keep: _Count
    layers: Annotated[dict[_Block, dict[str, list[_Expert] | float]], Meta(min_length=1)]
    mtp: Literal["mirror", "drop"] = "mirror"
    blend: _Line = ""
    n_group: _Count = 1
    corpus: _Line = ""
    datasets: list[_Source] = []
    criterion: Literal[""] | _Word = ""
    remarks: list[_Line] = []
    note: str = ""  # follows from the method and the remarks


def save_plan(path: Path, plan: PruningPlan) -> None:
    """Write the plan as JSON."""
    with replacing(path) as file:
        file.write(plan.to_json().encode())


def load_plan(path: Path) -> PruningPlan:
    """Read a plan; raises InputError for anything else, and for one whose counts and keep lists contradict each other.

    Whether it fits a model is `check_plan`'s to say.
    """
    data = load_json(path, _Plan, WHAT, ADVICE, SCHEMA)
    try:
        as_fraction(data.ratio)
        if data.n_keep > data.n_expert or data.n_expert % data.n_group:
            raise InputError(f"it keeps {data.n_keep} of {data.n_expert} experts in {data.n_group} groups")
        keep = {block: _kept(block, layer, data) for block, layer in data.layers.items()}
        why = {block: known for block, layer in data.layers.items() if (known := _why(block, layer))}
    except InputError as error:
        raise InputError(f"{path} contradicts itself: {error}; {ADVICE}") from error
    return PruningPlan(
        ModelIdentity(**asdict(data.model)),
        data.method,
        data.ratio,
        data.n_expert,
        data.n_keep,
        data.mtp,
        keep,
        why,
        data.corpus,
        tuple(SourceRecord(**asdict(source)) for source in data.datasets),
        data.blend,
        data.n_group,
        data.criterion,
        tuple(data.remarks),
    )


def _kept(block: int, layer: Mapping[str, Any], data: _Plan) -> tuple[int, ...]:
    kept = layer.get("keep")
    if not isinstance(kept, list):
        raise InputError(f"block {block} has no list keep")
    if len(kept) != data.n_keep:
        raise InputError(f"block {block} keeps {len(kept)} experts, n_keep is {data.n_keep}")
    if sorted(set(kept)) != kept or kept[-1] >= data.n_expert:
        raise InputError(f"block {block} does not keep ascending ids below {data.n_expert}")
    size = data.n_expert // data.n_group
    shares = Counter(expert // size for expert in kept)
    if len(shares) < data.n_group or len(set(shares.values())) > 1:
        raise InputError(f"block {block} does not keep equally many experts in each of {data.n_group} groups")
    return tuple(kept)


def _why(block: int, layer: Mapping[str, Any]) -> dict[str, float]:
    why = {name: value for name, value in layer.items() if name != "keep"}
    if wrong := [name for name, value in why.items() if not isinstance(value, float)]:
        raise InputError(f"block {block}: {excerpt(wrong[0])} is a list, it must be a number")
    return why
