"""What a user can ask for: each verb a short composition of stages, with the flags of the command line as parameters.

The only place that chooses llama.cpp as the engine.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ggufreap import __version__, naming, saliency
from ggufreap import corpus as corpora
from ggufreap.architecture.layout import MoeLayout, bind
from ggufreap.calibration import observe
from ggufreap.container import GgufFile, check_target, open_gguf
from ggufreap.corpus import Corpus
from ggufreap.demonstration import MODEL as DEMO_MODEL
from ggufreap.demonstration import Demonstration
from ggufreap.demonstration.text import calibration_text, held_out_text
from ggufreap.engine import subprocess_probe
from ggufreap.engine.protocol import Keep, Tokens
from ggufreap.engine.session import EngineSettings, LlamaSession
from ggufreap.errors import InputError, MismatchError
from ggufreap.evaluation import continuation, perplexity
from ggufreap.files import check_output, make_folder, replacing
from ggufreap.inspection import Inspection, inspect_file
from ggufreap.planning import (
    MTP_MODES,
    ModelIdentity,
    PruningPlan,
    check_plan,
    count_to_keep,
    load_plan,
    make_plan,
    save_plan,
)
from ggufreap.progress import Progress, silent
from ggufreap.rewriting import RewriteScript, execute, lower
from ggufreap.statistics import ExpertStatistics, Floats, Provenance, load
from ggufreap.verification import N_TOKENS, Verification, verify_file

_LOG = logging.getLogger(__name__)
TRYING_OUT_BYTES = 200_000
DEMO_CALIBRATION_BYTES, DEMO_HELD_OUT_BYTES = 150_000, 60_000
DEMO_PROMPT = "def read_header(path):\n"


@dataclass(frozen=True)
class Pruned:
    """What `prune` made: the files, the plan, and the proof (None when verification was turned off)."""

    script: RewriteScript
    plan: PruningPlan
    plan_path: Path
    statistics_path: Path | None
    verification: Verification | None


def _open(model: str | Path) -> tuple[GgufFile, MoeLayout, ModelIdentity]:
    file = open_gguf(model)
    layout = bind(file)
    name = str(file.get("general.name") or file.path.stem)
    return file, layout, ModelIdentity(file.fingerprint, layout.architecture.name, name)


def inspect(model: str | Path) -> Inspection:
    """Describe a model from its header alone."""
    file, layout, _ = _open(model)
    return inspect_file(file, layout)


def calibrate(
    model: str | Path,
    out: str | Path,
    *,
    file: str | None = None,
    tokens: str | Path | None = None,
    chunks: int | None = None,
    imatrix_out: str | Path | None = None,
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> ExpertStatistics:
    """Run text (`file`, `-` for standard input) or token ids (`tokens`, .npy) and save what the experts did at `out`.

    With `imatrix_out` the same pass gives the importance matrix too, as llama-imatrix would write it. At most `chunks`
    chunks are run. An interrupted run goes on where it was when it is called again with the same arguments.
    """
    source, layout, identity = _open(model)
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
        target = Path(imatrix_out) if imatrix_out is not None else None
        return observe(engine, layout.nodes, corpus, provenance, Path(out), imatrix_out=target, progress=progress)


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
    return lambda engine: corpora.from_text(engine, embedded, n_ctx, "the embedded text (only for trying out)")


def _provenance(identity: ModelIdentity, corpus: Corpus, settings: EngineSettings) -> Provenance:
    n_ctx, n_ubatch = corpus.chunks.shape[1], min(settings.n_ubatch, settings.n_ctx)
    return Provenance(identity.fingerprint, corpus.sha256, n_ctx, n_ubatch, corpus.source, __version__)


def plan(
    model: str | Path,
    *,
    stats: str | Path | None = None,
    ratio: str | float | None = None,
    keep: int | None = None,
    method: str = "reap",
    mtp: str = "mirror",
    seed: int = 0,
    progress: Progress = silent,
) -> PruningPlan:
    """Choose the experts that stay, `ratio` removed or `keep` kept in every block.

    `stats` is what `calibrate` saved; the methods `random` and `weight_norm` need none.
    """
    _check_choice(method, mtp)
    source, layout, identity = _open(model)
    count_to_keep(layout, ratio, keep)
    scores, corpus = _scores(source, layout, identity, stats, method, seed, progress)
    return make_plan(layout, identity, scores, method=method, ratio=ratio, keep=keep, mtp=mtp, corpus=corpus)


def _check_choice(method: str, mtp: str) -> None:
    for what, name, known in (("method", method, saliency.METHOD_NAMES), ("mtp", mtp, MTP_MODES)):
        if name not in known:
            raise InputError(f"{what} {name!r} is not known; choose one of {', '.join(known)}")


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
    source, layout, identity = _open(model)
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
    source, layout, identity = _open(model)
    chosen = plan if isinstance(plan, PruningPlan) else load_plan(Path(plan))
    check_plan(chosen, identity, layout)
    settings = replace(settings or EngineSettings(), n_ctx=N_TOKENS, n_ubatch=N_TOKENS, exact=True)

    def logits(path: Path, ids: Tokens, keeps: Sequence[Keep | None]) -> list[npt.NDArray[np.float32]]:
        return subprocess_probe.logits(path, ids, settings, keeps)

    return verify_file(source, layout, chosen, Path(out), logits, progress)


def prune(
    model: str | Path,
    *,
    ratio: str | float | None = None,
    keep: int | None = None,
    method: str = "reap",
    mtp: str = "mirror",
    seed: int = 0,
    file: str | None = None,
    tokens: str | Path | None = None,
    chunks: int | None = None,
    out: str | Path | None = None,
    dry_run: bool = False,
    verification: bool = True,
    split_max_size: int | None = None,
    keep_split: bool = False,
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> Pruned:
    """The whole job: calibrate, plan, apply, verify. `out` is a file or a folder; statistics and plan lie beside it.

    Whatever could fail for want of space or of experts fails before the calibration. Statistics that are already
    there for the same model, text and settings are used again.
    """
    _check_choice(method, mtp)
    source, layout, identity = _open(model)
    rewrite = partial(lower, split_max_size=split_max_size, keep_split=keep_split)
    # Which experts stay does not change a single size: any plan of the same count tells the whole story beforehand.
    scores = saliency.random_scores(len(layout.trunk), layout.n_expert, seed)
    corpus = "0" * 64 if method in saliency.METHODS else ""
    preview = make_plan(layout, identity, scores, method=method, ratio=ratio, keep=keep, mtp=mtp, corpus=corpus)
    result = naming.target(source.path, Path(out) if out is not None else None, preview.label)
    script = rewrite(source, layout, preview, result)
    if not dry_run:
        make_folder(result.parent)
        check_target(script.files, *source.paths, file, tokens)
    plan_path = result.with_name(f"{naming.stem_of(result)}.plan.json")
    _LOG.info("%s in each of %d MoE blocks", preview.summary, len(preview.keep))
    first = script.files[0].path
    _LOG.info("%s -> %s (%s bytes -> %s)", source.path.name, first, f"{source.nbytes:,}", f"{script.nbytes:,}")
    if dry_run:
        return Pruned(script, preview, plan_path, None, None)
    stats_path = None
    if method in saliency.METHODS:
        stats_path = result.with_name(f"{naming.stem_of(source.path)}.stats.npz")
        calibrate(
            source.path, stats_path, file=file, tokens=tokens, chunks=chunks, settings=settings, progress=progress
        )
    chosen = plan(
        source.path, stats=stats_path, ratio=ratio, keep=keep, method=method, mtp=mtp, seed=seed, progress=progress
    )
    save_plan(plan_path, chosen)
    script = rewrite(source, layout, chosen, result)
    execute(script, progress)
    proof = (
        verify(source.path, script.files[0].path, chosen, settings=settings, progress=progress)
        if verification
        else None
    )
    return Pruned(script, chosen, plan_path, stats_path, proof)


def demo(
    out: str | Path = "ggufreap-demo", *, ratio: str | float = "0.25", threads: int = 0, progress: Progress = silent
) -> Demonstration:
    """The whole job on the embedded model, in the folder `out`: what it saves, what is lost, what it still writes."""
    folder = Path(out)
    make_folder(folder, parents=True)
    text = folder / "calibration.txt"
    with replacing(text) as handle:
        handle.write(calibration_text(DEMO_CALIBRATION_BYTES).encode())
    settings = EngineSettings(n_ctx=256, n_ubatch=256, n_threads=threads)
    pruned = prune(DEMO_MODEL, ratio=ratio, file=str(text), out=folder, settings=settings, progress=progress)
    held_out = held_out_text(DEMO_HELD_OUT_BYTES)
    measured, sample = [], ""
    for which, path in (("original", DEMO_MODEL), ("pruned", pruned.script.files[0].path)):
        source, layout, _ = _open(path)
        with LlamaSession(source.path, layout.nodes, settings) as engine:
            corpus = corpora.from_text(engine, held_out, settings.n_ctx, "held-out text")
            measured.append(perplexity(engine, corpus, progress, f"perplexity, {which}"))
            written = continuation(engine, engine.tokenize(DEMO_PROMPT), 60, temperature=0.7, seed=1)
            sample = engine.detokenize(written.tolist())
    return Demonstration(pruned, measured[0], measured[1], DEMO_PROMPT, sample)
