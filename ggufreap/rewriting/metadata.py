"""What the pruned file says of itself: counts that must change, names that would lie, and where it comes from.

Every other entry keeps its bytes. Key names: gguf/constants.py, Keys.General.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gguf.constants import GGUFValueType
from gguf.utility import model_weight_count_rounded_notation

from ggufreap.architecture.metadata import OTHER_ARRAYS, PER_BLOCK_ARRAYS
from ggufreap.container import GgufFile, MetadataEntry, Value, encode
from ggufreap.container.header import read_header
from ggufreap.errors import InputError, MismatchError, UnsupportedModel
from ggufreap.model import Model
from ggufreap.narrowing import Narrowing
from ggufreap.planning import PruningPlan
from ggufreap.showing import file_name

_LOG = logging.getLogger(__name__)
PREFIX = "ggufreap."
EXPERTS_BEFORE = f"{PREFIX}source.expert_count"
PLAN = f"{PREFIX}plan.sha256"
SOURCE = f"{PREFIX}source.fingerprint"
WIDTH_BEFORE = f"{PREFIX}source.expert_feed_forward_length"
NARROWING = f"{PREFIX}narrowing.sha256"
COMPENSATED = f"{PREFIX}narrowing.compensated"
# What the source says of its own past: the base model of its base model, and how it was pruned before.
_OF_THE_SOURCE = ("general.base_model.", PREFIX)
_TOLD_LATER = re.compile(r"ggufreap\.(plan\.sha256|dataset\.\d+\.(samples|tokens|sha256))")  # by the calibration
STRING, U32, U64 = GGUFValueType.STRING, GGUFValueType.UINT32, GGUFValueType.UINT64
LINEAGE = ("author", "organization", "version", "repo_url")


@dataclass(frozen=True)
class Widths:
    """What is said of narrower experts: by which `narrowing`, and the `values` of the keys that tell of widths."""

    narrowing: Narrowing
    values: Mapping[str, Value]


def pruned_metadata(
    model: Model,
    plan: PruningPlan,
    n_block: int,
    n_parameters: int,
    version: str,
    narrowed: Widths | None = None,
) -> list[MetadataEntry]:
    """The entries of the pruned file, in the order of the original, new ones last.

    `n_block`: the blocks that stay, fewer where MTP blocks are dropped; `n_parameters`: the weights that stay.
    """
    file = model.file
    edits = _counts(model, plan, n_block) | _names(model, plan, n_parameters, narrowed)
    if n_block < model.layout.n_block:
        edits |= _shorter_arrays(model, n_block)
    edits |= _provenance(file, plan, version) | _datasets(file, plan)
    if narrowed:
        edits |= _widths(model, narrowed)
    entries = []
    for key, entry in file.metadata.items():
        if key in edits:
            entries.append(edits.pop(key))
        elif not key.startswith(_OF_THE_SOURCE):
            entries.append(entry)
    return entries + list(edits.values())


def _edited(entry: MetadataEntry, value: Value) -> MetadataEntry:
    return encode(entry.key, value, entry.item_type)


def _counts(model: Model, plan: PruningPlan, n_block: int) -> dict[str, MetadataEntry]:
    name = model.layout.architecture.name
    values = {f"{name}.expert_count": plan.n_keep}
    if n_block < model.layout.n_block:
        values |= {f"{name}.block_count": n_block, f"{name}.nextn_predict_layers": 0}
    return {key: _edited(model.file.metadata[key], value) for key, value in values.items()}


def _widths(model: Model, narrowed: Widths) -> dict[str, MetadataEntry]:
    name, narrowing, entries = model.layout.architecture.name, narrowed.narrowing, []
    for suffix, value in narrowed.values.items():
        entry = model.file.metadata.get(f"{name}.{suffix}")
        entries.append(_edited(entry, value) if entry else encode(f"{name}.{suffix}", value, U32))
    texts = (("width_ratio", narrowing.ratio), ("narrowing.method", narrowing.method))
    entries += [encode(f"{PREFIX}{key}", text, STRING) for key, text in texts if text]
    entries.append(encode(COMPENSATED, bool(narrowing.downs), GGUFValueType.BOOL))
    entries.append(encode(NARROWING, narrowing.sha256, STRING))
    entries.append(encode(WIDTH_BEFORE, narrowing.source_width, U32))
    return {entry.key: entry for entry in entries}


def _shorter_arrays(model: Model, n_block: int) -> dict[str, MetadataEntry]:
    prefix = f"{model.layout.architecture.name}."
    edits = {}
    for key, entry in model.file.metadata.items():
        suffix = key.removeprefix(prefix)
        if suffix == key or not entry.is_array or entry.count != model.layout.n_block or suffix in OTHER_ARRAYS:
            continue
        if suffix not in PER_BLOCK_ARRAYS:
            raise UnsupportedModel(
                f"{model.path}: array {key} has one entry per block but no table says what dropping MTP blocks does to "
                "it; use --mtp mirror"
            )
        assert isinstance(entry.value, list)  # is_array
        edits[key] = _edited(entry, entry.value[:n_block])
    return edits


def _names(model: Model, plan: PruningPlan, n_parameters: int, narrowed: Widths | None) -> dict[str, MetadataEntry]:
    file, n_expert = model.file, model.layout.n_expert
    label = narrowed.narrowing.full_label(plan) if narrowed else plan.label
    name = str(file.get("general.name") or file.path.stem)
    tags = file.get("general.tags")
    tags = [str(tag) for tag in tags] if isinstance(tags, list) else []
    texts = {
        "general.name": f"{name} {label}",
        "general.finetune": "-".join(filter(None, (str(file.get("general.finetune", "")), label))),
        "general.base_model.0.name": name,
    }
    for field in LINEAGE:
        if file.get(f"general.{field}"):
            texts[f"general.base_model.0.{field}"] = str(file.get(f"general.{field}"))
    if "general.size_label" in file.metadata:
        old = str(file.get("general.size_label"))
        # A label such as 128x1.8B tells of whole experts: narrower ones are told of by the total.
        counted = "" if narrowed and old.startswith(f"{n_expert}x") else old
        texts["general.size_label"] = size_label(counted, n_expert, plan.n_keep, n_parameters)
    edits = {key: encode(key, text, STRING) for key, text in texts.items()}
    own = ("pruned", plan.method) if plan.n_keep < n_expert or not narrowed else ("pruned",)
    new_tags = [tag for tag in (*own, *(["narrowed"] if narrowed else [])) if tag not in tags]
    edits["general.tags"] = encode("general.tags", [*tags, *new_tags], STRING)
    edits["general.base_model.count"] = encode("general.base_model.count", 1, U32)
    if "general.parameter_count" in file.metadata:
        edits["general.parameter_count"] = encode("general.parameter_count", n_parameters, U64)
    return edits


def size_label(old: str, n_expert: int, n_keep: int, n_parameters: int) -> str:
    """The size label after pruning: `128x1.8B` -> `96x1.8B`, `30B-A3B` -> `23B-A3B`, anything else -> the total."""
    if old.startswith(f"{n_expert}x"):
        return f"{n_keep}x{old.removeprefix(f'{n_expert}x')}"
    total = str(model_weight_count_rounded_notation(n_parameters))
    active = re.fullmatch(r"[\d.]+[KMBT](-A[\d.]+[KMBT])", old)
    return total + active[1] if active else total


def has_origin(path: Path, file: GgufFile, plan: PruningPlan) -> bool:
    """Whether the GGUF at `path` says of itself that it comes of `file`, by a plan that answers the same request."""
    try:
        metadata = read_header(path).metadata
    except InputError:
        return False
    known = (_provenance(file, plan, "") | _datasets(file, plan)).items()
    wanted = {key: entry.raw for key, entry in known if key.startswith(PREFIX) and not _TOLD_LATER.fullmatch(key)}
    return wanted == {key: metadata[key].raw for key in metadata if key in wanted}


def check_made_by(file: GgufFile, plan: PruningPlan) -> None:
    """Say, or raise MismatchError, that a pruned file is not the plan's: by the SHA-256 of the plan that it carries."""
    sha256 = file.get(PLAN)
    if sha256 is None:
        _LOG.warning(
            "%s does not say by which plan it was made (%s): nothing shows that it is this one", file.path, PLAN
        )
    elif sha256 != plan.sha256:
        raise MismatchError(
            f"{file.path} was made by the plan {str(sha256)[:12]}, this one is {plan.sha256[:12]}; give what belongs "
            "together"
        )


