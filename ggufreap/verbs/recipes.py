"""The whole job as a recipe tells it."""

from dataclasses import replace
from pathlib import Path

from ggufreap.engine.session import EngineSettings
from ggufreap.errors import InputError
from ggufreap.progress import Progress, silent
from ggufreap.recipe import Recipe, load_recipe
from ggufreap.verbs.variants import KEEP
from ggufreap.verbs.whole import Pruned, prune


def run(
    recipe: Recipe | str | Path,
    model: str | Path,
    *,
    file: str | None = None,
    tokens: str | Path | None = None,
    out: str | Path | None = None,
    settings: EngineSettings | None = None,
    dry_run: bool = False,
    progress: Progress = silent,
) -> Pruned:
    """Do what `recipe` says, a name that comes with ggufreap or a TOML file, and verify the byte-exact file.

    `file` or `tokens` take the place of the recipe's data sets; `out` is a file or a folder. The recipe decides on the
    tokens per chunk, `settings` on the rest.
    """
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if chosen.evaluation.files:
        raise InputError(
            f"recipe {chosen.name}: evaluation.files names {len(chosen.evaluation.files)} texts, which run does not "
            "judge the result by yet; take the table [evaluation] out"
        )
    calibration, target, quantization = chosen.calibration, chosen.target, chosen.quantization
    if calibration.datasets and file is None and tokens is None and not dry_run:
        raise InputError(
            f"recipe {chosen.name}: calibration.datasets is not supported yet; give text with -f (or ids with --tokens)"
        )

    pruned = prune(
        model,
        ratio=target.ratio,
        keep=target.keep,
        method=target.method,
        mtp=target.mtp,
        seed=calibration.seed,
        file=file,
        tokens=tokens,
        chunks=calibration.chunks,
        out=out,
        quant=(*([KEEP] if quantization.keep else []), *quantization.variants),
        settings=replace(settings or EngineSettings(), n_ctx=calibration.ctx_size),
        dry_run=dry_run,
        progress=progress,
    )
    if pruned.imatrix_path is not None and not quantization.keep_imatrix:
        pruned.imatrix_path.unlink()
        pruned = replace(pruned, imatrix_path=None)
    return pruned
