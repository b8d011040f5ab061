"""Recipes from TOML: every key has one type, and what is unknown is refused with the key that was probably meant.

The types are checked here and not by msgspec, which names neither the table of a key nor the key that was meant.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from ggufreap.decoding import load_toml
from ggufreap.errors import InputError
from ggufreap.options.flag import Options
from ggufreap.recipe.engine import read_engine
from ggufreap.recipe.values import Calibration, Evaluation, Quantization, Recipe, Target, Variant, check_known
from ggufreap.showing import excerpt

_MOST = 2**31 - 1

_NUMBER, _TEXT, _FLAG = "a whole number from {} to 2147483647", "a string", "true or false"
_TEXTS, _TABLES, _RATIO = "a list of strings", "a list of tables", "a number"
_LEAST = {"seed": 0, "budget": 0}
_KINDS = {
    "calibration": {"datasets": _TEXTS, "ctx_size": _NUMBER, "chunks": _NUMBER, "seed": _NUMBER},
    "target": dict.fromkeys(("ratio", "shrink", "width_ratio"), _RATIO)
    | dict.fromkeys(("method", "blend", "mtp", "round"), _TEXT)
    | {"sequential": _FLAG, "keep": _NUMBER, "budget": _NUMBER},
    "quantization": {"variants": _TABLES, "keep": _FLAG, "keep_imatrix": _FLAG, "imatrix_dat": _FLAG},
    "evaluation": {"files": _TEXTS, "chunks": _NUMBER, "ctx_size": _NUMBER, "compare": _FLAG, "fail_if": _TEXTS},
}
_VARIANT = {
    "type": _TEXT,
    "name": _TEXT,
    "tensor_types": _TEXTS,
    "token_embedding_type": _TEXT,
    "output_tensor_type": _TEXT,
    "pure": _FLAG,
}


def recipe_names() -> tuple[str, ...]:
    """The recipes that come with ggufreap."""
    return tuple(sorted(path.stem for path in _folder().glob("*.toml")))


def recipe_text(name: str) -> str:
    """A recipe that comes with ggufreap, as it is written; raises InputError for another name."""
    check_known(name, "recipe", recipe_names())
    return (_folder() / f"{name}.toml").read_text(encoding="utf-8")


def recipe_summary(name: str) -> str:
    """The first line of such a recipe, which says what it is for."""
    return recipe_text(name).splitlines()[0].removeprefix("# ").rstrip(":")


def load_recipe(name_or_path: str | Path) -> Recipe:
    """A recipe that comes with ggufreap, by its name, or one in a file; raises InputError, naming the file and key."""
    path, tables = _tables(name_or_path)
    return Recipe(
        path.name.removesuffix(".toml"),
        _made(path, "calibration", Calibration, tables["calibration"]),
        _made(path, "target", Target, tables["target"]),
        _made(path, "quantization", Quantization, tables["quantization"]),
        _made(path, "evaluation", Evaluation, tables["evaluation"]),
        read_engine(path, tables["engine"]),
    )


def load_quantization(name_or_path: str | Path) -> Quantization:
    """The same of its [quantization] alone, whatever is missing from the other tables."""
    path, tables = _tables(name_or_path)
    made: Quantization = _made(path, "quantization", Quantization, tables["quantization"])
    return made


def _tables(name_or_path: str | Path) -> tuple[Path, dict[str, dict[str, Any]]]:
    """The recipe's file, and its tables: values of the right types, [engine] as it stands."""
    path = _resolved(name_or_path)
    tables = load_toml(path, "a recipe", f"known recipes: {', '.join(recipe_names())}")
    for name, table in tables.items():
        check_known(name, f"{path}: table" if isinstance(table, dict) else f"{path}: key", (*_KINDS, "engine"))
    checked = {name: _checked(path, name, tables.get(name, {}), kinds) for name, kinds in _KINDS.items()}
    variants = checked["quantization"].get("variants", ())
    checked["quantization"]["variants"] = tuple(
        _variant(path, f"quantization.variants[{index}]", table) for index, table in enumerate(variants)
    )
    return path, checked | {"engine": tables.get("engine", {})}


def _folder() -> Path:
    """In a wheel the recipes lie inside the package, in a checkout beside it."""
    installed = Path(__file__).parents[1] / "recipes"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "recipes"


def _resolved(name_or_path: str | Path) -> Path:
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(".toml") or Path(text).name != text:
        return Path(text)
    check_known(text, "recipe", recipe_names(), "; a file of your own ends in .toml")
    return _folder() / f"{text}.toml"


def _variant(path: Path, where: str, table: Any) -> Variant:
    values = _checked(path, where, table, _VARIANT)
    if "tensor_types" in values:
        pairs = [text.rpartition("=") for text in values["tensor_types"]]
        values["tensor_types"] = tuple((pattern, kind) for pattern, _, kind in pairs)
    made: Variant = _made(path, where, Variant, values)
    return made


def _checked(path: Path, where: str, table: Any, kinds: Mapping[str, str]) -> dict[str, Any]:
    """The values of a table, lists as tuples, each of the type that its key has."""
    if not isinstance(table, dict):
        raise InputError(f"{path}: {where} is {excerpt(table)}; it must be a table, write it as [{where}]")
    values = {}
    for key, value in table.items():
        check_known(key, f"{path}: key {where}.", kinds)
        if not _fits(key, value, kinds[key]):
            rule = kinds[key].format(_LEAST.get(key, 1))
            raise InputError(f"{path}: {where}.{key} is {excerpt(value)}; it must be {rule}, correct it")
        ratio = kinds[key] == _RATIO
        values[key] = str(value) if ratio else tuple(value) if isinstance(value, list) else value
    return values


def _fits(key: str, value: Any, kind: str) -> bool:
    match kind:
        case "true or false":
            return isinstance(value, bool)
        case "a string":
            return isinstance(value, str)
        case "a number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "a list of strings":
            return isinstance(value, list) and all(isinstance(item, str) for item in value)
        case "a list of tables":
            return isinstance(value, list) and all(isinstance(item, dict) for item in value)
    return isinstance(value, int) and not isinstance(value, bool) and _LEAST.get(key, 1) <= value <= _MOST


def _made(path: Path, where: str, kind: Any, values: Mapping[str, Any]) -> Any:
    for field in fields(kind):
        if field.default is MISSING and field.name not in values:
            raise InputError(f"{path}: {where}.{field.name} is missing; every such table has one, add it")
    told = {"given": tuple(values)} if issubclass(kind, Options) else {}
    try:
        return kind(**values, **told)
    except InputError as error:
        raise InputError(f"{path}: {where}: {error}") from error
