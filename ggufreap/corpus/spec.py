"""How calibration data is named: `name@rev[subset](split):N`, files as they are, several with commas.

    theblackcat102/evol-codealpaca-v1:250          250 samples of a data set on the hub
    open-r1/Mixture-of-Thoughts[code](train):250   of one subset and split
    NeelNanda/pile-10k(train[:256])                a slice of a split
    ./chats.jsonl:100, notes/*.txt, corpus/        files, globs and folders
    code=./chats.jsonl                             the same under a domain of its own name

N counts samples: documents or conversations, not tokens. Local is what exists, what has a suffix that is read, what
holds `*` or `?`, and what starts with `./`, `../`, `/` or `~` or ends with `/`; all else is a name on the hub. In the
name of a file a backslash takes one of the characters `,:[]()=\\`, or a space at either end, as it is.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import NoReturn

from ggufreap.errors import InputError
from ggufreap.showing import as_text

SUFFIXES = (".txt", ".md", ".jsonl", ".json", ".parquet", ".csv")
COMPRESSED = (".gz", ".zst")
GRAMMAR = "name@rev[subset](split):N, N being a number of samples"

_KNOWN = re.compile(rf"({'|'.join(map(re.escape, SUFFIXES))})({'|'.join(map(re.escape, COMPRESSED))})?$", re.I)
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
_REVISION = re.compile(r"[^\s,:\[\]()@=\\~^?*]+")
_SUBSET = re.compile(r"[^\[\]()\\<>:/|?*\n]+")  # datasets refuses most of these in the name of a configuration
_BOUND = r"(-?\d{1,15}%?)?"
_PART = rf"(\w[\w.-]*)(?:\[{_BOUND}:{_BOUND}\])?"
_SPLIT = re.compile(rf"{_PART}(?:\+{_PART})*", re.ASCII)
_DOMAIN = re.compile(r"[\w.+-]+")
_COUNT = re.compile(r":([^:\[\]()/]*)$")
_DIGITS = re.compile(r"0*[1-9][0-9]{0,9}", re.ASCII)
_ESCAPED = ",:[]()=\\ "
_CLOSED_BY = {"(": ")", "[": "]"}
_ORDER = f"this is out of order, write {GRAMMAR}"
_WRONG = {
    "@": "a revision is named once and has letters, write name@rev",
    "/": "a name on the hub is owner/name; a file with such a name does not exist",
    "=": "a domain's name has letters, digits and _ . + -",
    ")": "this ) closes nothing, write (split)",
    "]": "this ] closes nothing, write [subset]",
    ":": _ORDER,
}


@dataclass(frozen=True)
class Slice:
    """One part of a split: `start` and `stop` as written, rows or percents, None where open."""

    split: str
    start: str | None
    stop: str | None


@dataclass(frozen=True)
class SourceSpec:
    """One source of samples as it was named; `str()` names it again. Raises InputError for what no text can name."""

    name: str
    revision: str | None = None
    subset: str | None = None
    split: str | None = None
    samples: int | None = None
    domain: str | None = None

    def __post_init__(self) -> None:
        parts = (("revision", _REVISION), ("subset", _SUBSET), ("split", _SPLIT), ("domain", _DOMAIN))
        for field, rule in parts:
            value = getattr(self, field)
            if value is not None and not rule.fullmatch(value):
                raise InputError(f"the {field} {value!r} of {self.name} cannot be named; write {GRAMMAR}")
        if self.local and self.revision is not None:
            raise InputError(f"{self.name} is local, revision {self.revision} is of the hub; leave it out")
        if not self.local and not _HUB_NAME.fullmatch(self.name):
            raise InputError(f"{self.name!r} is no file here and no name on the hub, which is owner/name")
        if self.samples is not None and not _DIGITS.fullmatch(str(self.samples)):
            raise InputError(f"{self.samples} samples of {self.name} cannot be drawn; take 1 to 9,999,999,999")

    @property
    def local(self) -> bool:
        """Whether this is a file, a folder or a glob here, not a name on the hub."""
        return is_local(self.name)

    def slices(self) -> tuple[Slice, ...]:
        """The parts of the split, or none where none is named."""
        parts = (re.fullmatch(_PART, part) for part in (self.split or "").split("+"))
        return tuple(Slice(*part.groups()) for part in parts if part)

    def __str__(self) -> str:
        parts = (
            ("{}=", self.domain),
            ("{}", _escaped(self.name)),
            ("@{}", self.revision),
            ("[{}]", self.subset),
            ("({})", self.split),
            (":{}", self.samples),
        )
        return "".join(form.format(part) for form, part in parts if part is not None)


def is_local(name: str) -> bool:
    """Whether a name is that of a file, a folder or a glob here."""
    starts = ("./", "../", "/", "~")
    marked = name.startswith(starts) or name in (".", "..") or name.endswith("/") or "*" in name or "?" in name
    return marked or _KNOWN.search(name) is not None or os.path.exists(name)


def suffix_of(name: str) -> tuple[str, str]:
    """`.jsonl` and `.gz` of `rows.jsonl.gz`; each is empty where it is not one that is read."""
    match = _KNOWN.search(name)
    return (match[1].lower(), (match[2] or "").lower()) if match else ("", "")


def parse_sources(text: str) -> tuple[SourceSpec, ...]:
    """The sources of a list with commas; raises InputError that points at the character."""
    return tuple(_Item(text, start, stop).parse() for start, stop in _items(text))


def domain_names(specs: Sequence[SourceSpec]) -> tuple[str, ...]:
    """A domain's name for each source: the given one, else subset or last part of the path, made unique."""
    names = [as_text(spec.domain or _default_domain(spec)) for spec in specs]
    taken = Counter(spec.domain for spec in specs if spec.domain)
    for index, spec in enumerate(specs):
        if not spec.domain:
            base, number = names[index], 1
            while taken[names[index]]:
                number += 1
                names[index] = f"{base}-{number}"
            taken[names[index]] += 1
    return tuple(names)


