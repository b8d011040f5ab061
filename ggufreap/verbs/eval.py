"""What a model is worth on held-out text, alone or against the one it was made from."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from ggufreap.container import GgufFile
from ggufreap.errors import InputError, MismatchError
from ggufreap.evaluation import (
    METRICS,
    BaseFile,
    Comparison,
    Logits,
    Outcome,
    Perplexity,
    compare_with_base,
    geometric_mean,
    ignore,
    is_base_of,
    open_base,
    parse_gate,
    perplexity,
    threads,
    writing_base,
)
from ggufreap.files import check_free, claim, written_by
from ggufreap.judging import Exam, compare_files, open_engine
from ggufreap.judging.exam import check_ctx, check_gates
from ggufreap.model import AnyModel, file_of
from ggufreap.options.engine import EngineSettings
from ggufreap.options.judgement import HeldOut
from ggufreap.progress import Progress, silent


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
    model: AnyModel,
    held_out: HeldOut | None = None,
    *,
    reference: AnyModel | None = None,
    kl_divergence_base: str | Path | None = None,
    kl_divergence: bool = False,
    force: bool = False,
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Perplexity of any model llama.cpp runs, and with an original its KLD and what else was lost.

    The original is the model `reference`, or with `kl_divergence` the file `kl_divergence_base`, which holds the text
    too; without `kl_divergence` that file is written. As in llama-perplexity, whose figures these are. The two models
    are loaded one after the other, and compared exactly (ggufreap.judging.passes). A base file of other work is
    replaced with `force` alone.
    """
    held_out, source = held_out or HeldOut(), file_of(model)
    if kl_divergence:
        if kl_divergence_base is None or held_out.files or reference is not None:
            raise InputError(
                "--kl-divergence reads text and log-probabilities from --kl-divergence-base FILE; "
                "leave out -f and --reference"
            )
        return _from_base(source, Path(kl_divergence_base), held_out, settings or EngineSettings(), progress)
    exam = Exam.of(held_out, settings, METRICS if reference is not None else ("ppl",))
    if reference is None:
        return _alone(source, exam, kl_divergence_base, progress)
    if kl_divergence_base is not None:
        raise InputError("--kl-divergence-base is written for one model alone; leave out --reference")
    original = file_of(reference)
    compared = compare_files(original, [source], exam, progress=progress)
    (comparison,) = compared.files
    return Evaluation(
        str(source.path),
        str(original.path),
        exam.settings.n_ctx,
        sum(compared.n_chunks.values()),
        _perplexities(comparison),
        comparison,
        exam.outcomes(comparison),
    )


def _alone(source: GgufFile, exam: Exam, base: str | Path | None, progress: Progress) -> Evaluation:
    """Perplexity, and the base file where one is wanted."""
    if base is not None:
        if len(exam.texts) > 1:
            raise InputError(
                f"--kl-divergence-base holds one text, {len(exam.texts)} were given; write one file for each"
            )
        claim(Path(base), inputs=(*source.paths, *exam.paths))
    with ExitStack() as stack:
        engine = stack.enter_context(open_engine(source, exam.settings))
        domains = exam.tokenised(engine, source)
        run = stack.enter_context(threads(exam.settings.cpu_threads))
        perplexities = {}
        for name, corpus in domains.items():
            also: Callable[[Logits], object] = ignore
            if base is not None:
                check_free(Path(base), is_base_of(Path(base), corpus.chunks, engine.n_vocab))
                also = stack.enter_context(writing_base(Path(base), corpus.chunks, engine.n_vocab)).add
            perplexities[name] = perplexity(engine, corpus, progress, f"perplexity, {name}", run, also)
    figures = {name: each.figures for name, each in perplexities.items()}
    outcomes = tuple(gate.check(figures, {"ppl": geometric_mean(perplexities)}) for gate in exam.gates)
    n_chunks = sum(len(corpus.chunks) for corpus in domains.values())
    return Evaluation(str(source.path), "", exam.settings.n_ctx, n_chunks, perplexities, None, outcomes)


def _from_base(
    source: GgufFile, path: Path, held_out: HeldOut, settings: EngineSettings, progress: Progress
) -> Evaluation:
    """Against log-probabilities in a file."""
    gates = [parse_gate(text) for text in held_out.fail_if]
    check_ctx(settings)
    base, name = open_base(path), path.stem
    n_ctx = base.chunks.shape[1]
    if settings.told("n_ctx") and settings.n_ctx != n_ctx:
        raise InputError(f"-c {settings.n_ctx}: {path} holds chunks of {n_ctx} tokens; leave -c out")
    for gate in gates:
        gate.require([name], METRICS)
    comparison = _against_base(source, base, name, held_out.chunks, settings, progress)
    n_chunks = min(len(base.chunks), held_out.chunks or len(base.chunks))
    evaluation = Evaluation(
        str(source.path), str(path), base.chunks.shape[1], n_chunks, _perplexities(comparison), comparison
    )
    return replace(evaluation, gates=check_gates(gates, comparison))


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


def _perplexities(comparison: Comparison) -> dict[str, Perplexity]:
    return {name: meters.perplexity for name, meters in comparison.domains.items()}
