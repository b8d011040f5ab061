"""Requantising with llama.cpp's own quantiser, guided by an importance matrix."""

import logging
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from ggufreap import imatrix as matrices
from ggufreap import naming
from ggufreap.architecture.layout import bind
from ggufreap.container import GgufFile
from ggufreap.engine.quantizer import ImatrixData
from ggufreap.errors import InputError, OutputError, UnsupportedModel
from ggufreap.files import check_space, claim, make_folder, written_by
from ggufreap.imatrix import Filled, Imatrix
from ggufreap.model import AnyModel, file_of
from ggufreap.options.quantisation import Quantiser
from ggufreap.progress import Progress, silent
from ggufreap.quantization import Quantized, QuantRequest, imatrix_metadata, parse_tensor_type, quantize_file
from ggufreap.recipe import Variant, load_quantization
from ggufreap.rewriting.metadata import EXPERTS_BEFORE
from ggufreap.sizing import Sizer

# Types of which ggml-quants.c (quantize_q8_0 and so on) takes an importance matrix and does not look at it.
UNGUIDED = frozenset({"F32", "F16", "BF16", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4"})
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Variants:
    """What was made of one model, or with a dry run will be made: a quantised file per variant of a recipe."""

    quantized: tuple[Quantized, ...]

    @property
    def nbytes(self) -> int:
        """On disk, all of them together."""
        return sum(made.nbytes for made in self.quantized)


@dataclass(frozen=True)
class Guide:
    """An importance matrix as the quantiser takes it: mean squares by tensor, what the file says of it, and notes.

    `later`: the tensors of which it is yet to be collected, so that only a dry run can be made. The default is to have
    none.
    """

    values: ImatrixData | None = None
    metadata: Mapping[str, str | int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    later: Collection[str] | None = None

    @classmethod
    def of(cls, matrix: Imatrix, name: str, source: GgufFile) -> Self:
        """The guide to quantising `source` with `matrix`, whose file is called `name`; raises MismatchError."""
        with suppress(UnsupportedModel):  # what has no experts, or cannot be pruned, can be quantised all the same
            matrices.check(matrix, source, bind(source))
        complete, gaps = matrices.filled(matrix)
        values = {weight: matrices.means(entry) for weight, entry in complete.entries.items()}
        dataset = matrix.datasets[0] if matrix.datasets else ""
        metadata = imatrix_metadata(name, len(matrix.entries), matrix.chunk_count, dataset)
        return cls(values, metadata, tuple(map(gap_note, gaps)))

    @classmethod
    def promised(cls, name: str, dataset: str, tensors: Collection[str]) -> Self:
        """A matrix yet to be collected of `tensors` from `dataset`; its numbers take as much room as any."""
        return cls(metadata=imatrix_metadata(name, 1, 1, dataset), later=tensors)


@written_by
def quantize(
    model: AnyModel,
    out: str | Path,
    type: str,
    asked: Quantiser | None = None,
    *,
    dry_run: bool = False,
    force: bool = False,
    progress: Progress = silent,
) -> Quantized:
    """Quantise `model` to `type` (Q4_K_M, IQ4_XS ...) at `out`, or with `dry_run` tell exactly what it would be.

    The importance matrix of a pruned model is one that was sliced with it.
    A model that ggufreap pruned gets the types that it would have had before, where llama.cpp's mix counts experts.
    Files of other work are replaced with `force` alone.
    """
    source, asked = file_of(model), asked or Quantiser()
    request = _request(type, asked)
    guide = guide_of(asked.imatrix, source)
    _warn_of_split(asked, source)
    claim(inputs=(asked.imatrix,))
    if dry_run:
        with Sizer(source) as sizer:
            made = foresee(sizer, None, Path(out), request, guide)
    else:
        made = make(source, Path(out), request, guide, progress)
    if asked.imatrix is not None and UNGUIDED.issuperset(made.types.values()):
        _LOG.warning("--imatrix: no effect, none of the types %s is guided by one", ", ".join(made.type_nbytes))
    return made


@written_by
def quantize_variants(
    model: AnyModel,
    out: str | Path,
    recipe: str | Path,
    asked: Quantiser | None = None,
    *,
    dry_run: bool = False,
    force: bool = False,
    progress: Progress = silent,
) -> Variants:
    """Make the variants of `model` that `recipe` names, one of ggufreap's or a TOML file; of it all else is ignored.

    `out` is a folder, or for a single variant a file that ends in .gguf. Everything is checked before the first one.
    Files of other work are replaced with `force` alone.
    """
    chosen, asked = load_variants(recipe), asked or Quantiser()
    if asked.types:
        raise InputError(
            f"{', '.join(asked.types)} was given beside recipe {recipe}, which tells the types of tensors; "
            "give one or the other"
        )
    out, source = Path(out), file_of(model)
    if out.suffix == ".gguf" and not out.is_dir():
        if len(chosen) > 1:
            raise OutputError(f"{out} is one file, recipe {recipe} makes {len(chosen)}; name a folder with -o")
        paths = [out]
    else:
        paths = [out / naming.pruned_name(source.path, "", variant.suffix) for variant in chosen]
    guide, n_block = guide_of(asked.imatrix, source), _n_block(source)
    _warn_of_split(asked, source)
    variants = [variant.of(n_block).request(asked.n_threads, asked.allow_requantize) for variant in chosen]
    requests = [replace(request, keep_split=asked.keep_split) for request in variants]
    jobs = list(zip(paths, requests, strict=True))
    with Sizer(source) as sizer:
        foreseen = Variants(tuple(foresee(sizer, None, path, request, guide) for path, request in jobs))
    if dry_run:
        return foreseen
    check_space(paths[0].parent, foreseen.nbytes)
    if paths != [out]:
        make_folder(out)
    claim(*(path for made in foreseen.quantized for path in made.paths), inputs=(*source.paths, asked.imatrix, recipe))
    return Variants(tuple(make(source, path, request, guide, progress) for path, request in jobs))


def load_variants(recipe: str | Path) -> tuple[Variant, ...]:
    """The variants of a recipe; raises InputError where it has none."""
    chosen = load_quantization(recipe).variants
    if not chosen:
        raise InputError(f"recipe {recipe} has no quantization.variants; add one, or give a type such as Q4_K_M")
    return chosen


def _warn_of_split(asked: Quantiser, source: GgufFile) -> None:
    if asked.keep_split and len(source.paths) == 1:
        _LOG.warning("--keep-split: no effect, %s is one file", source.path.name)


def _request(type: str, asked: Quantiser) -> QuantRequest:
    return QuantRequest(
        type,
        tuple(map(parse_tensor_type, asked.tensor_types)),
        asked.token_embedding_type,
        asked.output_tensor_type,
        asked.pure,
        asked.keep_split,
        asked.n_threads,
        asked.allow_requantize,
    )


def foresee(sizer: Sizer, n_keep: int | None, out: Path, request: QuantRequest, guide: Guide) -> Quantized:
    """What `make` will make of the model with `n_keep` experts per block, or of the whole one; raises what it would."""
    request = replace(request, metadata=guide.metadata)
    said = sizer.quantised(n_keep, request, out, imatrix=guide.values, imatrix_later=guide.later)
    return replace(said, warnings=said.warnings + guide.notes)


def make(source: GgufFile, out: Path, request: QuantRequest, guide: Guide, progress: Progress = silent) -> Quantized:
    """Quantise an opened model, the notes of `guide` among the warnings."""
    request = replace(request, n_expert_before=source.get(EXPERTS_BEFORE), metadata=guide.metadata)
    made = quantize_file(source, out, request, imatrix=guide.values, progress=progress)
    return replace(made, warnings=made.warnings + guide.notes)


def gap_note(gap: Filled) -> str:
    """What was done for experts and inputs without data, in one line."""
    said = []
    if gap.experts:
        rule = f"took the mean of the other {gap.n_sources}" if gap.n_sources else "are weighted evenly"
        said.append(f"experts without data in the importance matrix: {len(gap.experts)}; they {rule}")
    if gap.n_columns:
        said.append(
            f"inputs that were zero for the whole text: {gap.n_columns:,}; they got the least importance of the others"
        )
    return f"{gap.weight}: {'. '.join(said)}"


def guide_of(imatrix: str | Path | None, source: GgufFile) -> Guide:
    """The guide that a file holds, if there is one."""
    return Guide() if imatrix is None else Guide.of(matrices.load_for(imatrix, source), Path(imatrix).name, source)


def _n_block(source: GgufFile) -> int:
    """The blocks that decoding runs."""
    with suppress(UnsupportedModel):
        return bind(source).n_trunk
    return int(source.get(f"{source.get('general.architecture')}.block_count", 1))
