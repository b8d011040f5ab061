"""What can be asked of the quantiser: the names of file and tensor types, as llama-quantize has them."""

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

from ggufreap.container.gguf_file import SPLIT_KEYS
from ggufreap.errors import InputError
from ggufreap.showing import excerpt, published

# tools/quantize/quantize.cpp, QUANT_OPTIONS; numbers: enum llama_ftype, include/llama.h.
FILE_TYPES = {
    "Q4_0": 2,
    "Q4_1": 3,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q8_0": 7,
    "Q2_K": 10,
    "Q2_K_S": 21,
    "Q3_K_S": 11,
    "Q3_K_M": 12,
    "Q3_K_L": 13,
    "Q4_K_S": 14,
    "Q4_K_M": 15,
    "Q5_K_S": 16,
    "Q5_K_M": 17,
    "Q6_K": 18,
    "IQ1_S": 24,
    "IQ1_M": 31,
    "IQ2_XXS": 19,
    "IQ2_XS": 20,
    "IQ2_S": 28,
    "IQ2_M": 29,
    "IQ3_XXS": 23,
    "IQ3_XS": 22,
    "IQ3_S": 26,
    "IQ3_M": 27,
    "IQ4_XS": 30,
    "IQ4_NL": 25,
    "TQ1_0": 36,
    "TQ2_0": 37,
    "Q1_0": 40,
    "Q2_0": 41,
    "MXFP4_MOE": 38,
    "F16": 1,
    "BF16": 32,
    "F32": 0,
}
_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
UNQUANTIZED = ("F16", "BF16", "F32")

# ggml/src/ggml.c, ggml_quantize_chunk: what weights can be turned into; numbers: enum ggml_type, ggml/include/ggml.h.
TENSOR_TYPES = {
    "F32": 0,
    "F16": 1,
    "BF16": 30,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q5_0": 6,
    "Q5_1": 7,
    "Q8_0": 8,
    "Q2_K": 10,
    "Q3_K": 11,
    "Q4_K": 12,
    "Q5_K": 13,
    "Q6_K": 14,
    "IQ1_S": 19,
    "IQ1_M": 29,
    "IQ2_XXS": 16,
    "IQ2_XS": 17,
    "IQ2_S": 22,
    "IQ3_XXS": 18,
    "IQ3_S": 21,
    "IQ4_XS": 23,
    "IQ4_NL": 20,
    "TQ1_0": 34,
    "TQ2_0": 35,
    "Q1_0": 41,
    "Q2_0": 42,
    "MXFP4": 39,
    "NVFP4": 40,
}

_STRUCTURE = ("general.alignment", "general.architecture", *SPLIT_KEYS)
MAX_TEXT = 127  # bytes of a key or string in struct llama_model_kv_override, include/llama.h

_NOT_ECMASCRIPT = re.compile(r"(?<!\\)\(\?[^:=!]")


@dataclass(frozen=True)
class QuantRequest:
    """How a model shall be quantised; names of types in upper or lower case.

    `tensor_types`: (regex searched in a tensor's name, type), the first match wins; ECMAScript's syntax, upper and
    lower case differ. `n_expert_before`: how many
    experts the model had before it was pruned, since llama.cpp's mix of types depends on it and shall not change.
    `allow_requantize`: weights that were quantised already may lose a second time (from Q8_0 they always may);
    `requantize_fp4`: also those in MXFP4 or NVFP4, which models are trained in. `metadata`: strings and counts to be
    written into the file.
    """

    type: str
    tensor_types: tuple[tuple[str, str], ...] = ()
    token_embedding_type: str | None = None
    output_tensor_type: str | None = None
    pure: bool = False
    keep_split: bool = False
    n_threads: int = 0
    allow_requantize: bool = False
    requantize_fp4: bool = False
    n_expert_before: int | None = None
    metadata: Mapping[str, str | int] = field(default_factory=dict)
    max_buf_size: int = 256 << 20

    def check(self) -> None:
        """Raise InputError for what llama.cpp would misread, or do otherwise than it was asked."""
        if self.n_threads < 0:
            raise InputError(f"{self.n_threads} threads were asked for; give a number, or 0 for all cores")
        if self.max_buf_size < 1 << 20:
            raise InputError(f"a buffer of {self.max_buf_size} bytes was asked for; it takes a MiB (1048576) or more")
        if self.tensor_types and file_type_name(self.type) in UNQUANTIZED:
            raise InputError(
                f"tensor types were given with {self.type}; llama.cpp heeds them for quantised file types only, "
                "choose one of those"
            )
        for pattern, _ in self.tensor_types:
            _check_pattern(pattern)
        for key, value in self.metadata.items():
            _check_entry(key, value)