def _default_domain(spec: SourceSpec) -> str:
    parts = [re.sub(r"[*?]+|\[[^]]*\]", "", _KNOWN.sub("", part)).strip(" .-_/~") for part in PurePath(spec.name).parts]
    return spec.subset or next(filter(None, reversed(parts)), "text")


def _escaped(name: str) -> str:
    """The name with a backslash before all that the grammar would take for its own."""
    marked = re.sub(r"([,:\[\]()=\\])", r"\\\1", name)
    return re.sub(r"^ +| +$", lambda spaces: "\\ " * len(spaces[0]), marked)


def _items(text: str) -> Iterator[tuple[int, int]]:
    """Where each item of a list with commas starts and stops; commas in brackets belong to the item."""
    start, depth, escaped = 0, 0, False
    for at, char in enumerate(text):
        if escaped:
            escaped = False
        elif char == "\\" and text[at + 1 : at + 2] in _ESCAPED:
            escaped = True
        elif char == "," and depth == 0:
            yield start, at
            start = at + 1
        else:
            depth = max(0, depth + (char in "([") - (char in ")]"))
    yield start, len(text)


class _Item:
    """One source in `text[start:stop]`: `plain` without escapes, `mask` the same with what was escaped blotted out."""

    def __init__(self, text: str, start: int, stop: int) -> None:
        self.text, self.stop = text, stop
        tokens = list(re.finditer(rf"\\[{re.escape(_ESCAPED)}]|.", text[start:stop], re.DOTALL))
        while tokens and tokens[0][0] == " ":
            del tokens[0]
        while tokens and tokens[-1][0] == " ":
            del tokens[-1]
        self.plain = "".join(token[0][-1] for token in tokens)
        self.mask = "".join(token[0] if len(token[0]) == 1 else "\0" for token in tokens)
        self.where = [start + token.start() for token in tokens] + [start + tokens[-1].end() if tokens else start]

    def fail(self, at: int, what: str) -> NoReturn:
        """Raise InputError that points at character `at` of this item."""
        place = self.where[at]
        rest = self.text[place : self.stop]
        shown = f"{rest[:29]}..." if len(rest) > 32 else rest
        raise InputError(f"data is misnamed at character {place + 1}: {shown!r} <- {what}")

    def parse(self) -> SourceSpec:
        start, stop = 0, len(self.plain)
        domain = samples = split = subset = None
        if stop == 0:
            self.fail(0, f"a name is missing, write {GRAMMAR}")
        if os.path.exists(self.plain):
            return SourceSpec(self.plain)
        if match := re.match(rf"({_DOMAIN.pattern})=", self.mask):
            domain, start = match[1], match.end()
            if start == stop:
                self.fail(start, f"a name is missing, write NAME={GRAMMAR}")
        if match := _COUNT.search(self.mask, start):
            samples, stop = self.count(start, match)
        if not os.path.exists(self.plain[start:stop]):
            split, stop = self.bracketed(start, stop, "(", "split", _SPLIT)
            subset, stop = self.bracketed(start, stop, "[", "subset", _SUBSET)
        name, revision = self.name(start, stop)
        return SourceSpec(name, revision, subset, split, samples, domain)

    def count(self, start: int, match: re.Match[str]) -> tuple[int | None, int]:
        """N and where it starts; a colon in the name of a file is no mark."""
        before = self.plain[start : match.start()]
        if _DIGITS.fullmatch(match[1]):
            return int(match[1]), match.start()
        if is_local(before) and not suffix_of(before)[0] and not os.path.exists(before) and not match[1][:1].isdigit():
            return None, len(self.plain)
        self.fail(match.start(), "after : goes a number of samples, 1 to 9,999,999,999")

    def bracketed(self, start: int, stop: int, mark: str, field: str, rule: re.Pattern[str]) -> tuple[str | None, int]:
        """What stands in the brackets that end `plain[start:stop]`, and where they start."""
        close = _CLOSED_BY[mark]
        if self.mask[start:stop][-1:] != close:
            return None, stop
        at = self.mask.rfind(mark, start, stop)
        if at < 0:
            self.fail(stop - 1, _WRONG[close])
        value = self.plain[at + 1 : stop - 1]
        if not rule.fullmatch(value):
            form = "train, train[:256] or train[:10%]" if field == "split" else "the name of a configuration"
            self.fail(at, f"this is no {field}, which is {form}" if value else f"the {field} is empty")
        return value, at

    def name(self, start: int, stop: int) -> tuple[str, str | None]:
        """The name in `plain[start:stop]`, and the revision in it."""
        name = self.plain[start:stop]
        if name and is_local(name):
            return name, None
        match = _HUB_NAME.match(self.mask, start, stop)
        end = match.end() if match else start
        if match and self.mask[end:stop][:1] == "@":
            if is_local(match[0]):
                self.fail(end, "what is local has no revision, leave it out")
            if not _REVISION.fullmatch(self.mask, end + 1, stop):
                self.fail(end, _WRONG["@"])
            return match[0], self.plain[end + 1 : stop]
        if match and end == stop:
            return match[0], None
        wrong = self.mask[end:stop][:1]
        if wrong in _CLOSED_BY:
            closed = _CLOSED_BY[wrong] in self.mask[end:]
            self.fail(end, _ORDER if closed and match else f"the {wrong} is not closed, write {GRAMMAR}")
        self.fail(end, _WRONG.get(wrong, "no file has this name, and on the hub names have letters, digits and _ . -"))
