"""One pass of the original for everything that is compared with it.

Its logits of a chunk are computed once: masked candidates are compared right there, in the same loaded model, and files
after it, each loaded alone, against what was spilled to disk. So never are two models in memory; and of logits, only
one chunk's of two. Where the disk has no room for that, each file is loaded beside the original, which then reads the
text once for every file.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ggufreap.activity import doing
from ggufreap.container import GgufFile
from ggufreap.corpus import Corpus
from ggufreap.corpus.held_out import tokenised
from ggufreap.engine.protocol import Keep, Tokens
from ggufreap.engine.session import LlamaSession
from ggufreap.errors import MismatchError
from ggufreap.evaluation import Comparison, compare_passes, compare_with, ignore, of_engine, threads, together
from ggufreap.evaluation.scores import Map, first_scored
from ggufreap.judging.exam import Exam, open_engine
from ggufreap.judging.spill import Spill
from ggufreap.progress import Progress, silent
from ggufreap.showing import place

SHARE_OF_DISK = 0.5  # of what is free
_TOKENIZER = "tokenizer."
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compared:
    """`masked` and `files` as they were given, and how many chunks of every domain were run."""

    masked: tuple[Comparison, ...]
    files: tuple[Comparison, ...]
    n_chunks: Mapping[str, int]


def compare_files(
    original: GgufFile,
    files: Sequence[GgufFile],
    exam: Exam,
    masked: Sequence[Keep] = (),
    *,
    folder: Path | None = None,
    progress: Progress = silent,
) -> Compared:
    """Each of `files`, and the original with each of the keep-sets `masked`, against the original on held-out text.

    The original's logits lie in `folder` meanwhile (the system's temp folder), 4 bytes for every scored token and token
    of the vocabulary: for chunks of 512 tokens and a vocabulary of 150,000, 153 MB a chunk. They are read as they were
    computed, so the figures are those of two models side by side. Raises MismatchError where a file reads the text as
    other tokens, before any of it is run.
    """
    check_tokens(original, files, exam)
    with ExitStack() as stack:
        run = stack.enter_context(threads(exam.settings.cpu_threads))
        at_once = 1 + len(masked)
        with open_engine(original, exam.settings, at_once) as engine, doing("judging by", original.path):
            domains = exam.tokenised(engine, original)
            spill = _spill(domains, engine.n_vocab, folder) if files else None
            passes = together(engine, [None, *masked])
            also = stack.enter_context(spill).add if spill else ignore
            ran = compare_passes(passes, len(masked), domains, run, progress, also) if masked or spill else ()
        compared = (_compare(original, file, exam, domains, spill, run, progress) for file in files)
        return Compared(tuple(ran), tuple(compared), {name: len(corpus.chunks) for name, corpus in domains.items()})


def _compare(
    original: GgufFile,
    file: GgufFile,
    exam: Exam,
    domains: Mapping[str, Corpus],
    spill: Spill | None,
    run: Map,
    progress: Progress,
) -> Comparison:
    with ExitStack() as stack:
        engine = stack.enter_context(open_engine(file, exam.settings))
        reference = spill.again() if spill else of_engine(stack.enter_context(open_engine(original, exam.settings)))
        stack.enter_context(doing("judging", file.path))
        (comparison,) = compare_with(reference, [of_engine(engine)], domains, run, progress)
        return comparison


def _spill(domains: Mapping[str, Corpus], n_vocab: int, folder: Path | None) -> Spill | None:
    """Where the original's logits go, None where they do not fit."""
    there = folder if folder and os.access(folder, os.W_OK) else Path(tempfile.gettempdir())
    rows = sum(len(chunk) - 1 - first_scored(len(chunk)) for corpus in domains.values() for chunk in corpus.chunks)
    needed, free = rows * n_vocab * np.dtype(np.float32).itemsize, shutil.disk_usage(there).free
    if needed > SHARE_OF_DISK * free:
        _LOG.warning(
            "the original's logits take %s bytes and %s has %s free: each file is loaded beside the original instead",
            f"{needed:,}",
            place(there),
            f"{free:,}",
        )
        return None
    _LOG.info("the original's logits take %s bytes in %s for a while", f"{needed:,}", place(there))
    return Spill(there)


def check_tokens(original: GgufFile, files: Sequence[GgufFile], exam: Exam) -> None:
    """Raise MismatchError where a file reads the texts as other tokens; who has the same tokenizer is not asked."""
    others = [file for file in files if _tokenizer(file) != _tokenizer(original)]
    if not others:
        return
    with open_engine(original, exam.settings) as engine:
        n_vocab, tokens = engine.n_vocab, _tokens(engine, original, exam)
    for file in others:
        with open_engine(file, exam.settings) as engine:
            for name, own in _tokens(engine, original, exam).items():
                if engine.n_vocab != n_vocab or not np.array_equal(own, tokens[name]):
                    raise MismatchError(
                        f"{file.path} and {original.path} do not read {name} as the same tokens; "
                        "compare models of one vocabulary"
                    )


def _tokens(engine: LlamaSession, original: GgufFile, exam: Exam) -> dict[str, Tokens]:
    """Domain -> chunks `[n_chunks, n_ctx]`, conversations as `original` writes them."""
    corpora, _ = tokenised(engine, original, exam.texts, exam.settings.n_ctx, exam.chunks)
    return {name: corpus.chunks for name, corpus in corpora.items()}


def _tokenizer(file: GgufFile) -> dict[str, bytes]:
    return {key: entry.raw for key, entry in file.metadata.items() if key.startswith(_TOKENIZER)}
