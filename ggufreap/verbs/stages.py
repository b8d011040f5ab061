"""One verb per stage, each a short composition; the only place that chooses llama.cpp as the engine."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ggufreap import __version__, saliency
from ggufreap import corpus as corpora
from ggufreap import imatrix as matrices
from ggufreap.architecture.layout import MoeLayout, bind
from ggufreap.calibration import observe
from ggufreap.container import GgufFile, check_target, open_gguf
from ggufreap.corpus import Corpus
from ggufreap.demonstration.text import calibration_text
from ggufreap.engine import subprocess_probe
from ggufreap.engine.importance import OUTPUT
from ggufreap.engine.protocol import Keep, Tokens
from ggufreap.engine.session import EngineSettings, LlamaSession
from ggufreap.errors import InputError, MismatchError
from ggufreap.files import check_output
from ggufreap.inspection import Inspection, inspect_file
from ggufreap.planning import (
    MTP_MODES,
    NOTES,
    ModelIdentity,
    PruningPlan,
    check_plan,
    count_to_keep,
    load_plan,
    make_plan,
)
from ggufreap.progress import Progress, silent
from ggufreap.rewriting import RewriteScript, execute, lower
from ggufreap.statistics import ExpertStatistics, Floats, Provenance, load
from ggufreap.verification import N_TOKENS, Verification, verify_file

_LOG = logging.getLogger(__name__)
DEFAULT_METHOD = "reap"
TRYING_OUT_BYTES = 200_000
EMBEDDED = "the embedded text (only for trying out)"


def open_model(model: str | Path) -> tuple[GgufFile, MoeLayout, ModelIdentity]:
    """A model, its layout, and who it is."""
    file = open_gguf(model)
    layout = bind(file)
    name = str(file.get("general.name") or file.path.stem)
    return file, layout, ModelIdentity(file.fingerprint, layout.architecture.name, name)


def inspect(model: str | Path) -> Inspection:
    """Describe a model from its header alone."""
    file, layout, _ = open_model(model)
    return inspect_file(file, layout)


def calibrate(
    model: str | Path,
    out: str | Path,
    *,
    file: str | None = None,
    tokens: str | Path | None = None,
    chunks: int | None = None,
    imatrix_out: str | Path | None = None,
    process_output: bool = False,
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> ExpertStatistics:
    """Run text (`file`, `-` for standard input) or token ids (`tokens`, .npy) and save what the experts did at `out`.

    With `imatrix_out` the same pass gives the importance matrix too, as llama-imatrix would write it; with
    `process_output` also of the output head, where it is a weight of its own. At most `chunks` chunks are run. An
    interrupted run goes on where it was when it is called again with the same arguments.
    """
    source, layout, identity = open_model(model)
    for path in (out, imatrix_out):
        if path is not None:
            check_output(Path(path), *source.paths, file, tokens)
    settings = settings or EngineSettings()
    tokenise = _reader(file, tokens, settings.n_ctx)
    with LlamaSession(source.path, layout.nodes, settings) as engine:
        corpus = tokenise(engine).head(chunks)
        provenance = _provenance(identity, corpus, settings)
        _LOG.info(
            "calibrating with %s: %s tokens in %s chunks", corpus.source, f"{corpus.n_tokens:,}", len(corpus.chunks)
        )
        return observe(
            engine,
            layout.nodes,
            corpus,
            provenance,
            Path(out),
            imatrix_out=Path(imatrix_out) if imatrix_out is not None else None,
            process_output=process_output and OUTPUT in source.by_name,
            progress=progress,
        )


def _reader(file: str | None, tokens: str | Path | None, n_ctx: int) -> Callable[[LlamaSession], Corpus]:
    """Read what was given at once, before a large model is loaded; the rest follows when there is a vocabulary."""
    if file is not None and tokens is not None:
        raise InputError("both a text and token ids were given; give one of -f and --tokens")
    if tokens is not None:
        ids = corpora.read_tokens(Path(tokens))
        return lambda engine: corpora.from_tokens(ids, n_ctx, engine.n_vocab, str(tokens))
    if file is not None:
        text = corpora.read_text(file)
        return lambda engine: corpora.from_text(engine, text, n_ctx, file)
    _LOG.warning(
        "no calibration text given: using the Python documentation and source on this machine. "
        "That is ONLY FOR TRYING OUT: what the text does not cover, the pruned model forgets. Give your own with -f."
    )
    embedded = calibration_text(TRYING_OUT_BYTES)
    return lambda engine: corpora.from_text(engine, embedded, n_ctx, EMBEDDED)


def _provenance(identity: ModelIdentity, corpus: Corpus, settings: EngineSettings) -> Provenance:
    n_ctx, n_ubatch = corpus.chunks.shape[1], min(settings.n_ubatch, settings.n_ctx)
    return Provenance(identity.fingerprint, corpus.sha256, n_ctx, n_ubatch, corpus.source, __version__)


def plan(
    model: str | Path,
    *,
    stats: str | Path | None = None,
    from_imatrix: str | Path | None = None,
    ratio: str | float | None = None,
    keep: int | None = None,
    method: str = DEFAULT_METHOD,
    mtp: str = "mirror",
    seed: int = 0,
    progress: Progress = silent,
) -> PruningPlan:
    """Choose the experts that stay, `ratio` removed or `keep` kept in every block.

    `stats` is what `calibrate` saved; the methods `random` and `weight_norm` need none. `from_imatrix` takes a GGUF
    importance matrix of the model instead, which is a weaker guide than any calibration; it is a method of its own.
    """
    method = chosen_method(method, mtp, from_imatrix)
    source, layout, identity = open_model(model)
    count_to_keep(layout, ratio, keep)
    if from_imatrix is not None:
        if stats is not None:
            raise InputError("both statistics and an importance matrix were given to choose by; give one of them")
        matrix = matrices.load(from_imatrix)
        matrices.check(matrix, source, layout)
        scores, corpus = saliency.imatrix_scores(matrix, source, layout, progress), ""
    else:
        scores, corpus = _scores(source, layout, identity, stats, method, seed, progress)
    return make_plan(layout, identity, scores, method=method, ratio=ratio, keep=keep, mtp=mtp, corpus=corpus)


def chosen_method(method: str, mtp: str, from_imatrix: str | Path | None) -> str:
    """The method, `imatrix` where there is one to choose from; raises InputError unless all of it is known and fits."""
    if from_imatrix is not None:
        if method not in (DEFAULT_METHOD, saliency.IMATRIX):
            raise InputError(f"method {method} does not work from an importance matrix; leave it or the matrix out")
        method = saliency.IMATRIX
        _LOG.warning("the experts that stay are %s. Calibrate where you can.", NOTES[method])
    elif method == saliency.IMATRIX:
        raise InputError("method imatrix needs an importance matrix; name one with --from-imatrix")
    for what, name, known in (("method", method, (*saliency.METHOD_NAMES, saliency.IMATRIX)), ("mtp", mtp, MTP_MODES)):
        if name not in known:
            raise InputError(f"{what} {name!r} is not known; choose one of {', '.join(known)}")
    return method


def _scores(
    source: GgufFile,
    layout: MoeLayout,
    identity: ModelIdentity,
    stats: str | Path | None,
    method: str,
    seed: int,
    progress: Progress,
) -> tuple[Floats, str]:
    if method == saliency.RANDOM:
        return saliency.random_scores(len(layout.trunk), layout.n_expert, seed), ""
    if method == saliency.WEIGHT_NORM:
        return saliency.weight_norms(source, layout, progress), ""
    if stats is None:
        raise InputError(f"method {method} needs statistics; make them with calibrate, or use {saliency.WEIGHT_NORM}")
    statistics, provenance = load(Path(stats))
    if provenance.model != identity.fingerprint:
        raise MismatchError(
            f"{stats} was calibrated on model {provenance.model[:12]}, this one is {identity.fingerprint[:12]}; "
            "calibrate this file"
        )
    statistics.check()
    return saliency.METHODS[method].score(statistics), provenance.corpus


def apply(
    model: str | Path,
    plan: PruningPlan | str | Path,
    out: str | Path,
    *,
    dry_run: bool = False,
    split_max_size: int | None = None,
    keep_split: bool = False,
    progress: Progress = silent,
) -> RewriteScript:
    """Write the file that `plan` asks for; with `dry_run` only tell exactly what it would be."""
    source, layout, identity = open_model(model)
    chosen = plan if isinstance(plan, PruningPlan) else load_plan(Path(plan))
    check_plan(chosen, identity, layout)
    script = lower(source, layout, chosen, Path(out), split_max_size=split_max_size, keep_split=keep_split)
    if not dry_run:
        check_target(script.files, *source.paths, None if isinstance(plan, PruningPlan) else plan)
        execute(script, progress)
    return script


def verify(
    model: str | Path,
    out: str | Path,
    plan: PruningPlan | str | Path,
    *,
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> Verification:
    """Prove that `out` is `model` without the experts that `plan` drops."""
    source, layout, identity = open_model(model)
    chosen = plan if isinstance(plan, PruningPlan) else load_plan(Path(plan))
    check_plan(chosen, identity, layout)
    settings = replace(settings or EngineSettings(), n_ctx=N_TOKENS, n_ubatch=N_TOKENS, exact=True)

    def logits(path: Path, ids: Tokens, keeps: Sequence[Keep | None]) -> list[npt.NDArray[np.float32]]:
        return subprocess_probe.logits(path, ids, settings, keeps)

    return verify_file(source, layout, chosen, Path(out), logits, progress)
