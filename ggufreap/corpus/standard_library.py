"""Find calibration and held-out text in the running Python installation.

The embedded model was trained on the standard library: its source (code), the language reference that `pydoc`
carries together with the longer docstrings (prose), and generated sums (arithmetic). Every installation has that
text, so a first try needs no download and the package no data file.

Training, calibration and evaluation must never mix, on any Python version. The side of a document is therefore a
pure function of its name: no list to maintain, no dependence on what else exists.
"""

import hashlib
import importlib
import inspect
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from ggufreap.errors import InputError

HELD_OUT_PERCENT = 10
# Packages differ in size a thousandfold. With this salt about a tenth of the bytes is held out, no package is more
# than a tenth of that, and the parts of `re` stay together under their older names too.
SALT = 1627
# Share of each domain in the mixed texts, by bytes.
SHARES = {"code": 50, "prose": 35, "arithmetic": 15}
# A passage fills a few contexts of the model; with whole files a short text would show one domain only.
PASSAGE_LENGTH = 2000
MAX_FILE_BYTES = 100_000
# Data and tables rather than code, the prose used below, or not the standard library.
SKIPPED = {"encodings", "idle_test", "lib2to3", "pydoc_data", "site-packages", "test", "tests"}
EXERCISES = 40_000

Documents = list[tuple[str, str]]  # (name, text)


def calibration_text(max_bytes: int) -> str:
    """Mix passages of the training side; at most `max_bytes` of UTF-8, less if a domain runs out."""
    return _mixed(_documents(held_out=False), max_bytes)


def held_out_text(max_bytes: int) -> str:
    """Mix passages that the model has never seen; at most `max_bytes` of UTF-8, less if a domain runs out."""
    return _mixed(_documents(held_out=True), max_bytes)


def training_text() -> Iterator[tuple[str, str]]:
    """Yield (domain, document) for the whole training side."""
    for domain, documents in _documents(held_out=False).items():
        for _, text in documents:
            yield domain, text


def _mixed(domains: dict[str, Documents], max_bytes: int) -> str:
    # Stopping when the first domain runs out keeps the shares true at any length.
    passages = {domain: _passages(documents) for domain, documents in domains.items()}
    taken = dict.fromkeys(domains, 0)
    mixed: list[bytes] = []
    while sum(taken.values()) < max_bytes:
        domain = min(taken, key=lambda name: taken[name] / SHARES[name])
        passage = next(passages[domain], "").encode()
        if not passage:
            break
        taken[domain] += len(passage)
        mixed.append(passage)
    return b"".join(mixed)[:max_bytes].decode("utf-8", "ignore")


def _passages(documents: Documents) -> Iterator[str]:
    """Cut documents at line ends into passages, in an order that mixes the documents."""
    passages: list[tuple[int, str]] = []
    for name, text in documents:
        start = 0
        while start < len(text):
            end = text.find("\n", start + PASSAGE_LENGTH) + 1 or len(text)
            passages.append((_hash(f"{name} {start}"), text[start:end].rstrip() + "\n\n"))
            start = end
    return (passage for _, passage in sorted(passages))


def _documents(held_out: bool) -> dict[str, Documents]:
    code = [(name, text) for side, name, text in _sources() if side is held_out]
    prose = _topics(held_out)
    for name, text in code:
        # The reference alone is too little prose to learn from.
        docstrings = (inspect.cleandoc(docstring) for docstring in re.findall(r'"""(.+?)"""', text, re.DOTALL))
        prose.append((f"{name} docstrings", "\n\n".join(docstring for docstring in docstrings if len(docstring) > 200)))
    return {"code": code, "prose": prose, "arithmetic": _sums(held_out)}


def _hash(name: str) -> int:
    # Python's own hash() differs from process to process.
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def _is_held_out(name: str) -> bool:
    return _hash(f"{SALT} {name}") % 100 < HELD_OUT_PERCENT


def _sources() -> list[tuple[bool, str, str]]:
    """Return (held out?, path, text) of the standard library's modules."""
    root = Path(sysconfig.get_path("stdlib"))
    sources = []
    for top in sorted(root.iterdir()) if root.is_dir() else ():
        if top.name in SKIPPED:
            continue
        # Only the top-level name decides, without a leading "_py": Python versions turn modules into packages and
        # move code from datetime.py to _pydatetime.py; it must not change sides.
        side = _is_held_out(top.name.removesuffix(".py").lstrip("_").removeprefix("py"))
        for path in sorted(top.rglob("*.py")) if (top / "__init__.py").exists() else [top]:
            name = path.relative_to(root).as_posix()
            # _sysconfigdata holds the paths of the machine that built Python.
            foreign = path.suffix != ".py" or name.startswith("_sysconfigdata") or SKIPPED & set(name.split("/"))
            if not foreign and path.stat().st_size <= MAX_FILE_BYTES:
                sources.append((side, name, path.read_text("utf-8", "replace")))
    if len(sources) < 100:
        raise InputError(
            f"{root}: {len(sources)} source files of the standard library found, the demo text needs at least 100; "
            "use a Python installed with its .py files, or name text files"
        )
    return sources


def _topics(held_out: bool) -> Documents:
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise InputError(
            f"pydoc_data.topics: {error}, the demo text needs Python's built-in documentation; "
            "install the whole standard library, or name text files"
        ) from error
    sides: dict[bool, list[tuple[str, list[str]]]] = {False: [], True: []}
    for name, text in sorted(topics.items()):
        sides[_is_held_out(name)].append((name, text.split("\n\n")))
    # Topics share sections: paragraphs of held-out topics are dropped from the training side.
    reserved = set() if held_out else {" ".join(part.split()) for _, parts in sides[True] for part in parts}
    return [
        (name, "\n\n".join(part for part in parts if " ".join(part.split()) not in reserved))
        for name, parts in sides[held_out]
    ]


def _sums(held_out: bool) -> Documents:
    """Return pages of arithmetic; the exercise itself decides on its side."""
    lines = []
    for number in range(EXERCISES):
        seed = _hash(f"exercise {number}")
        a, b = seed // 4 % 100, seed // 400 % 100
        forms = f"{a} + {b} = {a + b}", f"{a + b} - {a} = {b}", f"{a} * {b} = {a * b}", f"max({a}, {b}) = {max(a, b)}"
        if _is_held_out(forms[seed % 4]) is held_out:
            lines.append(forms[seed % 4])
    pages = range(0, len(lines), 100)
    return [(f"sums {page}", "\n".join(lines[page : page + 100])) for page in pages]
