"""The whole job as a recipe tells it."""

from dataclasses import replace
from pathlib import Path

from ggufreap.corpus.request import Request
from ggufreap.engine.session import EngineSettings
from ggufreap.errors import InputError
from ggufreap.progress import Progress, silent
from ggufreap.recipe import Recipe, load_recipe
from ggufreap.verbs.data import as_request
from ggufreap.verbs.variants import KEEP
from ggufreap.verbs.whole import Pruned, prune


def run(
    recipe: Recipe | str | Path,
    model: str | Path,
    data: Request | str | Path | None = None,
    *,
    out: str | Path | None = None,
    settings: EngineSettings | None = None,
    dry_run: bool = False,
    progress: Progress = silent,
) -> Pruned:
    """Do what `recipe` says, a name that comes with ggufreap or a TOML file, and verify the byte-exact file.

    `data` takes the place of the recipe's data sets; `out` is a file or a folder. The recipe decides on the
    tokens per chunk, `settings` on the rest.
    """
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if chosen.evaluation.files:
        raise InputError(
            f"recipe {chosen.name}: evaluation.files names {len(chosen.evaluation.files)} texts, which run does not "
            "judge the result by yet; take the table [evaluation] out"
        )
    calibration, target, quantization = chosen.calibration, chosen.target, chosen.quantization
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
        settings=replace(settings or EngineSettings(), n_ctx=calibration.ctx_size or 0),
        dry_run=dry_run,
        progress=progress,
    )
    if pruned.imatrix_path is not None and not quantization.keep_imatrix:
        pruned.imatrix_path.unlink()
        pruned = replace(pruned, imatrix_path=None)
    return pruned
