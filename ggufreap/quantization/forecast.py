"""What a quantisation will make of a model, before it makes it: every tensor's type and every file's size."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from gguf.constants import GGUFValueType

from ggufreap.container import GgufFile, MetadataEntry, TensorRecord, encode, nbytes_of, type_name
from ggufreap.container.gguf_file import SPLIT_KEYS
from ggufreap.container.header import pad
from ggufreap.engine.quantizer import QuantizerCall
from ggufreap.errors import EngineError
from ggufreap.quantization.request import TENSOR_TYPES

ALIGNMENT = 32  # llama.cpp writes no other: src/llama-quant.cpp, llama_model_quantize_impl

# The lines of llama_model_quantize_impl and tensor_type_fallback, src/llama-quant.cpp.
TENSOR_LINE = re.compile(r"\[ *\d+/ *\d+\] (?P<name>.+?) +- \[.*\], type = *\w+,( .*\((?P<new>\w+)\)$)?")
_FALLBACK_LINE = re.compile(
    r"warning: (?P<name>.+?) +- ncols +(?P<width>\d+) not divisible by +\d+ \(required for type +(?P<wanted>\w+)\)"
    r".*falling back to +(?P<given>\w+)"
)
# Runs a call dry and gives llama.cpp's log, as Quantizer.dry_run does.
DryRun = Callable[[QuantizerCall], Sequence[str]]
_SPECIAL = re.compile(r"([\\^$.|?*+()\[\]{}])")  # what ECMAScript escapes in a regex


@dataclass(frozen=True)
class Fallback:
    """A tensor whose rows of `width` weights are no multiple of what type `wanted` packs, so that it is `given`."""

    name: str
    width: int
    wanted: str
    given: str


@dataclass(frozen=True)
class Forecast:
    """The ggml type of every tensor, and the tensors `pinned` to the type that the original's mix gave them."""

    types: dict[str, int]
    fallbacks: tuple[Fallback, ...]
    pinned: tuple[tuple[str, int], ...]

    @property
    def pins(self) -> tuple[tuple[str, int], ...]:
        """The pinned tensors as (regex, type)."""
        return tuple((f"^{_escape(name)}$", kind) for name, kind in self.pinned)


def _escape(name: str) -> str:
    return _SPECIAL.sub(r"\\\1", name)


def forecast(source: GgufFile, call: QuantizerCall, n_expert_before: int | None, dry_run: DryRun) -> Forecast:
    """Let llama.cpp itself choose every type, in a dry run of `call`; raises EngineError when it refuses.

    llama.cpp's mix depends on the number of experts (== 8, >= 4, > 1: src/llama-quant.cpp,
    llama_tensor_get_type_impl). For a pruned model the dry run is told the number before, which reaches the
    hyperparameters only; then every tensor whose type would differ is pinned. A pinned tensor no longer counts in the
    "first so many" rules of its neighbours, so this goes on until the types are those of the original.
    """
    key = f"{source.get('general.architecture')}.expert_count"
    if n_expert_before is None or n_expert_before == source.get(key):
        return _ask(source, call, dry_run)
    wanted = _ask(source, replace(call, metadata={**(call.metadata or {}), key: n_expert_before}), dry_run)
    while True:
        answer = _ask(source, replace(call, tensor_types=call.tensor_types + wanted.pins), dry_run)
        missed = tuple((name, kind) for name, kind in wanted.types.items() if answer.types[name] != kind)
        if not missed:
            return wanted
        if set(missed) & set(wanted.pinned):
            name, kind = missed[0]
            raise EngineError(f"llama.cpp does not make {name} {type_name(kind)} when told to; report this")
        wanted = replace(wanted, pinned=wanted.pinned + missed)


def _ask(source: GgufFile, call: QuantizerCall, dry_run: DryRun) -> Forecast:
    lines = dry_run(call)
    tensors = [match for match in map(TENSOR_LINE.match, lines) if match]
    kept = {record.name: record.type for record in source.tensors}
    types = {
        match["name"]: kept.get(match["name"], -1)
        if match["new"] is None
        else TENSOR_TYPES.get(match["new"].upper(), -1)
        for match in tensors
    }
    if set(types) != set(source.by_name) or -1 in types.values():
        raise EngineError(
            f"llama.cpp's dry run names {len(types)} tensors, {source.path} has {len(source.by_name)}; "
            "this llama.cpp does not match this ggufreap, pip install 'llama-cpp-python==0.3.36'"
        )
    matches = [match for match in map(_FALLBACK_LINE.match, lines) if match]
    fallbacks = [
        Fallback(match["name"], int(match["width"]), match["wanted"].upper(), match["given"].upper())
        for match in matches
    ]
    return Forecast(types, tuple(fallbacks), ())


def file_sizes(
    source: GgufFile, types: Mapping[str, int], metadata: Mapping[str, str | int], keep_split: bool
) -> list[int]:
    """The exact bytes of every file that llama.cpp will write (src/llama-quant.cpp, ggml/src/gguf.cpp)."""
    entries = entries_nbytes(source.metadata.values(), metadata)
    if not keep_split:
        return [_file_nbytes(entries, source.tensors, types)]
    split = sum(len(key) + size for key, size in zip(SPLIT_KEYS, (14, 14, 16), strict=True))  # u16, u16, i32
    shards = [header.tensors for header in source.headers]
    return [_file_nbytes(split + entries * (not i), tensors, types) for i, tensors in enumerate(shards)]


def entries_nbytes(entries: Iterable[MetadataEntry], metadata: Mapping[str, str | int]) -> int:
    """What is written of a model's `entries`, with `metadata` in the place of any of the same key.

    Not those of a split set, and of strings what C strings hold.
    """
    new = {"general.quantization_version": 0, "general.file_type": 0} | dict(metadata)
    kept = [entry for entry in entries if entry.key not in SPLIT_KEYS and entry.key not in new]
    old = sum(len(entry.raw) - sum(entry.nul_tails) for entry in kept)
    return old + sum(_entry_nbytes(key, value) for key, value in new.items())


def _entry_nbytes(key: str, value: str | int) -> int:
    return len(encode(key, value, GGUFValueType.STRING if isinstance(value, str) else GGUFValueType.UINT32).raw)


def _file_nbytes(entries: int, tensors: Sequence[TensorRecord], types: Mapping[str, int]) -> int:
    shapes = {record.name: record.shape for record in tensors}
    return header_nbytes(entries, shapes) + sum(data_nbytes(shape, types[name]) for name, shape in shapes.items())


def header_nbytes(entries: int, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """A file's header with its padding: `entries` bytes of metadata, and tensor -> shape (numpy order)."""
    return pad(24 + entries + infos_nbytes(shapes), ALIGNMENT)


def infos_nbytes(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """What a header tells of its tensors."""
    return sum(24 + len(name.encode()) + 8 * _n_dims(shape) for name, shape in shapes.items())


def data_nbytes(shape: tuple[int, ...], kind: int) -> int:
    """A tensor's data with its padding."""
    return pad(nbytes_of(shape, kind), ALIGNMENT)


def _n_dims(shape: tuple[int, ...]) -> int:
    """The dimensions that ggml writes: those of size one at the far end fall away, down to a single one."""
    leading = next((axis for axis, length in enumerate(shape) if length != 1), len(shape))
    return max(1, len(shape) - leading)
