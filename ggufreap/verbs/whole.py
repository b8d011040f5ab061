"""The whole job over the stages: prune."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ggufreap import imatrix as matrices
from ggufreap import naming, saliency
from ggufreap.container import check_target
from ggufreap.corpus.request import TEXT_CTX, Opened
from ggufreap.coverage import Coverage
from ggufreap.errors import InputError
from ggufreap.evaluation import METRICS, parse_gate
from ggufreap.files import check_space, make_folder
from ggufreap.options.engine import EngineSettings
from ggufreap.planning import (
    PruningPlan,
    make_plan,
    save_plan,
)
from ggufreap.progress import Progress, silent
from ggufreap.quantization import Quantized
from ggufreap.recipe import Variant
from ggufreap.reporting import check_report
from ggufreap.rewriting import RewriteScript, execute, lower
from ggufreap.verbs.account import Account, report
from ggufreap.verbs.candidates import choose_ratio
from ggufreap.verbs.choice import DEFAULT_METHOD, calibrates, chosen_method, coverage, default_blend, plan
from ggufreap.verbs.data import Data, open_data
from ggufreap.verbs.evaluation import named_texts
from ggufreap.verbs.laws import require_laws
from ggufreap.verbs.stages import calibrate, open_model, verify
from ggufreap.verbs.variants import AUTO, VariantJobs, resolved
from ggufreap.verification import Verification

_LOG = logging.getLogger(__name__)
MAX_KLD = 0.1  # of the worst domain, for the ratio auto


@dataclass(frozen=True)
class Pruned:
    """What `prune` made: the files, the plan and what it leaves of each domain, and the proof (None if turned off).

    `script` tells of the byte-exact file, which `quantized` variants were made from; `imatrix_path` is the importance
    matrix of the pruned model that guided them; `account` tells what the files are worth, where there was held-out
    text. After a dry run all of it is what would be made.
    """

    script: RewriteScript
    plan: PruningPlan
    plan_path: Path
    statistics_path: Path | None
    verification: Verification | None
    coverage: Coverage | None = None
    account: Account | None = None
    quantized: tuple[Quantized, ...] = ()
    imatrix_path: Path | None = None


def prune(
    model: str | Path,
    data: Data = None,
    *,
    ratio: str | float | None = None,
    keep: int | None = None,
    method: str = DEFAULT_METHOD,
    budget: float | None = None,
    from_imatrix: str | Path | None = None,
    blend: str | None = None,
    mtp: str = "mirror",
    seed: int = 0,
    out: str | Path | None = None,
    quant: Sequence[str | Variant] = (AUTO,),
    imatrix: str | Path | None = None,
    process_output: bool = False,
    keep_intermediate: bool = False,
    allow_requantize: bool = False,
    dry_run: bool = False,
    verification: bool = True,
    split_max_size: int | None = None,
    keep_split: bool = False,
    eval_file: Sequence[str] = (),
    eval_chunks: int | None = None,
    eval_ctx_size: int | None = None,
    max_kld: float = MAX_KLD,
    compare: bool = False,
    fail_if: Sequence[str] = (),
    report_out: str | Path | None = None,
    command: str = "",
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> Pruned:
    """The whole job: calibrate on `data`, plan, apply, verify. `out` is a file or a folder, which gets all files.

    With held-out text in `eval_file` (as for `eval`) every file is measured against the original, `compare` and
    `fail_if` as in `report`, which is written into the folder `report_out`; `ratio` `auto` then removes as many experts
    as leave the worst domain at a mean KLD of `max_kld` or less.

    `quant` names what to make of the pruned file: `keep` it byte-exact, a type such as Q4_K_M, the variants of a recipe
    by its name or TOML file, or `auto`: Q4_K_M and IQ4_XS of a model in 8 bits or more, `keep` for any other. The
    byte-exact file is removed at the end unless it is to `keep`, `keep_intermediate` is set, or `out` names it. The
    variants are guided by the importance matrix of the same calibration, or by `imatrix`, sliced to the experts that
    stay; `process_output` collects it of the output head too.

    With `from_imatrix`, a GGUF importance matrix of the model, nothing is calibrated: its counts and energies choose
    the experts, and it guides the quantiser. That is a weaker choice, and said to be one wherever it shows.

    A model of an unknown architecture is first tried out as by `doctor`, beside the output.

    Whatever could fail for want of space, of experts or of leave to quantise twice fails before the calibration.
    Statistics that are already there for the same model, text and settings are used again. `budget` as for `plan`.
    """
    method = chosen_method(method, mtp, from_imatrix, blend, ratio)
    if from_imatrix is not None and data is not None:
        raise InputError("both an importance matrix to choose from and a text were given; give one of them")
    if not eval_file and (ratio == AUTO or compare or fail_if):
        raise InputError("auto ratios, --compare and --fail-if judge by held-out text; give some with --eval-file")
    # What would stop the judging is better known before hours of work.
    if report_out is not None:
        check_report(Path(report_out))
    texts = named_texts(eval_file) if eval_file else {}
    for gate in map(parse_gate, fail_if):
        gate.require(texts, METRICS)
    source, layout, identity = open_model(model)
    wanted = resolved(quant, source)
    rewrite = partial(lower, split_max_size=split_max_size, keep_split=keep_split)
    # Which experts stay does not change a single size: any plan of the same count tells the whole story beforehand.
    scores = saliency.random_scores(len(layout.trunk), layout.n_expert, seed)
    # Sizes can be told without any data but their names, which stand in the header.
    opened = open_data(data) if calibrates(method) and not (dry_run and data is None) else None
    guide = imatrix if imatrix is not None else from_imatrix
    given = matrices.load(guide) if guide is not None else None
    if given is not None:
        matrices.check(given, source, layout)
    folder = naming.target(source.path, Path(out) if out is not None else None, "").parent
    stats_path = folder / f"{naming.stem_of(source.path)}.stats.npz" if opened else None
    collects = opened and wanted.variants and given is None
    collected = folder / f"{naming.stem_of(source.path)}.imatrix.gguf" if collects else None

    def observe() -> None:
        # Last of what could stop the job, since it runs the model.
        require_laws(source, layout, folder, settings, progress)
        if opened and stats_path:
            calibrate(
                source.path,
                stats_path,
                opened,
                imatrix_out=collected,
                process_output=process_output,
                settings=settings,
                progress=progress,
            )

    _warn_of_seen(eval_file, opened)
    judges = replace(settings or EngineSettings(), n_ctx=eval_ctx_size or (settings and settings.n_ctx) or TEXT_CTX)
    if ratio == AUTO:
        if dry_run:
            raise InputError("the ratio auto is found by calibrating and masking; a dry run takes a number")
        make_folder(folder)
        observe()
        found = choose_ratio(
            source.path,
            max_kld=max_kld,
            files=eval_file,
            stats=stats_path,
            method=method,
            blend=blend,
            mtp=mtp,
            seed=seed,
            chunks=eval_chunks,
            settings=judges,
            progress=progress,
        )
        assert found.recommended  # else it raises
        _LOG.info("%s", found.reason)
        ratio, keep = None, found.recommended.plan.n_keep
    preview = make_plan(
        layout,
        identity,
        scores,
        method=method,
        ratio=ratio,
        keep=keep,
        mtp=mtp,
        corpus=opened.identity if opened else "",
        datasets=[replace(record, sha256="0" * 64) for record in opened.records] if opened else (),
        blend=blend or default_blend({record.domain for record in opened.records}) if opened else "",
    )
    result = naming.target(source.path, Path(out) if out is not None else None, preview.label)
    script = rewrite(source, layout, preview, result)
    jobs = VariantJobs(wanted.variants, layout, result, allow_requantize, settings.n_threads if settings else 0)
    jobs.check_names(script)
    foreseen = jobs.foresee(script, preview, given, opened.names if opened else None)
    plan_path = result.with_name(f"{naming.stem_of(result)}.plan.json")
    if not dry_run:
        make_folder(result.parent)
        check_target(script.files, *source.paths, *(opened.request.paths if opened else ()))
        # The importance sums lie there with the statistics, as a matrix, and sliced.
        more = 3 * matrices.full_nbytes(source) if wanted.variants else 0
        check_space(result.parent, script.nbytes + more + sum(made.nbytes for made in foreseen))
    _LOG.info("%s in each of %d MoE blocks", preview.summary, len(preview.keep))
    first = script.files[0].path
    _LOG.info("%s -> %s (%s bytes -> %s)", source.path.name, first, f"{source.nbytes:,}", f"{script.nbytes:,}")
    for made in foreseen:
        _LOG.info("%s -> %s (%s bytes)", first.name, made.paths[0], f"{made.nbytes:,}")
    if dry_run:
        return Pruned(script, preview, plan_path, None, None, quantized=foreseen)
    observe()
    chosen = plan(
        source.path,
        stats=stats_path,
        from_imatrix=from_imatrix,
        ratio=ratio,
        keep=keep,
        method=method,
        blend=blend,
        mtp=mtp,
        seed=seed,
        budget=budget,
        settings=settings,
        progress=progress,
    )
    covered = coverage(stats_path, chosen) if stats_path else None
    save_plan(plan_path, chosen)
    script = rewrite(source, layout, chosen, result)
    execute(script, progress)
    proof = verify(source.path, first, chosen, settings=settings, progress=progress) if verification else None
    pruned = Pruned(script, chosen, plan_path, stats_path, proof, covered)
    if proof and not proof.ok:
        return pruned
    if wanted.variants:
        matrix = given or (matrices.collected(stats_path, process_output) if stats_path and collected else None)
        quantized, sliced = jobs.make(script.files[0].path, chosen, matrix, progress)
        pruned = replace(pruned, quantized=quantized, imatrix_path=sliced)
        if not (wanted.keep or keep_intermediate or result == Path(out or "")):
            for written in script.files:
                written.path.unlink()
    if not eval_file and report_out is None:
        return pruned
    left = [script.files[0].path, *(made.paths[0] for made in pruned.quantized)]
    told = report(
        source.path,
        [path for path in left if path.exists()],
        chosen,
        report_out,
        files=eval_file,
        chunks=eval_chunks,
        stats=stats_path,
        compare=compare,
        imatrix=guide or collected,
        fail_if=fail_if,
        command=command,
        verification=proof,
        settings=judges,
        progress=progress,
    )
    return replace(pruned, account=told)


def _warn_of_seen(eval_file: Sequence[str], opened: Opened | None) -> None:
    seen = {Path(record.name).resolve() for record in opened.records if not record.is_hub} if opened else set()
    for text in eval_file:
        if Path(text.rpartition("=")[2]).resolve() in seen:
            _LOG.warning("%s was calibrated on too: what it tells of the loss is too good", text)
