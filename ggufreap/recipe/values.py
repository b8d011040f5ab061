"""The tables of a recipe as values, each valid by itself."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Self

from ggufreap.blending import check_blend
from ggufreap.corpus.request import TEXT_CTX
from ggufreap.corpus.spec import parse_sources
from ggufreap.errors import InputError
from ggufreap.evaluation import parse_gate
from ggufreap.options import target as options
from ggufreap.options.engine import EngineSettings
from ggufreap.options.judgement import Judgement, split_name
from ggufreap.options.quantisation import KEEP
from ggufreap.planning import as_fraction
from ggufreap.quantization import QuantRequest, file_type_name, parse_tensor_type
from ggufreap.quantization.request import tensor_type
from ggufreap.selection.methods import method_names
from ggufreap.showing import EXCERPT, excerpt, shown

_PLACEHOLDER = re.compile(r"\{(first|last)([1-9]\d{0,2})?\}")
_UNKNOWN_PLACEHOLDER = re.compile(r"\{[^\d}][^}]*\}")
_SUFFIX = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Calibration:
    """What the model reads: `datasets` as NAME[subset](split):N, in chunks of `ctx_size` tokens.

    Without `ctx_size` the data decide: 512 for text, 2048 for rows. At most `chunks` chunks are run. `seed` draws
    samples, and experts for the method `random`.
    """

    datasets: tuple[str, ...] = ()
    ctx_size: int | None = None
    chunks: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for text in self.datasets:
            parse_sources(text)


@dataclass(frozen=True)
class Target(options.Target):
    """How much goes, as one of `ratio`, `keep` and `shrink`, and which experts, by a criterion that is known."""

    def __post_init__(self) -> None:
        if [self.ratio, self.keep, self.shrink].count(None) != 2:
            raise InputError("of ratio, keep and shrink several are given or none is; give one of them")
        if self.shrink is not None and self.width_ratio is not None:
            raise InputError("shrink divides the cut between experts and neurons; leave out width_ratio")
        for fraction in (self.ratio, self.shrink, self.width_ratio):
            if fraction is not None:
                as_fraction(str(fraction))
        check_known(self.method, "method", method_names())
        check_known(self.mtp, "mtp", options.MTP_MODES)
        check_known(self.round, "round", options.ROUNDINGS)
        if self.blend is not None:
            check_blend(self.blend)


@dataclass(frozen=True)
class Variant:
    """One quantised file. `name` is the end of its file name, the type itself where it is empty.

    `tensor_types`: (regex searched in a tensor's name, type), the first match wins. In a regex `{first}` and `{last}`
    are the first and the last block that decoding runs, `{first4}` and `{last4}` the first and the last four.
    """

    type: str
    name: str = ""
    tensor_types: tuple[tuple[str, str], ...] = ()
    token_embedding_type: str | None = None
    output_tensor_type: str | None = None
    pure: bool = False

    def __post_init__(self) -> None:
        if not _SUFFIX.fullmatch(self.suffix):
            raise InputError(f"name {excerpt(self.name)} cannot end a file name; use letters, digits, '.', '_' and '-'")
        for pattern, kind in self.tensor_types:
            if wrong := _UNKNOWN_PLACEHOLDER.search(_PLACEHOLDER.sub("", pattern)):
                fact = f"{excerpt(pattern)} holds {shown(wrong[0], EXCERPT)}"
                raise InputError(f"tensor type {fact}; the placeholders are {{first}}, {{last4}}")
            parse_tensor_type(f"{_expanded(pattern, 1)}={kind}")
        for chosen in filter(None, (self.token_embedding_type, self.output_tensor_type)):
            tensor_type(chosen)
        QuantRequest(self.type, tuple((_expanded(pattern, 1), kind) for pattern, kind in self.tensor_types)).check()

    def request(self, n_threads: int = 0, allow_requantize: bool = False) -> QuantRequest:
        """What the quantiser is asked, once no placeholders are left."""
        return QuantRequest(
            self.type,
            self.tensor_types,
            self.token_embedding_type,
            self.output_tensor_type,
            self.pure,
            n_threads=n_threads,
            allow_requantize=allow_requantize,
        )

    @property
    def suffix(self) -> str:
        """What the file name ends with."""
        kind = file_type_name(self.type)
        return self.name or kind

    def of(self, n_block: int) -> Self:
        """The same for a model whose decoding runs `n_block` blocks: no placeholders are left."""
        return replace(self, tensor_types=tuple((_expanded(regex, n_block), kind) for regex, kind in self.tensor_types))


@dataclass(frozen=True)
class Quantization:
    """What is made of the pruned file: `variants`, and with `keep` the byte-exact one stays as well.

    With `keep_imatrix` the importance matrix of the pruned model stays beside them, with `imatrix_dat` also in the
    format of before July 2025.
    """

    variants: tuple[Variant, ...] = ()
    keep: bool = False
    keep_imatrix: bool = True
    imatrix_dat: bool = False

    @property
    def quant(self) -> tuple[str | Variant, ...]:
        """The same in the words of `options.quantisation`."""
        return (*([KEEP] if self.keep else []), *self.variants)

    def __post_init__(self) -> None:
        if not self.variants and not self.keep:
            raise InputError("there are no variants and keep is false: nothing would stay; give one of them")
        names = [variant.suffix.lower() for variant in self.variants]
        for name in names:
            if names.count(name) > 1:
                raise InputError(
                    f"{names.count(name)} variants are named {shown(name, EXCERPT)}; every variant is a file, name them"
                )


@dataclass(frozen=True)
class Evaluation(Judgement):
    """What the result is judged by; the held-out texts are named before they are read."""

    ctx_size: int = TEXT_CTX

    def __post_init__(self) -> None:
        for text in self.fail_if:
            parse_gate(text)
        if (self.compare or self.fail_if) and not self.files:
            raise InputError("compare and fail_if judge by held-out text, and files names none; name some")
        named = [split_name(text) for text in self.files]
        for text, (name, file) in zip(self.files, named, strict=True):
            if not name or not file:
                raise InputError(f"files holds {excerpt(text)}; every text is a FILE or NAME=FILE")
            if [other for other, _ in named].count(name) > 1:
                raise InputError(
                    f"several files are named {shown(name, EXCERPT)}; give each a name of its own as NAME=FILE"
                )

    @property
    def texts(self) -> dict[str, Path]:
        """Name -> file; a file without a name is called as its own, without the ending."""
        return {name: Path(file) for name, file in map(split_name, self.files)}


@dataclass(frozen=True)
class Recipe:
    """The whole job; `name` is the recipe's file name without `.toml`."""

    name: str
    calibration: Calibration
    target: Target
    quantization: Quantization
    evaluation: Evaluation = Evaluation()
    engine: EngineSettings = field(default_factory=EngineSettings)


def check_known(name: str, what: str, known: Iterable[str], more: str = "") -> None:
    """Raise InputError unless `name` is known; `what` ends in a dot where the name goes on from it."""
    if name in (names := list(known)):
        return
    fact = f"{what}{shown(name, EXCERPT)}" if what.endswith(".") else f"{what} {excerpt(name)}"
    close = get_close_matches(name[:EXCERPT], names, 1)
    guess = f"did you mean {close[0]}? Known: " if close else "choose one of "
    raise InputError(f"{fact} is not known; {guess}{', '.join(names)}{more}")


def _expanded(pattern: str, n_block: int) -> str:
    def blocks(match: re.Match[str]) -> str:
        count = min(int(match[2] or 1), n_block)
        start = 0 if match[1] == "first" else n_block - count
        return f"(?:{'|'.join(map(str, range(start, start + count)))})"

    return _PLACEHOLDER.sub(blocks, pattern)
