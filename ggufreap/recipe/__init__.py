"""Recipes: the whole job, from calibration to what the result is worth, as one TOML file.

A recipe is a name that comes with ggufreap (`recipes/*.toml`) or the path of a file. Most keys have a default.
"""

from ggufreap.recipe.reading import load_quantization, load_recipe, recipe_names
from ggufreap.recipe.values import Calibration, Evaluation, Quantization, Recipe, Target, Variant

__all__ = [
    "Calibration",
    "Evaluation",
    "Quantization",
    "Recipe",
    "Target",
    "Variant",
    "load_quantization",
    "load_recipe",
    "recipe_names",
]