def file_type_name(name: str) -> str:
    """The one name of a file type: `q4_k` is `Q4_K_M`. Raises InputError when there is none such."""
    known = _choose(name, "quantisation", [*FILE_TYPES, *_ALIASES])
    return _ALIASES.get(known, known)


def tensor_type(name: str) -> int:
    """The ggml type of a name; raises InputError when weights cannot be turned into it."""
    return TENSOR_TYPES[_choose(name, "tensor type", TENSOR_TYPES)]


def parse_tensor_type(text: str) -> tuple[str, str]:
    """`ffn_down=q6_k` as (regex, type name); raises InputError."""
    pattern, _, name = text.rpartition("=")
    _check_pattern(pattern)
    return pattern, _choose(name, "tensor type", TENSOR_TYPES)


def imatrix_metadata(file: str, n_entries: int, n_chunks: int = 0, dataset: str = "") -> dict[str, str | int]:
    """The entries `quantize.imatrix.*` of an importance matrix, as tools/quantize/quantize.cpp (main) writes them.

    But for the folders of the two names, which are somebody's home.
    """
    entries: dict[str, str | int] = {"quantize.imatrix.file": _cut(published(file))}
    if dataset:
        entries["quantize.imatrix.dataset"] = _cut(published(dataset))
    entries["quantize.imatrix.entries_count"] = n_entries
    if n_chunks > 0:
        entries["quantize.imatrix.chunks_count"] = n_chunks
    return entries


def _cut(text: str) -> str:
    return text.encode(errors="replace")[:MAX_TEXT].decode(errors="ignore")


def _choose(name: str, what: str, known: Iterable[str]) -> str:
    if name.upper() in known:
        return name.upper()
    close = get_close_matches(name.upper(), known, 1)
    guess = f"did you mean {close[0]}? Known: " if close else "choose one of "
    raise InputError(f"{what} {excerpt(name)} is not known; {guess}{', '.join(known)}")


def _check_pattern(pattern: str) -> None:
    if not pattern:
        raise InputError("a tensor type has no pattern; write it as REGEX=TYPE, such as ffn_down_exps=q6_k")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)  # `[[:alpha:]]`, which llama.cpp and Python read differently
            re.compile(pattern)
    except (re.error, FutureWarning, RecursionError, OverflowError) as error:
        raise InputError(
            f"tensor type pattern {excerpt(pattern)} is no regular expression: {error}; correct it"
        ) from error
    if unknown := _NOT_ECMASCRIPT.search(pattern):
        raise InputError(
            f"tensor type pattern {pattern!r} holds {unknown[0]!r}; llama.cpp's regular expressions are ECMAScript's "
            "of 2009, which have no such group"
        )
    if _repeats_what_varies(pattern):
        raise InputError(
            f"tensor type pattern {pattern!r} repeats a group that can match in several ways, which can take longer "
            "than anyone waits; repeat single characters, such as [a-z]+, or write the group out"
        )


def _repeats_what_varies(pattern: str) -> bool:
    """Whether a group with a repetition or a choice inside is itself repeated, as in `(a+)+` or `(a|a)*`.

    Such patterns try exponentially many ways of matching a name that does not fit, in Python as in C++.
    """
    bare = re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", "x", pattern)  # what is escaped or in a class stands for itself
    varies = [False]
    for at, mark in enumerate(bare):
        if mark == "(":
            varies.append(False)
        elif mark == ")" and len(varies) > 1:
            inside = varies.pop()
            if inside and re.match(r"[*+]|\{\d*,?\d*\}", bare[at + 1 : at + 16]):
                return True
            varies[-1] |= inside
        elif mark in "*+{|" or (mark == "?" and bare[at - 1 : at] != "("):
            varies[-1] = True
    return False


def _check_entry(key: str, value: str | int) -> None:
    if key in _STRUCTURE:
        raise InputError(f"metadata {key} was given; it must tell how the file is laid out, leave it out")
    for what, text in (("key", key), ("value", value)):
        if isinstance(text, str) and (not key or "\0" in text or _cut(text) != text):
            raise InputError(
                f"metadata {what} {text[:40]!r}... cannot be written; it must be UTF-8 without NUL, {MAX_TEXT} bytes "
                "at most, shorten it"
            )
    if isinstance(value, bool) or (isinstance(value, int) and not 0 <= value < 2**32):
        raise InputError(f"metadata {key} is {value}; llama.cpp writes whole numbers from 0 to {2**32 - 1} here")
