"""What was asked for in another way than a recipe says: it takes the place of the recipe's values, and that is told."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ggufreap.options.data import Request
from ggufreap.options.engine import EngineSettings
from ggufreap.options.flag import flags_of
from ggufreap.options.judgement import Judgement
from ggufreap.options.quantisation import Quantisation
from ggufreap.options.target import Target
from ggufreap.recipe.values import Recipe
from ggufreap.saliency import RANDOM
from ggufreap.selection.methods import calibrates

_LOG = logging.getLogger(__name__)
_SIZES = ("ratio", "keep", "shrink")  # of these a target has one
Change = tuple[str, Any, Any]  # a flag, what was given with it, and what the recipe has


@dataclass(frozen=True)
class Overrides:
    """Fields of the options of these names -> values that were given; `n_ctx`: tokens per chunk, 0 where not given."""

    target: Mapping[str, Any] = field(default_factory=dict)
    quantisation: Mapping[str, Any] = field(default_factory=dict)
    judgement: Mapping[str, Any] = field(default_factory=dict)
    n_ctx: int = 0

    def target_of(self, recipe: Recipe, reads: bool) -> Target:
        """Whom a recipe removes; one way to say how much takes the place of another.

        The recipe's seed is left out where nothing is drawn by it: neither from its data sets, if it `reads` them, nor
        held-out documents, nor experts.
        """
        theirs = vars(recipe.target)
        gone = {name for name in _SIZES if any(size in self.target for size in _SIZES)}
        if "shrink" in self.target:  # which says that too
            gone.add("width_ratio")
        if "method" in self.target:  # what the recipe says of its own method
            gone |= {"budget"} if calibrates(self.target["method"]) else {"budget", "blend"}
        usual = {each.name: each.default for each in fields(recipe.target)}
        asked = theirs | {name: usual[name] for name in gone} | dict(self.target)
        asked["given"] = tuple(sorted({*theirs["given"], *self.target} - (gone - {*self.target})))
        draws = (reads and recipe.calibration.datasets) or self.judgement.get("split") or asked["method"] == RANDOM
        return Target(**({**asked, "seed": self.target.get("seed", recipe.calibration.seed)} if draws else asked))

    def quantisation_of(self, recipe: Recipe) -> Quantisation:
        """What is made of the pruned file."""
        asked = Quantisation(recipe.quantization.quant, imatrix_dat=recipe.quantization.imatrix_dat)
        return replace(asked, **self.quantisation)

    def judgement_of(self, recipe: Recipe, reads: bool) -> Judgement:
        """By what it is judged; the recipe's held-out texts are left out where nothing is read, and how they would be
        read where there are none.
        """
        theirs = vars(recipe.evaluation) if reads else {}
        if not any(each.get(name) for each in (theirs, self.judgement) for name in ("files", "split")):
            theirs = {name: value for name, value in theirs.items() if name not in ("chunks", "ctx_size")}
        return Judgement(**(theirs | dict(self.judgement) | {"given": tuple(self.judgement)}))

    def tell(self, recipe: Recipe, data: Request | None, settings: EngineSettings | None) -> None:
        """Say which values of a recipe count for nothing, those that `data` and `settings` replace included."""
        for flag, given, before in (*self._changes(recipe), *_of_data(recipe, data), *_of_engine(recipe, settings)):
            if given != before:
                _LOG.info("%s %s, where the recipe %s has %s", flag, _worded(given), recipe.name, _worded(before))

    def _changes(self, recipe: Recipe) -> Iterator[Change]:
        befores = ((self.target, recipe.target), (self.judgement, recipe.evaluation))
        for given, before in befores:
            for name, value in given.items():
                if before.told(name):
                    yield flags_of(before)[name].names[0], value, getattr(before, name)
                elif name in _SIZES:
                    told = next(f"{size} {told}" for size in _SIZES if (told := getattr(before, size)) is not None)
                    yield flags_of(before)[name].names[0], value, told
        if quant := self.quantisation.get("quant"):
            yield "--quant", quant, _named(recipe)
        if self.n_ctx and recipe.calibration.ctx_size is not None:
            yield "-c", self.n_ctx, recipe.calibration.ctx_size
        if "seed" in self.target and recipe.calibration.seed:
            yield "--seed", self.target["seed"], recipe.calibration.seed


def _of_data(recipe: Recipe, data: Request | None) -> Iterator[Change]:
    theirs = recipe.calibration
    if data is None:
        return
    for name in ("file", "dataset", "domain", "tokens"):
        if theirs.datasets and (given := getattr(data, name)):
            yield flags_of(data)[name].names[0], given, theirs.datasets
    if theirs.datasets and data.text:
        yield "text", tuple(data.text), theirs.datasets
    if data.reading.n_chunks is not None and theirs.chunks is not None:
        yield flags_of(data.reading)["n_chunks"].names[0], data.reading.n_chunks, theirs.chunks


def _of_engine(recipe: Recipe, settings: EngineSettings | None) -> Iterator[Change]:
    for name in settings.given if settings else ():
        if name in recipe.engine.given:
            yield flags_of(settings)[name].names[0], getattr(settings, name), getattr(recipe.engine, name)


def _named(recipe: Recipe) -> tuple[str, ...]:
    made = recipe.quantization
    return (*(["keep"] if made.keep else []), *(variant.suffix for variant in made.variants))


def _worded(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
