"""The whole job as a recipe tells it."""

import logging
from dataclasses import replace
from pathlib import Path

from ggufreap.corpus.request import USUAL_PARTS, open_request, unopened
from ggufreap.errors import OutOfReach
from ggufreap.files import claim, discard, written_by
from ggufreap.model import AnyModel
from ggufreap.options.data import Request
from ggufreap.options.engine import EngineSettings
from ggufreap.options.output import Output
from ggufreap.progress import Progress, silent
from ggufreap.recipe import Overrides, Recipe, load_recipe
from ggufreap.verbs.data import Data, as_request
from ggufreap.verbs.prune import Pruned, prune

_LOG = logging.getLogger(__name__)


@written_by
def run(
    recipe: Recipe | str | Path,
    model: AnyModel,
    data: Request | str | Path | None = None,
    *,
    overrides: Overrides | None = None,
    output: Output | None = None,
    report: str | Path | None = None,
    command: str = "",
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> Pruned:
    """Do what `recipe` says, a name that comes with ggufreap or a TOML file, and verify the byte-exact file.

    `data` takes the place of the recipe's data sets, `overrides` that of its other values, `settings` that of its
    engine options but the tokens per chunk; `output`, and `report` as in a judgement, are as for `prune`.

    A dry run of data sets that cannot be reached tells sizes with commits of the usual length in the headers.
    """
    chosen, asked = recipe if isinstance(recipe, Recipe) else load_recipe(recipe), overrides or Overrides()
    claim(inputs=() if isinstance(recipe, Recipe) else (recipe,))
    request = None if data is None else as_request(data)
    asked.tell(chosen, request, settings)
    output, target = output or Output(), asked.target_of(chosen, reads=not (request and request.names_data))
    judgement = asked.judgement_of(chosen, reads=not output.dry_run)
    pruned = prune(
        model,
        _data_of(chosen, request, target.seed, output.dry_run),
        target=target,
        quantisation=asked.quantisation_of(chosen),
        judgement=replace(judgement, report=report),
        output=output,
        command=command,
        settings=replace(settings or chosen.engine, n_ctx=asked.n_ctx or chosen.calibration.ctx_size or 0),
        progress=progress,
    )
    unwanted = pruned.imatrix_path
    if unwanted is None or chosen.quantization.keep_imatrix:
        return pruned
    discard(unwanted)
    rest = tuple(path for path in pruned.handover.more if path != unwanted) if pruned.handover else ()
    return replace(pruned, imatrix_path=None, handover=pruned.handover and replace(pruned.handover, more=rest))


def _data_of(recipe: Recipe, data: Request | None, seed: int, dry_run: bool) -> Data:
    """What is calibrated on: what was given, else the recipe's data sets, else the built-in mix."""
    calibration = recipe.calibration
    request = data or Request()
    if not request.asks and not calibration.datasets and (dry_run or calibration.chunks is None):
        return data
    given, n_chunks = request.names_data, request.reading.n_chunks or calibration.chunks
    if not given and calibration.datasets:
        request = replace(request, dataset=calibration.datasets, seed=seed)
    request = replace(request, reading=replace(request.reading, n_chunks=n_chunks))
    if given or not dry_run:
        return request
    try:
        return open_request(request)
    except OutOfReach as error:
        _LOG.warning("%s; sizes are told as of data sets with a subset %s and a split %s", error, *USUAL_PARTS)
        return unopened(request)
