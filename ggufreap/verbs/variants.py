"""What `prune` makes of the pruned file: which variants, how large they will be, and making them."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ggufreap import imatrix as matrices
from ggufreap import naming
from ggufreap.container import GgufFile, bits_per_weight, open_gguf, type_name
from ggufreap.container.header import is_quantized
from ggufreap.errors import InputError
from ggufreap.imatrix import Imatrix
from ggufreap.model import Model
from ggufreap.narrowing import Narrowing
from ggufreap.options.quantisation import AUTO, KEEP
from ggufreap.planning import PruningPlan
from ggufreap.progress import Progress
from ggufreap.quantization import Quantized, QuantRequest, file_type_name
from ggufreap.recipe import Variant, recipe_names
from ggufreap.rewriting import RewriteScript
from ggufreap.sizing import Sizer
from ggufreap.verbs.narrowing import GOOD_BITS, sliced
from ggufreap.verbs.quantize import Guide, foresee, gap_note, load_variants, make

AUTO_TYPES = ("Q4_K_M", "IQ4_XS")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """The variants to be made of the pruned file, and whether the byte-exact file stays as well."""

    variants: tuple[Variant, ...]
    keep_exact: bool


def resolved(quant: Sequence[str | Variant], source: GgufFile) -> Wanted:
    """What `keep`, `auto`, types, recipes and variants stand for, of this model.

    `auto` is two 4-bit variants of a model in 8 bits or more, the same bytes of any other. Raises InputError for a
    name that is none of these, and for two variants of one name.
    """
    variants: list[Variant] = []
    keep_exact = KEEP in quant
    for item in quant:
        if item == AUTO and (low := low_types(source)):
            _LOG.info(
                "the types of %s are kept, byte for byte: it has weights in %s, and quantising twice loses twice "
                "(--quant TYPE --allow-requantize does it all the same)",
                source.path.name,
                ", ".join(low),
            )
            keep_exact = True
        elif item == AUTO:
            variants += map(Variant, AUTO_TYPES)
        elif item != KEEP:
            variants += [item] if isinstance(item, Variant) else _named(item)
    different = tuple(dict.fromkeys(variants))
    names = [variant.suffix.lower() for variant in different]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{names.count(name)} variants are named {name}; every variant is a file, name them")
    return Wanted(different, keep_exact)


def low_types(source: GgufFile) -> list[str]:
    """The types of less than 8 bits per weight that a model has."""
    kinds = {record.type for record in source.tensors if is_quantized(record.type)}
    return sorted(type_name(kind) for kind in kinds if bits_per_weight(kind) < GOOD_BITS)


def _named(text: str) -> Iterable[Variant]:
    """The variant of a type's name, or those of a recipe; where both have one name, they are the same."""
    if text.endswith(".toml") or Path(text).name != text:
        return load_variants(text)
    try:
        return [Variant(file_type_name(text))]
    except InputError as error:
        if text in recipe_names():
            return load_variants(text)
        raise InputError(f"{error}; or {KEEP}, {AUTO}, or a recipe: {', '.join(recipe_names())}") from error


@dataclass(frozen=True)
class VariantJobs:
    """All variants of one pruned file, `result`, in a folder beside it; `model` is the one before.

    `imatrix_dat`: their importance matrix is also written in the old format.
    """

    variants: tuple[Variant, ...]
    model: Model
    result: Path
    allow_requantize: bool
    threads: int
    imatrix_dat: bool = False

    def path(self, variant: Variant) -> Path:
        """Where a variant goes: `Model-REAP-0.20-Q8_0.gguf` becomes `Model-REAP-0.20-Q4_K_M.gguf`."""
        return self.result.with_name(naming.pruned_name(self.result, "", variant.suffix))

    @property
    def imatrix_path(self) -> Path:
        """The importance matrix of the pruned model."""
        return self.result.with_name(f"{naming.stem_of(self.result)}.imatrix.gguf")

    @property
    def imatrix_paths(self) -> tuple[Path, ...]:
        """The same, and where it lies in the old format."""
        old = [self.imatrix_path.with_suffix(".dat")] if self.imatrix_dat else []
        return (self.imatrix_path, *old)

    def check_names(self, script: RewriteScript) -> None:
        """Raise InputError where a variant would be written over the file it is made from."""
        for variant in self.variants:
            if self.path(variant) in [file.path for file in script.files]:
                raise InputError(
                    f"{variant.suffix} would be written over {self.path(variant).name}, the pruned file it is made "
                    "from; leave it out, or start from a model of another type"
                )

    def foresee(
        self,
        sizer: Sizer,
        plan: PruningPlan,
        matrix: Imatrix | None,
        dataset: str | None,
        narrowing: Narrowing | None = None,
    ) -> tuple[Quantized, ...]:
        """What all variants will be, exactly, before the pruned file is there.

        Which experts stay changes neither types nor sizes, so any plan of the same count will do. `dataset`: what a
        matrix will be collected from, where there is no `matrix` but will be one. Raises whatever `make` would raise
        for want of importance, or of leave to quantise twice.
        """
        guide = Guide()
        if self.variants and matrix is not None:
            part = sliced(self.model, plan, narrowing, matrix)
            guide = Guide.of(part, self.imatrix_path.name, sizer.opened(plan.n_keep))
        elif self.variants and dataset is not None:
            tensors = matrices.reached(sizer.opened(plan.n_keep), self.model.layout)
            guide = Guide.promised(self.imatrix_path.name, dataset, tensors)
        return tuple(
            foresee(sizer, plan.n_keep, self.path(variant), self._request(variant), guide) for variant in self.variants
        )

    def make(
        self,
        exact: Path,
        plan: PruningPlan,
        matrix: Imatrix | None,
        progress: Progress,
        narrowing: Narrowing | None = None,
    ) -> tuple[tuple[Quantized, ...], Path | None]:
        """Make all variants of the pruned file `exact`; also gives the importance matrix that guided them, sliced."""
        source, guide, path = open_gguf(exact), Guide(), None
        if matrix is not None:
            # Gaps are filled before the slice: what the dropped experts saw still tells about the block's input.
            for gap in matrices.filled(matrix)[1]:
                _LOG.info("%s", gap_note(gap))
            path, part = self.imatrix_path, sliced(self.model, plan, narrowing, matrix)
            for each in self.imatrix_paths:
                matrices.save(each, part, legacy=each != path)
            guide = Guide.of(matrices.load(path), path.name, source)
        made = tuple(
            make(source, self.path(variant), self._request(variant), guide, progress) for variant in self.variants
        )
        return made, path

    def _request(self, variant: Variant) -> QuantRequest:
        return variant.of(self.model.layout.n_trunk).request(self.threads, self.allow_requantize)
