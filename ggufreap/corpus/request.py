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
from ggufreap.corpus.chunks import Chunks, from_tokens, read_tokens
from ggufreap.corpus.local import check_name
from ggufreap.corpus.record import SourceRecord
from ggufreap.corpus.samples import Conversation, Sample, Text
from ggufreap.corpus.sources import Skipped, Source, open_source
from ggufreap.corpus.spec import SourceSpec, domain_names, parse_sources, suffix_of
from ggufreap.corpus.stream import NamedSource, Samples, Stream
from ggufreap.corpus.turns import IN_TURN
from ggufreap.engine.protocol import Engine
from ggufreap.errors import InputError
from ggufreap.options.data import ALL, ASSISTANT, STANDARD_INPUT, Request
from ggufreap.options.flag import flags_of, refuse_unused

MORE_TOKENS = 4  # that stand for no byte: at the beginning, at the end, a space before the first word
USUAL_PARTS = ("default", "train")  # the subset and split of most data sets
_NO_COMMIT = 40 * "0"
TEXT_CTX, ROWS_CTX = 512, 2048  # llama-imatrix's chunk; what REAP's own code packs samples to


@dataclass(frozen=True)
class Opened:
    """Data that was found, but not read yet; `identity` says which data and which reading of it this is.

    `note`: what its name does not tell.
    """

    request: Request
    sources: tuple[NamedSource, ...]
    ids: npt.NDArray[np.integer] | None
    identity: str
    note: str = ""

    @property
    def records(self) -> tuple[SourceRecord, ...]:
        """What is known of the sources before they are read."""
        return tuple(named.record for named in self.sources)

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files on this machine that are read, those of folders, globs and domains included."""
        paths = [path for named in self.sources if isinstance(named.source, Source) for path in named.source.paths]
        return (*paths, *([Path(self.request.tokens)] if self.request.tokens else []))

    @property
    def names(self) -> str:
        """What the data are called in one line."""
        return ", ".join(record.name for record in self.records) + self.note

    @property
    def draws(self) -> bool:
        """Whether the seed decides on anything: which samples, rows or files are read."""
        limited = self.request.reading.n_chunks is not None
        named = (spec for text in self.request.dataset for spec in parse_sources(text))
        opened = (each.source.spec for each in self.sources if isinstance(each.source, Source))
        counted = any(spec.samples is not None for spec in (*named, *opened))
        return counted or (limited and any(len(each.source.files()) > 1 for each in self.sources))

    def chunk_length(self, asked: int) -> int:
        """Tokens per chunk: as `asked`; for 0, 512 of text and 2048 of rows. Ids may be cut already."""
        if self.ids is not None and self.ids.ndim == 2 and self.ids.shape[1] <= (asked or self.ids.shape[1]):
            return int(self.ids.shape[1])
        return asked or (ROWS_CTX if any(named.source.has_rows for named in self.sources) else TEXT_CTX)

    def check_length(self, n_ctx: int) -> None:
        """Raise InputError where plain text has too few bytes for a chunk, which the model would tell late."""
        for domain in dict.fromkeys(each.domain for each in self.sources):
            sources = [each.source for each in self.sources if each.domain == domain]
            if self.ids is None and all(map(_is_plain, sources)):
                check_nbytes(domain, sum(each.nbytes or 0 for each in sources), n_ctx)

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
                    renderers.append(stack.enter_context(template.renderer(spans=reading.count == ASSISTANT)))
                return renderers[0](conversation)

            yield Stream(engine, self.sources, n_ctx, reading, render)


def check_nbytes(name: str, nbytes: int, n_ctx: int) -> None:
    """Raise InputError where a text of `nbytes` cannot fill a chunk: a token has a byte or more, but for the first."""
    if nbytes + MORE_TOKENS < n_ctx:
        raise InputError(f"{name} has {nbytes:,} bytes, too few for a chunk of -c {n_ctx}; give more or a smaller -c")


def _is_plain(source: Samples) -> bool:
    """Whether all of it is text that lies there as it is read."""
    if isinstance(source, Source):
        return not source.has_rows and not any(suffix_of(path.name)[1] for path in source.paths)
    return isinstance(source, _Given)


@dataclass
class _Given:
    """A text that is there already."""

    text: str
    position: int = 0
    skipped: Mapping[str, Skipped] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return len(self.text.encode())

    @property
    def has_rows(self) -> bool:
        return False

    @property
    def n_missing(self) -> int:
        return 0

    def files(self) -> Sequence[Samples]:
        return (self,)

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
    sources = [open_source(spec, seed=request.seed, text_field=request.text_field) for spec in specs]
    named = [
        NamedSource(domain, source, _record(source, domain))
        for domain, source in zip(domain_names(specs), sources, strict=True)
    ]
    named += [NamedSource(name, _Given(text), SourceRecord(name, name)) for name, text in texts.items()]
    if not named:
        raise InputError("no data was given; give text with -f FILE, or a data set with --dataset NAME:N")
    if not any(each.source.has_rows for each in named):
        rows = dict.fromkeys(("text_field", "chat_template"), "rows, and no file of rows was given")
        refuse_unused(request, rows)
    n_domains, n_chunks = len({each.domain for each in named}), request.reading.n_chunks
    if n_chunks is not None and n_chunks < n_domains:
        raise InputError(
            f"--chunks {n_chunks} for {n_domains} domains: some would not be read at all; give {n_domains} or more"
        )
    identities = [source.identity for source in sources] + [_sha256(text.encode()) for text in texts.values()]
    return Opened(request, tuple(named), None, _identity(request, named, identities))


def unopened(request: Request) -> Opened:
    """The data sets of a request by their names alone, for a dry run where the hub is out of reach.

    Their records are as long as those of data sets with the USUAL_PARTS and a commit; nothing can be read.
    """
    specs = [spec for text in request.dataset for spec in parse_sources(text)]
    subset, split = USUAL_PARTS
    named = [
        NamedSource(
            domain,
            _Given(""),
            SourceRecord(
                spec.name,
                domain,
                not spec.local,
                spec.revision or _NO_COMMIT,
                spec.subset or subset,
                spec.split or split,
            ),
        )
        for domain, spec in zip(domain_names(specs), specs, strict=True)
    ]
    return Opened(request, tuple(named), None, _identity(request, named, list(map(str, specs))))


def _open_tokens(request: Request, path: Path) -> Opened:
    if request.file or request.dataset or request.domain or request.text:
        raise InputError("both text and token ids were given; give one of them")
    if request.reading.count != ALL:
        raise InputError("token ids tell no speaker; leave out --count assistant, or give conversations")
    refuse_unused(request, dict.fromkeys(("text_field", "chat_template"), "text, and token ids were given"))
    refuse_unused(request.reading, dict.fromkeys(("packing", "parse_special"), "text, and token ids were given"))
    ids = read_tokens(path)
    digest = _sha256(f"{ids.dtype}{ids.shape}".encode() + np.ascontiguousarray(ids).tobytes())
    named = NamedSource("tokens", _Given(""), SourceRecord(str(path), "tokens"))
    return Opened(request, (named,), ids, _identity(request, [named], [digest]))


def _identity(request: Request, sources: Sequence[NamedSource], identities: Sequence[str]) -> str:
    """What decides on the chunks, but the model and their length."""
    samples = [named.source.spec.samples if isinstance(named.source, Source) else None for named in sources]
    domains = [named.domain for named in sources]
    reading = {name: getattr(request.reading, name) for name in flags_of(request.reading)}
    settings = [reading, request.text_field, request.chat_template, request.seed]
    if request.reading.n_chunks is not None and any(len(named.source.files()) > 1 for named in sources):
        settings.append(IN_TURN)
    return _sha256(json.dumps([list(zip(domains, identities, samples, strict=True)), settings]).encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _file(name: str) -> tuple[SourceSpec, ...]:
    """A path as it stands where it exists, whatever it looks like; else what the grammar makes of it."""
    check_name(name)
    return (SourceSpec(name),) if Path(name).expanduser().exists() else parse_sources(name)


def _domain(text: str) -> tuple[SourceSpec, ...]:
    specs = parse_sources(text)
    if any(spec.domain is None for spec in specs):
        raise InputError(f"--domain {text} names no domain; write NAME=SPEC")
    return specs


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