def _provenance(file: GgufFile, plan: PruningPlan, version: str) -> dict[str, MetadataEntry]:
    texts = (
        ("version", version),
        ("method", plan.method),
        ("criterion", plan.criterion),
        ("blend", plan.blend),
        ("ratio", plan.ratio),
        ("mtp", plan.mtp),
        ("source.fingerprint", file.fingerprint),
        ("plan.sha256", plan.sha256),
        ("corpus.sha256", plan.corpus),
    )
    entries = [encode(f"{PREFIX}{key}", text, STRING) for key, text in texts if text]
    entries.append(encode(EXPERTS_BEFORE, plan.n_expert, U32))
    return {entry.key: entry for entry in entries}


def _datasets(file: GgufFile, plan: PruningPlan) -> dict[str, MetadataEntry]:
    """The calibration data behind the data sets that the model itself names."""
    if not plan.datasets:
        return {}
    before = file.get("general.dataset.count", 0)
    first = before if isinstance(before, int) else 0
    entries = [encode("general.dataset.count", first + len(plan.datasets), U32)]
    for index, record in enumerate(plan.datasets):
        organization, _, name = record.name.rpartition("/") if record.is_hub else ("", "", file_name(record.name))
        standard = (("name", name), ("organization", organization), ("version", record.revision))
        entries += [encode(f"general.dataset.{first + index}.{key}", text, STRING) for key, text in standard if text]
        own = {key: getattr(record, key) for key in ("domain", "subset", "split", "sha256", "held_out")}
        entries += [encode(f"ggufreap.dataset.{index}.{key}", text, STRING) for key, text in own.items() if text]
        entries.append(encode(f"ggufreap.dataset.{index}.samples", record.samples, U64))
        entries.append(encode(f"ggufreap.dataset.{index}.tokens", record.tokens, U64))
    return {entry.key: entry for entry in entries}
