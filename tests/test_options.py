"""Options: one table for Python, the command line and recipes."""

import argparse
from collections.abc import Sequence
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from ggufreap import verbs
from ggufreap.cli import VERBS, engine, main
from ggufreap.cli.generated import flags, value
from ggufreap.engine import footprint, subprocess_probe
from ggufreap.errors import InputError
from ggufreap.options.data import Reading, Request
from ggufreap.options.engine import (
    ALL_BLOCKS,
    ALL_LAYERS,
    AUTO_BLOCKS,
    CONTEXT,
    FITTING_BLOCKS,
    FITTING_TEXTS,
    PLACEMENT,
    SEQUENCES,
    EngineSettings,
)
from ggufreap.options.fit import Fit
from ggufreap.options.flag import Flag, flagged, flags_of
from ggufreap.options.judgement import Judgement
from ggufreap.options.output import Output
from ggufreap.options.quantisation import TYPES, Quantisation, Quantiser
from ggufreap.options.target import Target
from ggufreap.recipe import Recipe, load_recipe, reading

FLAGS = flags_of(EngineSettings)
LOADING = (
    "calibrate",
    "verify",
    "preview",
    "frontier",
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
    (("--rpc", "one:50052", "--rpc", "10.0.0.2:1"), "rpc", "one:50052,10.0.0.2:1", "rpc", '"one:50052,10.0.0.2:1"'),
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


def asked_of(verb: str, kind: type, arguments: Sequence[str]) -> Any:
    needed = {
        "prune": ("m.gguf", "--keep", "8"),
        "run": ("tiny", "m.gguf"),
        "quantize": ("m.gguf", "-o", "q.gguf", "--type", "Q8_0"),
    }[verb]
    if kind is Target and {"--ratio", "--keep", "--shrink", "--fit"} & set(arguments):
        needed = needed[:1]
    return value(parser_of(verb).parse_args([*needed, *arguments]), kind)


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
    assert set(FLAGS) - {row[1] for row in SAME} == {"n_ctx", "n_parallel", "blockwise", "n_together"}
    assert {each.name for each in fields(EngineSettings)} - set(FLAGS) == {"exact", "given", "watched"}


def test_how_many_blocks_at_a_time_is_said_where_text_is_calibrated_on(tmp_path: Path) -> None:
    for text, blocks in (("3", 3), ("fit", FITTING_BLOCKS), ("off", ALL_BLOCKS), ("auto", AUTO_BLOCKS)):
        given = parser_of("calibrate").parse_args(["m.gguf", "-o", "S.npz", "--blockwise", text])
        assert engine.settings(given) == EngineSettings(n_ctx=0, blockwise=blocks)
    assert recipe_with(tmp_path, 'blockwise = "fit"').engine == EngineSettings(blockwise=FITTING_BLOCKS)
    assert [verb for verb in LOADING if "--blockwise" in parser_of(verb).format_help()] == ["calibrate", "prune", "run"]


def test_how_many_chunks_at_once_is_said_where_text_is_calibrated_on(tmp_path: Path) -> None:
    for text, count in (("3", 3), ("fit", FITTING_TEXTS)):
        given = parser_of("calibrate").parse_args(["m.gguf", "-o", "S.npz", "-np", text])
        assert engine.settings(given) == EngineSettings(n_ctx=0, n_together=count)
    assert recipe_with(tmp_path, "parallel = 2").engine == EngineSettings(n_together=2)
    assert {"calibrate", "prune"} <= {verb for verb in LOADING if "--parallel" in parser_of(verb).format_help()}
    with pytest.raises(InputError, match=r"-np 257: llama\.cpp runs 256 texts at once at most"):
        EngineSettings(n_together=257)


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

    monkeypatch.setattr(import_module("ggufreap.verbs.run"), "prune", prune)
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


# The same of what is asked for: flag and text, options, field, value, and as a recipe writes it.
ASKED = (
    (("--ratio", "0.3"), Target, "ratio", "0.3", "[target]\nratio = 0.3\n"),
    (("--keep", "9"), Target, "keep", 9, "[target]\nkeep = 9\n"),
    (("--shrink", "0.25"), Target, "shrink", "0.25", "[target]\nshrink = 0.25\n"),
    (("--width-ratio", "0.1"), Target, "width_ratio", "0.1", "[target]\nkeep = 8\nwidth_ratio = 0.1\n"),
    (("--sequential",), Target, "sequential", True, "[target]\nkeep = 8\nsequential = true\n"),
    (("--narrow-memory", "4GB"), Target, "narrow_memory", 4 * 10**9, None),
    (("--fit", "16GB"), Target, "fit", 16 * 10**9, None),
    (("--max-kld", "0.3"), Target, "max_kld", 0.3, None),
    (("--method", "frequency"), Target, "method", "frequency", "[target]\nkeep = 8\nmethod = 'frequency'\n"),
    (("--budget", "5"), Target, "budget", 5, "[target]\nkeep = 8\nmethod = 'best'\nbudget = 5\n"),
    (("--from-imatrix", "I"), Target, "from_imatrix", "I", None),
    (("--blend", "tokens"), Target, "blend", "tokens", "[target]\nkeep = 8\nblend = 'tokens'\n"),
    (("--mtp", "drop"), Target, "mtp", "drop", "[target]\nkeep = 8\nmtp = 'drop'\n"),
    (("--round", "friendly"), Target, "round", "friendly", "[target]\nkeep = 8\nround = 'friendly'\n"),
    (("--seed", "3"), Target, "seed", 3, None),
    (("--quant", "keep", "--quant", "Q6_K"), Quantisation, "quant", ("keep", "Q6_K"), None),
    (("--imatrix", "I"), Quantisation, "imatrix", "I", None),
    (("--process-output",), Quantisation, "process_output", True, None),
    (("--keep-intermediate",), Quantisation, "keep_intermediate", True, None),
    (("--allow-requantize",), Quantisation, "allow_requantize", True, None),
    (("--imatrix-dat",), Quantisation, "imatrix_dat", True, None),
    (("--imatrix", "I"), Quantiser, "imatrix", "I", None),
    (("--tensor-type", "a=Q8_0", "--tensor-type", "b=F16"), Quantiser, "tensor_types", ("a=Q8_0", "b=F16"), None),
    (("--token-embedding-type", "F16"), Quantiser, "token_embedding_type", "F16", None),
    (("--output-tensor-type", "F16"), Quantiser, "output_tensor_type", "F16", None),
    (("--pure",), Quantiser, "pure", True, None),
    (("--allow-requantize",), Quantiser, "allow_requantize", True, None),
    (("--keep-split",), Quantiser, "keep_split", True, None),
    (("-t", "3"), Quantiser, "n_threads", 3, None),
    (("--eval-file", "a", "--eval-file", "b"), Judgement, "files", ("a", "b"), "[evaluation]\nfiles = ['a', 'b']\n"),
    (("--eval-split", "5%"), Judgement, "split", "5%", None),
    (("--eval-chunks", "4"), Judgement, "chunks", 4, "[evaluation]\nchunks = 4\n"),
    (("--eval-ctx-size", "64"), Judgement, "ctx_size", 64, "[evaluation]\nctx_size = 64\n"),
    (("--compare",), Judgement, "compare", True, "[evaluation]\nfiles = ['a']\ncompare = true\n"),
    (("--fail-if", "kld>1"), Judgement, "fail_if", ("kld>1",), "[evaluation]\nfiles = ['a']\nfail_if = ['kld>1']\n"),
    (("--report", "R"), Judgement, "report", "R", None),
    (("--fit-ctx", "100"), Fit, "ctx", 100, None),
    (("--fit-margin", "2GiB"), Fit, "margin", 2 << 30, None),
    (("--mmproj", "V"), Fit, "mmproj", "V", None),
    (("--fast",), Fit, "fast", True, None),
    (("--no-narrow",), Fit, "narrow", False, None),
    (("-o", "O"), Output, "out", "O", None),
    (("--split-max-size", "2G"), Output, "split_max_size", "2G", None),
    (("--keep-split",), Output, "keep_split", True, None),
    (("--dry-run",), Output, "dry_run", True, None),
    (("--no-verify",), Output, "verify", False, None),
    (("--force",), Output, "force", True, None),
    (("-f", "a", "-f", "b"), Request, "file", ("a", "b"), None),
    (("--dataset", "a:5"), Request, "dataset", ("a:5",), "[calibration]\ndatasets = ['a:5']\n"),
    (("--domain", "x=a"), Request, "domain", ("x=a",), None),
    (("--tokens", "I.npy"), Request, "tokens", "I.npy", None),
    (("--text-field", "body"), Request, "text_field", "body", None),
    (("--no-chat-template",), Request, "chat_template", False, None),
    (("--count", "assistant"), Reading, "count", "assistant", None),
    (("--no-packing",), Reading, "packing", False, None),
    (("--parse-special",), Reading, "parse_special", True, None),
    (("--chunks", "7"), Reading, "n_chunks", 7, "[calibration]\nchunks = 7\n"),
)
TABLES = {Target: ("target", {"keep": 8}), Judgement: ("evaluation", {}), Request: ("calibration", {})}
TABLES[Reading] = TABLES[Request]
KINDS = (Target, Fit, Quantisation, Quantiser, Judgement, Output, Request, Reading)
VERB_OF = {kind: "quantize" if kind is Quantiser else "prune" for kind in KINDS}


@pytest.mark.parametrize(("arguments", "kind", "field", "value", "written"), ASKED)
def test_what_is_asked_for_is_one_in_all_three(
    arguments: Sequence[str], kind: Any, field: str, value: Any, written: str | None, tmp_path: Path
) -> None:
    usual = {"keep": 8} if kind is Target and field not in ("ratio", "keep", "shrink", "fit") else {}
    expected = kind(**usual, **{field: value})
    assert expected != kind(**usual)
    assert asked_of(VERB_OF[kind], kind, arguments) == expected
    flag = flags_of(kind)[field]
    if written is None:
        return
    path, (table, _) = tmp_path / "r.toml", TABLES[kind]
    more = "" if table == "target" else "[target]\nkeep = 8\n"
    path.write_text(f"{more}{written}[quantization]\nkeep = true\n")
    found = getattr(getattr(load_recipe(path), table), flag.key)
    assert found == value
    assert type(found) is type(value)


def test_every_field_is_asked_for_by_flag() -> None:
    for kind in KINDS:
        plain = {"given"} | ({"text", "reading"} if kind is Request else set())
        with_flag = set(flags_of(kind))
        assert {each.name for each in fields(kind)} - with_flag == plain | {"given"}
        tested = {row[2] for row in ASKED if row[1] is kind}
        assert with_flag - tested == ({"seed"} if kind is Request else set())  # the flag of Target


def test_what_a_recipe_can_say_has_a_flag_and_the_same_default() -> None:
    said = {(kind, flags_of(kind)[field].key) for _, kind, field, _, written in ASKED if written}
    for kind, (table, needed) in TABLES.items():
        recipe_kind = type(getattr(load_recipe("tiny"), table))
        made = recipe_kind(**needed)
        for name, flag in flags_of(kind).items():
            if (kind, flag.key) in said and (name, kind) != ("ctx_size", Judgement):  # not as -c: it has none
                assert getattr(made, flag.key) == getattr(kind(**needed), name), (kind, name)
    keys = {
        "target": {"ratio", "keep", "shrink", "width_ratio", "sequential", "method", "budget", "blend", "mtp"}
        | {"round"},
        "evaluation": {key for k, key in said if k is Judgement},
    }
    for table, expected in keys.items():
        assert set(reading._KINDS[table]) == expected


def test_a_variant_of_a_recipe_says_types_as_the_flags_do(tmp_path: Path) -> None:
    keys = {flag.key: name for name, flag in flags_of(Quantiser).items() if flag.group == TYPES}
    assert set(reading._VARIANT) == {"type", "name"} | set(keys)
    for key, written, text in (
        ("tensor_types", "['a=Q8_0', 'b=Q5_0']", ("a=Q8_0", "b=Q5_0")),
        ("token_embedding_type", "'F16'", "F16"),
        ("output_tensor_type", "'F16'", "F16"),
        ("pure", "true", True),
    ):
        variants = []
        for more in ("", f"{key} = {written}\n"):
            path = tmp_path / "r.toml"
            path.write_text(f"[target]\nkeep = 8\n[[quantization.variants]]\ntype = 'Q4_0'\n{more}")
            variants += load_recipe(path).quantization.variants
        usual, said = (variant.request() for variant in variants)
        request = import_module("ggufreap.verbs.quantize")._request
        assert request("Q4_0", Quantiser()) == usual != said
        assert request("Q4_0", Quantiser(**{keys.pop(key): text})) == said
    assert not keys


def test_defaults_of_the_command_line_are_those_of_the_options() -> None:
    for kind in KINDS:
        assert asked_of(VERB_OF[kind], kind, ()) == (Target(keep=8) if kind is Target else kind())


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


def test_the_house_s_field_is_a_flag_and_a_key() -> None:
    text = (Path(__file__).parents[1] / "ggufreap" / "README.md").read_text()
    added = text.split("@@ class EngineSettings\n")[1].split("```")[0]
    lines = "\n".join(line.removeprefix("+") for line in added.splitlines())
    names = vars(import_module("ggufreap.options.engine")) | {"flagged": flagged, "Flag": Flag}
    source = f"@dataclass(frozen=True)\nclass EngineSettings(EngineSettings):\n{lines}\n"
    exec(source, names := dict(names))
    kind = names["EngineSettings"]
    parser = argparse.ArgumentParser()
    flags(kind(), "context")(parser)
    assert value(parser.parse_args(["--rope-freq-base", "10000"]), kind) == kind(rope_freq_base=10000.0)
    assert value(parser.parse_args([]), kind) == kind()
    assert flags_of(kind)["rope_freq_base"].key == "rope_freq_base"
