"""What a user asks to calibrate on, and its opening: all that can go wrong without a model goes wrong here."""

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ggufreap.container import GgufFile
from ggufreap.corpus.chat import ChatTemplate, Rendered, Renderer, plain
from ggufreap.corpus.chunks import Chunks, Reading, from_tokens, read_tokens
from ggufreap.corpus.hub import DataSet
from ggufreap.corpus.record import SourceRecord
from ggufreap.corpus.samples import Conversation, Sample, Text
from ggufreap.corpus.sources import Skipped, Source, open_source
from ggufreap.corpus.spec import SourceSpec, domain_names, parse_sources
from ggufreap.corpus.stream import NamedSource, Stream
from ggufreap.engine.protocol import Engine
from ggufreap.errors import InputError

TEXT_CTX, ROWS_CTX = 512, 2048  # llama-imatrix's chunk; what REAP's own code packs samples to
STANDARD_INPUT = "-"


@dataclass(frozen=True)
class Request:
    """The flags of the same names.

    `file`: local files, folders and globs, `-` is standard input; `dataset`: lists of NAME@REV[subset](split):N;
    `domain`: NAME=SPEC; `tokens`: an .npy file of ids, alone; `text`: name -> text that is there already. `seed` draws
    samples; `chat_template`: render conversations with the model's own.
    """

    file: Sequence[str] = ()
    dataset: Sequence[str] = ()
    domain: Sequence[str] = ()
    tokens: str | Path | None = None
    text: Mapping[str, str] = field(default_factory=dict)
    text_field: str | None = None
    chat_template: bool = True
    seed: int = 0
    reading: Reading = field(default_factory=Reading)

    @property
    def paths(self) -> tuple[str, ...]:
        """The files that it names as they are: outputs must be none of them."""
        return (*(name for name in self.file if name != STANDARD_INPUT), *([str(self.tokens)] if self.tokens else []))


@dataclass(frozen=True)
class Opened:
    """Data that was found, but not read yet; `identity` says which data and which reading of it this is."""

    request: Request
    sources: tuple[NamedSource, ...]
    ids: npt.NDArray[np.integer] | None
    identity: str

    @property
    def records(self) -> tuple[SourceRecord, ...]:
        """What is known of the sources before they are read."""
        return tuple(named.record for named in self.sources)

    @property
    def names(self) -> str:
        """What the data are called in one line."""
        return ", ".join(record.name for record in self.records)

    def chunk_length(self, asked: int) -> int:
        """Tokens per chunk: as `asked`; for 0, 512 of text and 2048 of rows. Ids may be cut already."""
        if self.ids is not None and self.ids.ndim == 2 and self.ids.shape[1] <= (asked or self.ids.shape[1]):
            return int(self.ids.shape[1])
        rows = any(isinstance(named.source, Source) and _has_rows(named.source) for named in self.sources)
        return asked or (ROWS_CTX if rows else TEXT_CTX)

    @contextmanager
    def chunks(self, engine: Engine, model: GgufFile, n_ctx: int) -> Iterator[Chunks]:
        """The chunks for a model; leaving the context ends the process that renders conversations."""
        reading = self.request.reading
        if self.ids is not None:
            corpus = from_tokens(self.ids, n_ctx, engine.n_vocab, self.sources[0].record.name)
            yield corpus.head(reading.n_chunks)
            return
        with ExitStack() as stack:
            template = ChatTemplate.of(model) if self.request.chat_template else None
            renderers: list[Renderer] = []

            def render(conversation: Conversation) -> Rendered:
                if template is None:
                    return Rendered(plain(conversation), ())
                if not renderers:  # only once there is something to render
                    renderers.append(stack.enter_context(template.renderer(spans=reading.count == "assistant")))
                return renderers[0](conversation)

            yield Stream(engine, self.sources, n_ctx, reading, render)


@dataclass
class _Given:
    """A text that is there already."""

    text: str
    position: int = 0
    skipped: Mapping[str, Skipped] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return len(self.text.encode())

    def __iter__(self) -> Iterator[Sample]:
        self.position = self.nbytes
        yield Text(self.text)


def open_request(request: Request) -> Opened:
    """Find all data that was asked for; raises InputError for what cannot be found, read or understood."""
    if request.tokens is not None:
        return _open_tokens(request, Path(request.tokens))
    texts = dict(request.text)
    if STANDARD_INPUT in request.file:
        texts["standard input"] = _standard_input()
    specs = [spec for name in request.file if name != STANDARD_INPUT for spec in _file(name)]
    specs += [spec for text in request.dataset for spec in parse_sources(text)]
    specs += [spec for text in request.domain for spec in _domain(text)]
    found = [open_source(spec, seed=request.seed, text_field=request.text_field) for spec in specs]
    named = [
        NamedSource(domain, source, _record(source, domain))
        for domain, source in zip(domain_names(specs), found, strict=True)
    ]
    named += [NamedSource(name, _Given(text), SourceRecord(name, name)) for name, text in texts.items()]
    if not named:
        raise InputError("no data was given; give text with -f FILE, or a data set with --dataset NAME:N")
    identities = [source.identity for source in found] + [_sha256(text.encode()) for text in texts.values()]
    return Opened(request, tuple(named), None, _identity(request, named, identities))


def _open_tokens(request: Request, path: Path) -> Opened:
    if request.file or request.dataset or request.domain or request.text:
        raise InputError("both text and token ids were given; give one of them")
    if request.reading.count != "all":
        raise InputError("token ids tell no speaker; leave out --count assistant, or give conversations")
    ids = read_tokens(path)
    digest = _sha256(f"{ids.dtype}{ids.shape}".encode() + np.ascontiguousarray(ids).tobytes())
    named = NamedSource("tokens", _Given(""), SourceRecord(str(path), "tokens"))
    return Opened(request, (named,), ids, _identity(request, [named], [digest]))


def _identity(request: Request, sources: Sequence[NamedSource], identities: Sequence[str]) -> str:
    """What decides on the chunks, but the model and their length."""
    samples = [named.source.spec.samples if isinstance(named.source, Source) else None for named in sources]
    domains = [named.domain for named in sources]
    settings = [vars(request.reading), request.text_field, request.chat_template, request.seed]
    return _sha256(json.dumps([list(zip(domains, identities, samples, strict=True)), settings]).encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _file(name: str) -> tuple[SourceSpec, ...]:
    """A path as it stands where it exists, whatever it looks like; else what the grammar makes of it."""
    return (SourceSpec(name),) if Path(name).expanduser().exists() else parse_sources(name)


def _domain(text: str) -> tuple[SourceSpec, ...]:
    specs = parse_sources(text)
    if any(spec.domain is None for spec in specs):
        raise InputError(f"--domain {text} names no domain; write NAME=SPEC")
    return specs


def _has_rows(source: Source) -> bool:
    return isinstance(source.data, DataSet) or source.data.has_rows


def _record(source: Source, domain: str) -> SourceRecord:
    known = {key: value for key, value in source.record.items() if value is not None}
    return SourceRecord(**{**known, "domain": domain, "is_hub": not source.spec.local})


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"standard input is not UTF-8 text: byte {error.object[error.start]:#04x} at offset {error.start:,}; "
            "convert it, for example with iconv -t UTF-8"
        ) from error
