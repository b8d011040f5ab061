"""The options of llama.cpp: one table for Python, the command line and recipes."""

import argparse
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from ggufreap import verbs
from ggufreap.cli import VERBS, engine, main
from ggufreap.engine import footprint, subprocess_probe
from ggufreap.errors import InputError
from ggufreap.options.engine import (
    ALL_BLOCKS,
    ALL_LAYERS,
    AUTO_BLOCKS,
    CONTEXT,
    FITTING_BLOCKS,
    PLACEMENT,
    SEQUENCES,
    EngineSettings,
)
from ggufreap.options.flag import flags_of
from ggufreap.recipe import Recipe, load_recipe
from ggufreap.verbs import recipes

FLAGS = flags_of(EngineSettings)
LOADING = (
    "calibrate",
    "verify",
    "preview",
    "eval",
    "report",
    "probe",
    "tasks",
    "bench",
    "prune",
    "run",
    "demo",
    "doctor",
)
# A flag, as Python and a recipe know it: flag and text, field, value, key, what TOML writes.
SAME = (
    (("-ub", "64"), "n_ubatch", 64, "ubatch_size", "64"),
    (("-b", "64"), "n_batch", 64, "batch_size", "64"),
    (("-t", "3"), "n_threads", 3, "threads", "3"),
    (("-tb", "5"), "n_threads_batch", 5, "threads_batch", "5"),
    (("-ngl", "7"), "n_gpu_layers", 7, "n_gpu_layers", "7"),
    (("--gpu-layers", "all"), "n_gpu_layers", ALL_LAYERS, "n_gpu_layers", '"all"'),
    (("-dev", "none"), "device", "none", "device", '"none"'),
    (("-ts", "3,1"), "tensor_split", "3,1", "tensor_split", '"3,1"'),
    (("-mg", "1"), "main_gpu", 1, "main_gpu", "1"),
    (("-sm", "row"), "split_mode", "row", "split_mode", '"row"'),
    (("-ot", "a=CPU", "-ot", "b=CPU"), "override_tensor", "a=CPU,b=CPU", "override_tensor", '"a=CPU,b=CPU"'),
    (("-cmoe",), "cpu_moe", True, "cpu_moe", "true"),
    (("-ncmoe", "2"), "n_cpu_moe", 2, "n_cpu_moe", "2"),
    (("--no-mmap",), "mmap", False, "mmap", "false"),
    (("--mlock",), "mlock", True, "mlock", "true"),
    (("--repack",), "repack", True, "repack", "true"),
    (("-fa", "off"), "flash_attn", "off", "flash_attn", '"off"'),
    (("-ctk", "q8_0"), "cache_type_k", "q8_0", "cache_type_k", '"q8_0"'),
    (("-ctv", "f32"), "cache_type_v", "f32", "cache_type_v", '"f32"'),
)


