"""What a model is worth on held-out text, alone or against the one it was made from."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ggufreap import corpus as corpora
from ggufreap.activity import doing
from ggufreap.architecture.layout import bind
from ggufreap.architecture.nodes import RoutingNodes
from ggufreap.container import GgufFile, open_gguf
from ggufreap.corpus import Corpus
from ggufreap.engine.session import LlamaSession
from ggufreap.errors import InfeasiblePlan, InputError, MismatchError, UnsupportedModel
from ggufreap.evaluation import (
    METRICS,
    BaseFile,
    Comparison,
    Gate,
    Logits,
    Outcome,
    Perplexity,
    compare_with,
    compare_with_base,
    geometric_mean,
    ignore,
    is_base_of,
    of_engine,
    open_base,
    parse_gate,
    perplexity,
    threads,
    writing_base,
)
from ggufreap.files import check_free, claim, written_by
from ggufreap.options.engine import EngineSettings
from ggufreap.progress import Progress, silent

LEAST_CTX = 4  # of fewer tokens, none is scored


@dataclass(frozen=True)
class Evaluation:
    """What was measured: perplexity per domain, and the comparison where there was an original."""

    model: str
    reference: str
    n_ctx: int
    n_chunks: int
    perplexity: Mapping[str, Perplexity]
    comparison: Comparison | None
    gates: tuple[Outcome, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether no gate fails."""
        return not any(outcome.failed for outcome in self.gates)


