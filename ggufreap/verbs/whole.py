"""The whole job over the stages: prune, and prune on the embedded model."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ggufreap import corpus as corpora
from ggufreap import imatrix as matrices
from ggufreap import naming, saliency
from ggufreap.architecture.layout import MoeLayout
from ggufreap.container import GgufFile, check_target, type_name
from ggufreap.demonstration import MODEL as DEMO_MODEL
from ggufreap.demonstration import Demonstration
from ggufreap.demonstration.text import calibration_text, held_out_text
from ggufreap.engine.generator import Sampling
from ggufreap.engine.session import EngineSettings, LlamaSession
from ggufreap.errors import InputError
from ggufreap.evaluation import answers, perplexity
from ggufreap.files import make_folder, replacing
from ggufreap.imatrix import Imatrix
from ggufreap.planning import (
    PruningPlan,
    make_plan,
    save_plan,
)
from ggufreap.progress import Progress, silent
from ggufreap.quantization import Quantized
from ggufreap.recipe import Variant
from ggufreap.rewriting import RewriteScript, execute, lower
from ggufreap.verbs.requantize import gap_note, quantize
from ggufreap.verbs.stages import calibrate, check_choice, open_model, plan, verify
from ggufreap.verification import Verification

_LOG = logging.getLogger(__name__)
KEEP, AUTO = "keep", "auto"
AUTO_TYPES = ("Q4_K_M", "IQ4_XS")
LOSSLESS = {"F32", "F16", "BF16", "Q8_0"}  # 8 bits per weight or more: a good start for a quantiser
DEMO_CALIBRATION_BYTES, DEMO_HELD_OUT_BYTES = 150_000, 60_000
DEMO_PROMPT = "def read_header(path):\n"
DEMO_SAMPLING = Sampling(n_predict=60, temperature=0.7, seed=1)


@dataclass(frozen=True)
class Pruned:
    """What `prune` made: the files, the plan, and the proof (None when verification was turned off).

    `script` tells of the byte-exact file, which `quantized` variants were made from; `imatrix_path` is the importance
    matrix of the pruned model that guided them.
    """

    script: RewriteScript
    plan: PruningPlan
    plan_path: Path
    statistics_path: Path | None
    verification: Verification | None
    quantized: tuple[Quantized, ...] = ()
    imatrix_path: Path | None = None


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
    quant: Sequence[str | Variant] = (KEEP,),
    imatrix: str | Path | None = None,
    keep_intermediate: bool = False,
    allow_requantize: bool = False,
    dry_run: bool = False,
    verification: bool = True,
    split_max_size: int | None = None,
    keep_split: bool = False,
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> Pruned:
    """The whole job: calibrate, plan, apply, verify. `out` is a file or a folder; statistics and plan lie beside it.

    `quant` names what to make of the pruned file: `keep` it byte-exact, a type such as Q4_K_M, a recipe's variant, or
    `auto`: Q4_K_M and IQ4_XS of a model in 8 bits or more, `keep` for any other. Without `keep` the byte-exact file is
    removed at the end unless `keep_intermediate`. The variants are guided by the importance matrix of the same
    calibration, or by `imatrix`, sliced to the experts that stay.

    Whatever could fail for want of space or of experts fails before the calibration. Statistics that are already
    there for the same model, text and settings are used again.
    """
    check_choice(method, mtp)
    source, layout, identity = open_model(model)
    quant = _resolved(quant, source, layout)
    variants = [item if isinstance(item, Variant) else Variant(item) for item in quant if item != KEEP]
    if variants and not allow_requantize:
        _check_source(source, layout)
    rewrite = partial(lower, split_max_size=split_max_size, keep_split=keep_split)
    # Which experts stay does not change a single size: any plan of the same count tells the whole story beforehand.
    scores = saliency.random_scores(len(layout.trunk), layout.n_expert, seed)
    corpus = "0" * 64 if method in saliency.METHODS else ""
    preview = make_plan(layout, identity, scores, method=method, ratio=ratio, keep=keep, mtp=mtp, corpus=corpus)
    result = naming.target(source.path, Path(out) if out is not None else None, preview.label)
    script = rewrite(source, layout, preview, result)
    for variant in variants:
        if script.files[0].path.name == naming.pruned_name(source.path, preview.label, variant.suffix):
            raise InputError(
                f"{variant.suffix} would be written over {script.files[0].path.name}, the pruned file it is made from; "
                "leave it out, or start from a model of another type"
            )
    if not dry_run:
        make_folder(result.parent)
        check_target(script.files, *source.paths, file, tokens)
    plan_path = result.with_name(f"{naming.stem_of(result)}.plan.json")
    _LOG.info("%s in each of %d MoE blocks", preview.summary, len(preview.keep))
    first = script.files[0].path
    _LOG.info("%s -> %s (%s bytes -> %s)", source.path.name, first, f"{source.nbytes:,}", f"{script.nbytes:,}")
    if dry_run:
        return Pruned(script, preview, plan_path, None, None)
    given = matrices.load(imatrix) if imatrix is not None else None
    if given is not None:
        matrices.check(given, source, layout)
    stats_path = collected = None
    if method in saliency.METHODS:
        stats_path = result.with_name(f"{naming.stem_of(source.path)}.stats.npz")
        if variants and given is None:
            collected = result.with_name(f"{naming.stem_of(source.path)}.imatrix.gguf")
        calibrate(
            source.path,
            stats_path,
            file=file,
            tokens=tokens,
            chunks=chunks,
            imatrix_out=collected,
            settings=settings,
            progress=progress,
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
    pruned = Pruned(script, chosen, plan_path, stats_path, proof)
    if not variants or (proof and not proof.ok):
        return pruned
    matrix = given or (matrices.load(collected) if collected else None)
    pruned = _quantized(pruned, matrix, layout, source.path, variants, allow_requantize, settings, progress)
    if KEEP not in quant and not keep_intermediate:
        for written in script.files:
            written.path.unlink()
    return pruned


def _expert_types(source: GgufFile, layout: MoeLayout) -> set[str]:
    """The types of the expert weights that a quantiser would start from."""
    return {type_name(source.by_name[name].type) for name in layout.per_expert if name.endswith("_exps.weight")}


def _resolved(quant: Sequence[str | Variant], source: GgufFile, layout: MoeLayout) -> Sequence[str | Variant]:
    """What `auto` stands for: two 4-bit variants of a model in 8 bits or more, the same bytes of any other."""
    if AUTO not in quant:
        return quant
    low = sorted(_expert_types(source, layout) - LOSSLESS)
    if low:
        _LOG.info("the experts are %s already: their bytes are kept, quantising twice loses twice", ", ".join(low))
    return (KEEP,) if low else AUTO_TYPES


def _check_source(source: GgufFile, layout: MoeLayout) -> None:
    low = sorted(_expert_types(source, layout) - LOSSLESS)
    if low:
        raise InputError(
            f"{source.path}: its experts are {', '.join(low)} already, and quantising twice loses twice; start from "
            "the F16, BF16 or Q8_0 file, keep the types with --quant keep, or allow it with --allow-requantize"
        )


def _quantized(
    pruned: Pruned,
    matrix: Imatrix | None,
    layout: MoeLayout,
    original: Path,
    variants: Sequence[Variant],
    allow_requantize: bool,
    settings: EngineSettings | None,
    progress: Progress,
) -> Pruned:
    exact = pruned.script.files[0].path
    folder, sliced = pruned.plan_path.parent, None
    if matrix is not None:
        # Gaps are filled before the slice: what the dropped experts saw still tells about the block's input.
        complete, gaps = matrices.filled(matrix)
        for gap in gaps:
            _LOG.info("%s", gap_note(gap))
        sliced = pruned.plan_path.with_name(pruned.plan_path.name.replace(".plan.json", ".imatrix.gguf"))
        matrices.save(sliced, matrices.sliced(complete, layout, pruned.plan.keep))
    threads = settings.n_threads if settings else 0
    made = [
        quantize(
            exact,
            folder / naming.pruned_name(original, pruned.plan.label, variant.suffix),
            variant.type,
            imatrix=sliced,
            tensor_types=variant.tensor_types,
            token_embedding_type=variant.token_embedding_type,
            output_tensor_type=variant.output_tensor_type,
            pure=variant.pure,
            allow_requantize=allow_requantize,
            threads=threads,
            progress=progress,
        )
        for variant in (each.of(layout.n_trunk) for each in variants)
    ]
    return replace(pruned, quantized=tuple(made), imatrix_path=sliced)


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
        source, layout, _ = open_model(path)
        with LlamaSession(source.path, layout.nodes, settings) as engine:
            corpus = corpora.from_text(engine, held_out, settings.n_ctx, "held-out text")
            measured.append(perplexity(engine, corpus, progress, f"perplexity, {which}"))
            sample = answers(engine, [DEMO_PROMPT], DEMO_SAMPLING)[0].text
    return Demonstration(pruned, measured[0], measured[1], DEMO_PROMPT, sample)
