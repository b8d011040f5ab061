"""Runs a quantisation: everything known and checked before it starts, every file in its place only when it is whole."""

import shutil
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ggufreap.activity import doing
from ggufreap.container import GgufFile, nbytes_of, open_gguf, type_name
from ggufreap.container.gguf_file import split_path
from ggufreap.container.header import read_header
from ggufreap.engine.quantizer import ImatrixData, Quantizer, QuantizerCall
from ggufreap.errors import EngineError, GgufReapError, InputError, OutputError
from ggufreap.files import check_free, check_space, claim, private_folder, publish, sync, written_by
from ggufreap.progress import Progress, silent
from ggufreap.quantization.checks import check_imatrix, check_reach, check_requantizing, check_rows, other_warnings
from ggufreap.quantization.forecast import ALIGNMENT, TENSOR_LINE, DryRun, Fallback, Forecast, file_sizes, forecast
from ggufreap.quantization.request import FILE_TYPES, QuantRequest, file_type_name, tensor_type


@dataclass(frozen=True)
class Quantized:
    """What a quantisation made, or with a dry run will make.

    `nbytes`: on disk, all files together; `file_nbytes`: each of `paths`; `types`: tensor -> type; `type_nbytes`:
    type -> bytes of tensor data; `fallbacks`: tensors whose rows do not fit the type they should have had; `pinned`:
    tensors kept at the type that llama.cpp gives them in the model before pruning.
    """

    paths: tuple[Path, ...]
    nbytes: int
    file_nbytes: tuple[int, ...]
    types: dict[str, str]
    type_nbytes: dict[str, int]
    fallbacks: tuple[Fallback, ...]
    pinned: tuple[str, ...]
    warnings: tuple[str, ...]


@written_by
def quantize_file(
    source: GgufFile,
    out: Path,
    request: QuantRequest,
    *,
    imatrix: ImatrixData | None = None,
    imatrix_later: Collection[str] | None = None,
    dry_run: bool = False,
    progress: Progress = silent,
) -> Quantized:
    """Quantise `source` to `out`, or with `dry_run` only tell exactly what it would be.

    `imatrix`: tensor -> mean squares of its inputs `[n_mat * n_in]`, per expert, as llama-quantize hands them over;
    `imatrix_later`: a dry run for one that is yet to be collected, of these tensors. A dry run reads headers alone,
    never tensor data (src/llama-quant.cpp: its loop goes on before load_range), so `source` may be a file without any.

    With `keep_split` a split set becomes a split set named after `out`, anything else one file.
    """
    if not dry_run:
        claim(*_targets(source, out, request), inputs=source.paths)
    with Quantizer() as quantizer:
        job = _prepare(source, out, request, quantizer.dry_run, imatrix, imatrix_later)
        if not dry_run:
            for target, size in zip(job.targets, job.sizes, strict=True):
                check_free(target, _may_be_same(target, size, job.expected))
            _write(job, quantizer, imatrix, progress)
    return job.result()


def foretell(
    source: GgufFile,
    out: Path,
    request: QuantRequest,
    dry_run: DryRun,
    *,
    imatrix: ImatrixData | None = None,
    imatrix_later: Collection[str] | None = None,
) -> Quantized:
    """What `quantize_file` tells of a dry run, from llama.cpp as `dry_run` asks it."""
    return _prepare(source, out, request, dry_run, imatrix, imatrix_later).result()


def foretell_types(source: GgufFile, request: QuantRequest, dry_run: DryRun, *, weighted: bool) -> dict[str, int]:
    """Tensor -> ggml type, without a look at what stands against the request; `weighted` as in QuantizerCall."""
    return forecast(source, _call(source, request, weighted), request.n_expert_before, dry_run).types


def written_metadata(source: GgufFile, request: QuantRequest) -> dict[str, str | int]:
    """What is written into the file beside the entries of `source`, or in their place."""
    metadata = dict(request.metadata)
    if source.alignment != ALIGNMENT:  # else llama.cpp copies the key, but not the alignment
        metadata["general.alignment"] = ALIGNMENT
    return metadata


@dataclass(frozen=True)
class _Job:
    """All that is known of a quantisation before it starts; `sizes` in bytes, of the files at `targets`."""

    source: GgufFile
    call: QuantizerCall
    targets: Sequence[Path]
    sizes: Sequence[int]
    expected: Forecast
    warnings: Sequence[str]

    def result(self) -> Quantized:
        per_type: Counter[str] = Counter()
        types = self.expected.types
        for record in self.source.tensors:
            per_type[type_name(types[record.name])] += nbytes_of(record.shape, types[record.name])
        return Quantized(
            paths=tuple(self.targets),
            nbytes=sum(self.sizes),
            file_nbytes=tuple(self.sizes),
            types={record.name: type_name(types[record.name]) for record in self.source.tensors},
            type_nbytes=dict(per_type.most_common()),
            fallbacks=self.expected.fallbacks,
            pinned=tuple(name for name, _ in self.expected.pinned),
            warnings=tuple(self.warnings),
        )


