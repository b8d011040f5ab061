"""What a model is worth on held-out text, alone or against the one it was made from."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ggufreap.activity import doing
from ggufreap.architecture.layout import bind
from ggufreap.architecture.nodes import RoutingNodes
from ggufreap.container import GgufFile, open_gguf
from ggufreap.corpus import Corpus, held_out
from ggufreap.corpus.held_out import HeldOut
from ggufreap.corpus.request import Opened
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
    of_engine,
    open_base,
    parse_gate,
    perplexity,
    threads,
    writing_base,
)
from ggufreap.files import check_output
from ggufreap.observation import Provenance
from ggufreap.options.engine import EngineSettings
from ggufreap.progress import Progress, silent
from ggufreap.verbs.stages import warn_of_context

_LOG = logging.getLogger(__name__)
MUCH = 0.1  # of its lines: licences and imports stand in any two texts of code
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


def eval(
    model: str | Path,
    *,
    files: Sequence[str | Opened] = (),
    reference: str | Path | None = None,
    kl_divergence_base: str | Path | None = None,
    kl_divergence: bool = False,
    chunks: int | None = None,
    fail_if: Sequence[str] = (),
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Perplexity of any model llama.cpp runs, and with an original its KLD and what else was lost.

    `files`: held-out texts, `NAME=FILE` or `FILE`, or whatever calibration can read, each a domain, of at most `chunks`
    chunks. The original is the model
    `reference`, loaded beside it so that the comparison is exact, or with `kl_divergence` the file
    `kl_divergence_base`, which holds the text too; without `kl_divergence` that file is written. As in
    llama-perplexity, whose figures these are. `fail_if`: gates such as `worst_domain.kld>0.2`.
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
        base = open_base(Path(kl_divergence_base))
        name = Path(kl_divergence_base).stem
        _require(gates, [name], METRICS)
        comparison = _against_base(source, base, name, chunks, settings, progress)
        n_chunks = min(len(base.chunks), chunks or len(base.chunks))
        found = Evaluation(
            str(model), str(kl_divergence_base), base.chunks.shape[1], n_chunks, _perplexities(comparison), comparison
        )
        return replace(found, gates=check_gates(gates, comparison))
    texts = held_out.named(files)
    _require(gates, texts, METRICS if reference is not None else ("ppl",))
    if reference is None:
        return _alone(source, texts, kl_divergence_base, chunks, gates, settings, progress)
    if kl_divergence_base is not None:
        raise InputError("--kl-divergence-base is written for one model alone; leave out --reference")
    with ExitStack() as stack:
        whole = open_gguf(reference)
        engine, original = (stack.enter_context(open_engine(file, settings)) for file in (source, whole))
        domains = tokenised(original, whole, texts, settings.n_ctx, chunks)
        own, _ = held_out.tokenised(engine, whole, texts, settings.n_ctx, chunks)
        _check_same_tokens(f"{model} and {reference}", engine.n_vocab == original.n_vocab, own, domains)
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


def _check_same_tokens(models: str, same_size: bool, own: Mapping[str, Corpus], original: Mapping[str, Corpus]) -> None:
    for name, corpus in original.items():
        if not same_size or not np.array_equal(own[name].chunks, corpus.chunks):
            raise MismatchError(f"{models} do not read {name} as the same tokens; compare models of one vocabulary")


def _alone(
    source: GgufFile,
    texts: HeldOut,
    base: str | Path | None,
    chunks: int | None,
    gates: Sequence[Gate],
    settings: EngineSettings,
    progress: Progress,
) -> Evaluation:
    """Perplexity, and the base file where one is wanted."""
    if base is not None:
        if len(texts) > 1:
            raise InputError(f"--kl-divergence-base holds one text, {len(texts)} were given; write one file for each")
        check_output(Path(base), *source.paths)
    with ExitStack() as stack:
        engine = stack.enter_context(open_engine(source, settings))
        domains = tokenised(engine, source, texts, settings.n_ctx, chunks)
        run = stack.enter_context(threads(settings.cpu_threads))
        found = {}
        for name, corpus in domains.items():
            also: Callable[[Logits], object] = ignore
            if base is not None:
                also = stack.enter_context(writing_base(Path(base), corpus.chunks, engine.n_vocab)).add
            found[name] = perplexity(engine, corpus, progress, f"perplexity, {name}", run, also)
    figures = {name: each.figures for name, each in found.items()}
    outcomes = tuple(gate.check(figures, {"ppl": geometric_mean(found)}) for gate in gates)
    n_chunks = sum(len(corpus.chunks) for corpus in domains.values())
    return Evaluation(str(source.path), "", settings.n_ctx, n_chunks, found, None, outcomes)


def _against_base(
    source: GgufFile, base: BaseFile, name: str, chunks: int | None, settings: EngineSettings, progress: Progress
) -> Comparison:
    n_ctx = base.chunks.shape[1]
    with ExitStack() as stack:
        engine = stack.enter_context(open_engine(source, replace(settings, n_ctx=n_ctx)))
        if engine.n_vocab != base.n_vocab:
            raise MismatchError(
                f"{base.path} is of a model with {base.n_vocab} tokens, {source.path} has {engine.n_vocab}; "
                "compare models of one vocabulary"
            )
        run = stack.enter_context(threads(settings.cpu_threads))
        return compare_with_base(base, engine, name, chunks, run, progress)


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


def tokenised(
    engine: LlamaSession, model: GgufFile, data: HeldOut, n_ctx: int, chunks: int | None
) -> dict[str, Corpus]:
    """Domain -> at most `chunks` chunks; what was left out of the data is said."""
    warn_of_context(model, n_ctx)
    found, notes = held_out.tokenised(engine, model, data, n_ctx, chunks)
    for note in notes:
        _LOG.info("%s", note)
    return found


def warn_of_seen(data: HeldOut, calibration: Opened | None) -> None:
    """Say which held-out data stand in the calibration data, whatever their files are called."""
    for name, share in held_out.seen(data, calibration).items() if calibration else ():
        if share >= MUCH:
            _LOG.warning(
                "%.0f %% of the lines of %s stand in the calibration data too: what it tells of the loss is too good",
                100 * share,
                name,
            )


def warn_of_source(engine: LlamaSession, data: HeldOut, provenance: Provenance) -> None:
    """Say which held-out texts statistics were made of, by the hashes in them."""
    for name, text in data.items():
        if isinstance(text, str) and held_out.is_source(engine, text, provenance.n_ctx, provenance.sources):
            _LOG.warning("%s was calibrated on too: what it tells of the loss is too good", name)


def check_gates(gates: Sequence[Gate], comparison: Comparison) -> tuple[Outcome, ...]:
    """What the gates find."""
    figures = {name: meters.figures for name, meters in comparison.domains.items()}
    return tuple(gate.check(figures, comparison.mean.figures) for gate in gates)


def _require(gates: Sequence[Gate], domains: Iterable[str], metrics: Iterable[str]) -> None:
    for gate in gates:
        gate.require(domains, metrics)


def _perplexities(comparison: Comparison) -> dict[str, Perplexity]:
    return {name: meters.perplexity for name, meters in comparison.domains.items()}