@written_by
def eval(
    model: str | Path,
    *,
    files: Sequence[str] = (),
    reference: str | Path | None = None,
    kl_divergence_base: str | Path | None = None,
    kl_divergence: bool = False,
    chunks: int | None = None,
    fail_if: Sequence[str] = (),
    force: bool = False,
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Perplexity of any model llama.cpp runs, and with an original its KLD and what else was lost.

    `files`: held-out texts, `NAME=FILE` or `FILE`, each a domain, of at most `chunks` chunks. The original is the model
    `reference`, loaded beside it so that the comparison is exact, or with `kl_divergence` the file
    `kl_divergence_base`, which holds the text too; without `kl_divergence` that file is written. As in
    llama-perplexity, whose figures these are; a file of other work gives way to it with `force` alone.
    `fail_if`: gates such as `worst_domain.kld>0.2`.
    """
    gates = [parse_gate(text) for text in fail_if]
    settings = settings or EngineSettings()
    check_ctx(settings)
    source = open_gguf(model)
    if kl_divergence:
        if kl_divergence_base is None or files or reference is not None:
            raise InputError(
                "--kl-divergence reads text and log-probabilities from --kl-divergence-base FILE; "
                "leave out -f and --reference"
            )
        return _against_base(source, open_base(Path(kl_divergence_base)), chunks, gates, settings, progress)
    texts = named_texts(files)
    _require(gates, texts, METRICS if reference is not None else ("ppl",))
    if reference is None:
        claim(inputs=map(path_of, files))
        return _alone(source, texts, kl_divergence_base, chunks, gates, settings, progress)
    if kl_divergence_base is not None:
        raise InputError("--kl-divergence-base is written for one model alone; leave out --reference")
    with ExitStack() as stack:
        engine, original = (stack.enter_context(open_engine(file, settings)) for file in (source, open_gguf(reference)))
        domains = tokenised(original, texts, settings.n_ctx, chunks)
        for name, text in texts.items():
            if engine.n_vocab != original.n_vocab or not np.array_equal(engine.tokenize(text), original.tokenize(text)):
                raise MismatchError(
                    f"{model} and {reference} do not read {name} as the same tokens; compare models of one vocabulary"
                )
        run = stack.enter_context(threads(settings.cpu_threads))
        stack.enter_context(doing(f"comparing {model} with", reference))
        (comparison,) = compare_with(of_engine(original), [of_engine(engine)], domains, run, progress)
    n_chunks = sum(len(corpus.chunks) for corpus in domains.values())
    return Evaluation(
        str(model),
        str(reference),
        settings.n_ctx,
        n_chunks,
        _perplexities(comparison),
        comparison,
        check_gates(gates, comparison),
    )


def _alone(
    source: GgufFile,
    texts: Mapping[str, str],
    base: str | Path | None,
    chunks: int | None,
    gates: Sequence[Gate],
    settings: EngineSettings,
    progress: Progress,
) -> Evaluation:
    """Perplexity, and the base file where one is wanted."""
    if base is not None and len(texts) > 1:
        raise InputError(f"--kl-divergence-base holds one text, {len(texts)} were given; write one file for each")
    if base is not None:
        claim(Path(base), inputs=source.paths)
    with ExitStack() as stack:
        engine = stack.enter_context(open_engine(source, settings))
        domains = tokenised(engine, texts, settings.n_ctx, chunks)
        run = stack.enter_context(threads(settings.cpu_threads))
        found = {}
        for name, corpus in domains.items():
            also: Callable[[Logits], object] = ignore
            if base is not None:
                check_free(Path(base), is_base_of(Path(base), corpus.chunks, engine.n_vocab))
                also = stack.enter_context(writing_base(Path(base), corpus.chunks, engine.n_vocab)).add
            found[name] = perplexity(engine, corpus, progress, f"perplexity, {name}", run, also)
    figures = {name: each.figures for name, each in found.items()}
    outcomes = tuple(gate.check(figures, {"ppl": geometric_mean(found)}) for gate in gates)
    n_chunks = sum(len(corpus.chunks) for corpus in domains.values())
    return Evaluation(str(source.path), "", settings.n_ctx, n_chunks, found, None, outcomes)


def _against_base(
    source: GgufFile,
    base: BaseFile,
    chunks: int | None,
    gates: Sequence[Gate],
    settings: EngineSettings,
    progress: Progress,
) -> Evaluation:
    """The comparison with the model that the base file is of."""
    n_ctx, name = base.chunks.shape[1], base.path.stem
    _require(gates, [name], METRICS)
    with ExitStack() as stack:
        engine = stack.enter_context(open_engine(source, replace(settings, n_ctx=n_ctx)))
        if engine.n_vocab != base.n_vocab:
            raise MismatchError(
                f"{base.path} is of a model with {base.n_vocab} tokens, {source.path} has {engine.n_vocab}; "
                "compare models of one vocabulary"
            )
        run = stack.enter_context(threads(settings.cpu_threads))
        comparison = compare_with_base(base, engine, name, chunks, run, progress)
    n_chunks, outcomes = min(len(base.chunks), chunks or len(base.chunks)), check_gates(gates, comparison)
    perplexities = _perplexities(comparison)
    return Evaluation(str(source.path), str(base.path), n_ctx, n_chunks, perplexities, comparison, outcomes)


def open_engine(source: GgufFile, settings: EngineSettings) -> LlamaSession:
    """Any model that llama.cpp runs, dense ones and those that cannot be pruned included, as long as it has a head."""
    try:
        nodes = bind(source).nodes
    except (UnsupportedModel, InfeasiblePlan):
        architecture = source.get("general.architecture")
        causal = bool(source.get(f"{architecture}.attention.causal", True))
        nodes = RoutingNodes((), 0, weighted_input=False, causal=causal, headless=False)
    if nodes.headless:
        raise InputError(f"{source.path}: this model ends in hidden states: it predicts no text that could be scored")
    return LlamaSession(source.path, nodes, settings)


def check_ctx(settings: EngineSettings) -> None:
    """Raise InputError unless some token of a chunk is scored."""
    if settings.n_ctx < LEAST_CTX:
        raise InputError(f"-c {settings.n_ctx}: only chunks of {LEAST_CTX} tokens or more can be scored; raise -c")


def named_texts(files: Sequence[str]) -> dict[str, str]:
    """Domain -> text, of `NAME=FILE` or `FILE`; the name is else the file's, without extension."""
    texts: dict[str, str] = {}
    for file in files:
        path = path_of(file)
        name = file.removesuffix(path).removesuffix("=")
        name = name or ("stdin" if path == "-" else Path(path).stem)
        if name in texts:
            raise InputError(f"two texts are called {name!r}; name them with -f NAME=FILE")
        texts[name] = corpora.read_text(path)
    if not texts:
        raise InputError("no held-out text was given; give some with -f, text that calibration has not seen")
    return texts


def path_of(file: str) -> str:
    """The file that `NAME=FILE` or `FILE` names."""
    return file.split("=", 1)[1] if "=" in file and not Path(file).exists() else file


def tokenised(engine: LlamaSession, texts: Mapping[str, str], n_ctx: int, chunks: int | None) -> dict[str, Corpus]:
    """Domain -> at most `chunks` chunks."""
    return {name: corpora.from_text(engine, text, n_ctx, name).head(chunks) for name, text in texts.items()}


def check_gates(gates: Sequence[Gate], comparison: Comparison) -> tuple[Outcome, ...]:
    """What the gates find."""
    figures = {name: meters.figures for name, meters in comparison.domains.items()}
    return tuple(gate.check(figures, comparison.mean.figures) for gate in gates)


def _require(gates: Sequence[Gate], domains: Iterable[str], metrics: Iterable[str]) -> None:
    for gate in gates:
        gate.require(domains, metrics)


def _perplexities(comparison: Comparison) -> dict[str, Perplexity]:
    return {name: meters.perplexity for name, meters in comparison.domains.items()}
