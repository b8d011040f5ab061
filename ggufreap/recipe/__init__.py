"""Recipes: the whole job, from calibration to what the result is worth, as one TOML file.

A recipe is a name that comes with ggufreap (`recipes/*.toml`) or the path of a file. Most keys have a default.
"""

from ggufreap.recipe.overriding import Overrides
from ggufreap.recipe.reading import load_quantization, load_recipe, recipe_names, recipe_summary, recipe_text
from ggufreap.recipe.values import Calibration, Evaluation, Quantization, Recipe, Target, Variant

__all__ = [
    "Calibration",
    "Evaluation",
    "Overrides",
    "Quantization",
    "Recipe",
    "Target",
    "Variant",
    "load_quantization",
    "load_recipe",
    "recipe_names",
    "recipe_summary",
    "recipe_text",
]
