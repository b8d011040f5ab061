"""The whole job as a recipe tells it."""

from dataclasses import replace
from pathlib import Path

from ggufreap.files import claim, discard, written_by
from ggufreap.model import AnyModel
from ggufreap.options.data import Request
from ggufreap.options.engine import EngineSettings
from ggufreap.options.judgement import Judgement
from ggufreap.options.output import Output
from ggufreap.options.quantisation import Quantisation
from ggufreap.progress import Progress, silent
from ggufreap.recipe import Recipe, load_recipe
from ggufreap.verbs.data import as_request
from ggufreap.verbs.prune import Pruned, prune


@written_by
def run(
    recipe: Recipe | str | Path,
    model: AnyModel,
    data: Request | str | Path | None = None,
    *,
    output: Output | None = None,
    report: str | Path | None = None,
    command: str = "",
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> Pruned:
    """Do what `recipe` says, a name that comes with ggufreap or a TOML file, and verify the byte-exact file.

    `data` takes the place of the recipe's data sets; `output`, and `report` as in a judgement, are as for `prune`. The
    recipe decides on the tokens per chunk; `settings` takes the place of its other engine options.
    """
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    claim(inputs=() if isinstance(recipe, Recipe) else (recipe,))
    calibration, quantization, output = chosen.calibration, chosen.quantization, output or Output()
    if data is not None or calibration.datasets:
        request = Request() if data is None else as_request(data)
        if not request.names_data and calibration.datasets:
            request = replace(request, dataset=calibration.datasets, seed=calibration.seed)
        n_chunks = request.reading.n_chunks or calibration.chunks
        data = replace(request, reading=replace(request.reading, n_chunks=n_chunks))
    judgement: Judgement = Judgement(report=report) if output.dry_run else replace(chosen.evaluation, report=report)
    pruned = prune(
        model,
        data,
        target=replace(chosen.target, seed=calibration.seed),
        quantisation=Quantisation(chosen.quantization.quant),
        judgement=judgement,
        output=output,
        command=command,
        settings=replace(settings or chosen.engine, n_ctx=calibration.ctx_size or 0),
        progress=progress,
    )
    if pruned.imatrix_path is not None and not quantization.keep_imatrix:
        discard(pruned.imatrix_path)
        handover = replace(pruned.handover, more=()) if pruned.handover else None
        pruned = replace(pruned, imatrix_path=None, handover=handover)
    return pruned