def parser_of(verb: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    for add in VERBS[verb][2]:
        add(parser)
    return parser


def settings_of(arguments: Sequence[str]) -> EngineSettings:
    return engine.settings(parser_of("eval").parse_args(["m.gguf", *arguments]))


def recipe_with(folder: Path, engine_table: str) -> Recipe:
    path = folder / "r.toml"
    path.write_text(f"[target]\nratio = 0.25\n[quantization]\nkeep = true\n[engine]\n{engine_table}\n")
    return load_recipe(path)


@pytest.mark.parametrize(("arguments", "field", "value", "key", "written"), SAME)
def test_flag_field_and_recipe_key_are_one(
    arguments: Sequence[str], field: str, value: Any, key: str, written: str, tmp_path: Path
) -> None:
    expected = EngineSettings(**{field: value})
    assert expected != EngineSettings()
    assert settings_of(arguments) == expected
    assert recipe_with(tmp_path, f"{key} = {written}").engine == expected


def test_every_field_with_a_flag_is_tested_and_no_other_can_be_given() -> None:
    assert set(FLAGS) - {row[1] for row in SAME} == {"n_ctx", "n_parallel", "blockwise"}
    assert {each.name for each in fields(EngineSettings)} - set(FLAGS) == {"exact", "watched"}


def test_how_many_blocks_at_a_time_is_said_where_text_is_calibrated_on(tmp_path: Path) -> None:
    for text, value in (("3", 3), ("fit", FITTING_BLOCKS), ("off", ALL_BLOCKS), ("auto", AUTO_BLOCKS)):
        given = parser_of("calibrate").parse_args(["m.gguf", "-o", "S.npz", "--blockwise", text])
        assert engine.settings(given) == EngineSettings(n_ctx=0, blockwise=value)
    assert recipe_with(tmp_path, 'blockwise = "fit"').engine == EngineSettings(blockwise=FITTING_BLOCKS)
    assert [verb for verb in LOADING if "--blockwise" in parser_of(verb).format_help()] == ["calibrate", "prune"]


@pytest.mark.parametrize("verb", LOADING)
def test_every_verb_that_loads_a_model_can_place_it(verb: str) -> None:
    known = parser_of(verb).format_help()
    for flag in FLAGS.values():
        if flag.group == PLACEMENT:
            assert all(name in known for name in flag.names), (verb, flag.names)


def test_the_default_stands_in_one_place() -> None:
    assert settings_of([]) == EngineSettings()
    usual = EngineSettings()
    for name, flag in FLAGS.items():
        if "{}" in flag.help and flag.group not in (CONTEXT, SEQUENCES):
            assert f"({getattr(usual, name)})" in " ".join(parser_of("eval").format_help().split())


def test_without_a_table_a_recipe_has_the_defaults() -> None:
    assert load_recipe("q4_k_m").engine == EngineSettings()


def test_a_recipe_runs_as_its_table_says_and_flags_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked(Exception):
        pass

    def prune(*_: object, settings: EngineSettings, **_others: object) -> None:
        raise Asked(settings)

    monkeypatch.setattr(recipes, "prune", prune)
    recipe_with(tmp_path, 'threads = 3\nn_cpu_moe = 2\nflash_attn = "off"')
    path = str(tmp_path / "r.toml")
    table = EngineSettings(n_ctx=0, n_threads=3, n_cpu_moe=2, flash_attn="off")
    for arguments, expected in (
        ((), table),
        (("-t", "5", "-ub", "64"), replace(table, n_threads=5, n_ubatch=64)),
    ):
        with pytest.raises(Asked) as asked:
            main(["run", path, "m.gguf", *arguments])
        assert asked.value.args == (expected,)
    with pytest.raises(Asked) as asked:
        verbs.run(path, "m.gguf")
    assert asked.value.args == (table,)
    with pytest.raises(Asked) as asked:
        verbs.run(path, "m.gguf", settings=EngineSettings(n_threads=1))
    assert asked.value.args == (EngineSettings(n_ctx=0, n_threads=1),), "settings take the table's place"


BAD_VALUES = {
    "split mode": ({"split_mode": "rows"}, "-sm: 'rows' is not known; choose one of none, layer, row, tensor"),
    "cache type": ({"cache_type_k": "q3_K"}, "-ctk: 'q3_K' is not known; choose one of f32, f16"),
    "flash attention": ({"flash_attn": "maybe"}, "-fa: 'maybe' is not known"),
    "override without buffer": ({"override_tensor": "exps"}, "-ot: 'exps' is not PATTERN=BUFFER"),
    "override without pattern": ({"override_tensor": "a=CPU,=CPU"}, "-ot: .* is not PATTERN=BUFFER"),
    "override with a broken pattern": ({"override_tensor": "(=CPU"}, r"-ot: '\(' is not a regular expression"),
    "shares of nothing": ({"tensor_split": "0,0"}, "-ts: '0,0' is not a list of proportions"),
    "shares below nothing": ({"tensor_split": "3,-1"}, "-ts: '3,-1' is not a list of proportions"),
    "shares as words": ({"tensor_split": "3,x"}, "-ts: '3,x' is not a list of proportions"),
    "an empty device": ({"device": "CUDA0,"}, "-dev: 'CUDA0,' holds an empty name"),
    "layers": ({"n_gpu_layers": -3}, "-ngl: '-3' is not a number from -2 to 2147483647 or auto or all"),
    "batch": ({"n_batch": -1}, "-b: '-1' is not a number from 1"),
}


@pytest.mark.parametrize(("values", "message"), BAD_VALUES.values(), ids=BAD_VALUES.keys())
def test_bad_values_are_refused_wherever_they_come_from(
    values: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=message):
        EngineSettings(**values)
    ((name, value),) = values.items()
    with pytest.raises(SystemExit, match="2"):
        settings_of([f"{next(n for n in FLAGS[name].names if n.startswith('--'))}={value}"])
    assert FLAGS[name].names[-1] in capsys.readouterr().err


BAD_TABLES = {
    "unknown": ("ngl = 1", "key engine.ngl is not known"),
    "of the calibration": ("ctx_size = 512", "key engine.ctx_size is not known"),
    "text for a number": ('threads = "4"', "engine.threads is '4'; it must be a whole number"),
    "a number for a switch": ("cpu_moe = 1", "engine.cpu_moe is 1; it must be true or false"),
    "a switch for a number": ("threads = true", "engine.threads is True; it must be a whole number"),
    "unknown word": ('n_gpu_layers = "most"', "engine.n_gpu_layers: 'most' is not a number"),
    "malformed": ('override_tensor = "exps"', "engine.override_tensor: 'exps' is not PATTERN=BUFFER"),
}


@pytest.mark.parametrize(("table", "message"), BAD_TABLES.values(), ids=BAD_TABLES.keys())
def test_bad_tables_are_refused_with_file_and_key(table: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as failure:
        recipe_with(tmp_path, table)
    assert "r.toml" in str(failure.value)


def test_batches_are_what_was_asked_for() -> None:
    for asked, call, graph in (
        (EngineSettings(), 512, 512),
        (EngineSettings(n_ctx=256), 256, 256),
        (EngineSettings(n_ubatch=64), 64, 64),
        (EngineSettings(n_ubatch=64, n_batch=256), 256, 64),
        (EngineSettings(n_ubatch=64, n_batch=32), 32, 32),
        (EngineSettings(n_ctx=100, n_ubatch=64, n_batch=256), 100, 64),
    ):
        assert asked.batches(causal=True) == (call, graph), asked
        assert asked.graph_tokens == graph


def test_exactness_wins() -> None:
    asked = EngineSettings(flash_attn="on", cache_type_k="q8_0", cache_type_v="q4_0")
    assert asked.attention == ("q8_0", "q4_0", "on")
    assert EngineSettings(**{**vars(asked), "exact": True}).attention == ("f32", "f32", "off")


def test_processes_of_their_own_get_all_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import json

    asked = EngineSettings(override_tensor="a=CPU", tensor_split="1,2", mmap=False, cpu_moe=True)
    assert EngineSettings(**json.loads(json.dumps(vars(asked)))) == asked
    assert {footprint.EngineSettings, subprocess_probe.EngineSettings} == {EngineSettings}
