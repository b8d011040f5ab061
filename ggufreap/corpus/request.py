"""What a user asks to calibrate on, and its opening: all that can go wrong without a model goes wrong here."""

import hashlib
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ggufreap.container import GgufFile
from ggufreap.corpus.chat import ChatTemplate, plain
from ggufreap.corpus.chunks import read_tokens
from ggufreap.corpus.default import DEFAULT
from ggufreap.corpus.record import SourceRecord
from ggufreap.corpus.samples import Text
from ggufreap.corpus.sources import Source, open_source
from ggufreap.corpus.spec import parse_list
from ggufreap.corpus.stream import COUNTS, Stream
from ggufreap.engine.protocol import Engine
from ggufreap.errors import InputError

_LOG = logging.getLogger(__name__)
TEXT_CTX, ROWS_CTX = 512, 2048  # llama-imatrix's chunk; what REAP's own code packs samples to


@dataclass(frozen=True)
class Request:
    """The flags of the same names.

    `file`: local files, folders and globs, `-` is standard input; `dataset`: lists of NAME@REV[subset](split):N;
    `domain`: NAME=SPEC; `tokens`: an .npy file of ids, alone. `count`: which tokens count, `all` or what the
    `assistant` says; `seed` draws samples. With `offline_default` nothing else is needed: the text of this Python.
    """

    file: Sequence[str] = ()
    dataset: Sequence[str] = ()
    domain: Sequence[str] = ()
    tokens: str | Path | None = None
    chunks: int | None = None
    count: str = "all"
    text_field: str | None = None
    chat_template: bool = True
    parse_special: bool = False
    packing: bool = True
    seed: int = 0
    offline_default: bool = False