def _prepare(
    source: GgufFile,
    out: Path,
    request: QuantRequest,
    dry_run: DryRun,
    imatrix: ImatrixData | None,
    imatrix_later: Collection[str] | None,
) -> _Job:
    """Let llama.cpp choose the types, and raise whatever stands against them."""
    targets = _targets(source, out, request)
    call = _call(source, request, weighted=imatrix is not None or imatrix_later is not None)
    expected = forecast(source, call, request.n_expert_before, dry_run)
    check_rows(source, expected.types)
    warnings = check_requantizing(source, expected.types, request)
    if imatrix_later is not None:
        check_reach(source, expected.types, file_type_name(request.type), imatrix_later)
    else:
        warnings += check_imatrix(source, expected.types, file_type_name(request.type), imatrix)
    warnings += other_warnings(source, request)
    sizes = file_sizes(source, expected.types, call.metadata or {}, call.keep_split)
    return _Job(source, call, targets, sizes, expected, warnings)


def _call(source: GgufFile, request: QuantRequest, weighted: bool) -> QuantizerCall:
    request.check()
    embedding, output = request.token_embedding_type, request.output_tensor_type
    return QuantizerCall(
        model=str(source.path),
        out="",
        file_type=FILE_TYPES[file_type_name(request.type)],
        tensor_types=tuple((pattern, tensor_type(name)) for pattern, name in request.tensor_types),
        token_embedding_type=None if embedding is None else tensor_type(embedding),
        output_tensor_type=None if output is None else tensor_type(output),
        pure=request.pure,
        keep_split=_keeps_split(source, request),
        weighted=weighted,
        n_threads=request.n_threads,
        max_buf_size=request.max_buf_size,
        metadata=written_metadata(source, request),
    )


def _keeps_split(source: GgufFile, request: QuantRequest) -> bool:
    return request.keep_split and len(source.headers) > 1


def _targets(source: GgufFile, out: Path, request: QuantRequest) -> list[Path]:
    if not _keeps_split(source, request):
        return [out]
    empty = [header.path.name for header in source.headers[1:] if not header.tensors]
    if empty:
        raise InputError(f"{empty[0]} holds no tensors; llama.cpp cannot keep such a split, write one file instead")
    count = len(source.headers)
    return [split_path(out.with_name(out.name.removesuffix(".gguf")), index, count) for index in range(count)]


def _write(job: _Job, quantizer: Quantizer, imatrix: ImatrixData | None, progress: Progress) -> None:
    """Let llama.cpp write in a private folder; publish when all of it is there, as expected, and on disk."""
    source, targets, sizes = job.source, job.targets, job.sizes
    check_space(targets[0].parent, sum(sizes))
    with private_folder(targets[0].parent) as folder, doing("quantising", source.path):
        hidden = [folder / target.name for target in targets]
        # llama.cpp numbers the shards itself.
        out = folder / targets[0].name.split("-00001-of-")[0] if job.call.keep_split else hidden[0]
        call = replace(job.call, out=str(out), tensor_types=job.call.tensor_types + job.expected.pins)
        try:
            _run(source, call, quantizer, imatrix, folder, progress)
            _check_written(hidden, sizes, job.expected)
            for path in hidden:
                sync(path)
        except OSError as error:
            raise OutputError(f"cannot write {targets[0]}: {error.strerror}; nothing was left behind") from error
        finally:
            quantizer.stop()
        publish(dict(zip(hidden, targets, strict=True)))


def _may_be_same(target: Path, size: int, expected: Forecast) -> bool:
    """Whether what is there looks like what is wanted; whether it is that, its bytes will tell when they are known."""
    types = {name: type_name(kind) for name, kind in expected.types.items()}
    return has_types(target, types) and target.stat().st_size == size


def has_types(path: Path, types: Mapping[str, str]) -> bool:
    """Whether the file at `path` is a GGUF whose tensors are all among `types`, and of these types."""
    try:
        tensors = read_header(path).tensors
    except GgufReapError:
        return False
    return all(types.get(each.name) == type_name(each.type) for each in tensors)


def _run(
    source: GgufFile,
    call: QuantizerCall,
    quantizer: Quantizer,
    imatrix: ImatrixData | None,
    folder: Path,
    progress: Progress,
) -> None:
    with progress("quantize", sum(record.nbytes for record in source.tensors), "B") as bar:

        def on_line(line: str) -> None:
            if match := TENSOR_LINE.match(line):
                bar.update(source.by_name[match["name"]].nbytes)

        try:
            quantizer.run(call, on_line, imatrix, folder)
        except EngineError as error:
            raise _explained(error, call) from None


def _explained(error: EngineError, call: QuantizerCall) -> GgufReapError:
    """The failures of a running job that have nothing to do with llama.cpp."""
    if "iostream error" in str(error):  # all that the C++ library says of a failed write
        free = shutil.disk_usage(Path(call.out).parent).free
        place = Path(call.out).parent.parent / Path(call.out).name
        return OutputError(
            f"llama.cpp could not write {place} to the end, {free:,} bytes are free there; "
            "free some or choose another -o"
        )
    if "has invalid data" in str(error):  # src/llama-model-loader.cpp, load_data_range
        return InputError(f"{error}: NaN, infinity or a damaged block; download or convert the model again")
    return error


def _check_written(paths: Sequence[Path], sizes: Sequence[int], expected: Forecast) -> None:
    nbytes = [path.stat().st_size for path in paths]
    types = {record.name: record.type for record in open_gguf(paths[0]).tensors}
    if nbytes != list(sizes) or types != expected.types:
        raise EngineError(
            f"llama.cpp wrote {sum(nbytes):,} bytes where {sum(sizes):,} were expected, or other types; "
            "nothing was kept, report this with the model's name"
        )
