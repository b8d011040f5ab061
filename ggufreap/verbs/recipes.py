"""The whole job as a recipe tells it."""

from dataclasses import replace
from pathlib import Path

from ggufreap.corpus.request import Request
from ggufreap.files import claim, discard, written_by
from ggufreap.options.engine import EngineSettings
from ggufreap.progress import Progress, silent
from ggufreap.recipe import Recipe, load_recipe
from ggufreap.verbs.data import as_request
from ggufreap.verbs.variants import KEEP
from ggufreap.verbs.whole import Pruned, prune


@written_by
def run(
    recipe: Recipe | str | Path,
    model: str | Path,
    data: Request | str | Path | None = None,
    *,
    out: str | Path | None = None,
    report_out: str | Path | None = None,
    command: str = "",
    settings: EngineSettings | None = None,
    dry_run: bool = False,
    force: bool = False,
    progress: Progress = silent,
) -> Pruned:
    """Do what `recipe` says, a name that comes with ggufreap or a TOML file, and verify the byte-exact file.

    `data` takes the place of the recipe's data sets; `out` and `report_out` as for `prune`. The recipe decides on the
    tokens per chunk; `settings` takes the place of its other engine options. Files of other work are replaced with
    `force` alone.
    """
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    claim(inputs=() if isinstance(recipe, Recipe) else (recipe,))
    calibration, target, quantization = chosen.calibration, chosen.target, chosen.quantization
    evaluation = chosen.evaluation
    if data is None and calibration.datasets:
        data = Request(dataset=calibration.datasets, seed=calibration.seed)
    if data is not None:
        request = as_request(data)
        n_chunks = request.reading.n_chunks or calibration.chunks
        data = replace(request, reading=replace(request.reading, n_chunks=n_chunks))
    pruned = prune(
        model,
        data,
        ratio=target.ratio,
        keep=target.keep,
        method=target.method,
        blend=target.blend,
        mtp=target.mtp,
        seed=calibration.seed,
        out=out,
        quant=(*([KEEP] if quantization.keep else []), *quantization.variants),
        eval_file=() if dry_run else evaluation.files,
        eval_chunks=evaluation.chunks,
        eval_ctx_size=evaluation.ctx_size,
        compare=evaluation.compare and not dry_run,
        fail_if=() if dry_run else evaluation.fail_if,
        report_out=report_out,
        command=command,
        settings=replace(settings or chosen.engine, n_ctx=calibration.ctx_size or 0),
        dry_run=dry_run,
        progress=progress,
    )
    if pruned.imatrix_path is not None and not quantization.keep_imatrix:
        discard(pruned.imatrix_path)
        pruned = replace(pruned, imatrix_path=None)
    return pruned
