"""Recipes: what the shipped ones say, what is refused, and one of them from end to end."""

import json
import math
import re
import tomllib
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from asked import prune
from gguf import GGMLQuantizationType as Kind
from tiny_gguf import qwen3moe

from ggufreap import imatrix as matrices
from ggufreap.cli import main
from ggufreap.container import open_gguf, type_name
from ggufreap.errors import InputError
from ggufreap.options.data import Reading, Request
from ggufreap.options.engine import EngineSettings
from ggufreap.options.output import Output
from ggufreap.options.quantisation import Quantisation
from ggufreap.options.target import Target
from ggufreap.quantization import parse_tensor_type
from ggufreap.recipe import Overrides, Recipe, Variant, load_recipe, recipe_names
from ggufreap.verbs import Pruned, run

FOLDER = Path(__file__).parents[1] / "recipes"
GENERAL = ("q4_k_m", "iq4_xs", "iq3_xxs-experts", "q4_k_m-q8_0-critical", "edges-high", "tiny")
PUBLISHED = tuple(f"reap-qwen3.5-35b-a3b-{percent}" for percent in (15, 20, 32))
KEEPING = "[target]\nkeep = 12\n[quantization]\nkeep = true\n"
RECIPES = tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))

SETTINGS = EngineSettings(n_threads=1)

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "mine.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refusal(path: Path | str) -> str:
    with pytest.raises(InputError) as caught:
        load_recipe(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- the shipped recipes ---------------------------------------------------------------------------------------------


def test_the_shipped_recipes_are_found_by_name() -> None:
    assert recipe_names() == RECIPES == tuple(sorted((*GENERAL, *PUBLISHED)))


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_says_what_its_file_says(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe == load_recipe(FOLDER / f"{name}.toml") == load_recipe(str(FOLDER / f"{name}.toml"))
    said = tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    variants = said["quantization"].pop("variants", [])
    for table, keys in said.items():
        for key, value in keys.items():
            found = getattr(getattr(recipe, table), key)
            assert found == (str(value) if key == "ratio" else tuple(value) if isinstance(value, list) else value)
    assert len(variants) == len(recipe.quantization.variants)
    for keys, variant in zip(variants, recipe.quantization.variants, strict=True):
        rules = tuple("=".join(pair) for pair in variant.tensor_types)
        assert rules == tuple(keys.pop("tensor_types", ()))
        assert {key: getattr(variant, key) for key in keys} == keys


@pytest.mark.parametrize("name", RECIPES)
def test_every_value_in_a_shipped_recipe_has_its_reason(name: str) -> None:
    lines = (FOLDER / f"{name}.toml").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    for before, line in zip(["", *lines], lines, strict=False):
        if re.match(r"\w+ = ", line):
            assert before.startswith("# "), f"{name}: {line}"


def removed(recipe: Recipe) -> int:
    return math.floor(256 * Decimal(recipe.target.ratio)) if recipe.target.ratio else 256 - (recipe.target.keep or 0)


def test_the_published_builds() -> None:
    fifteen, twenty, thirty_two = map(load_recipe, PUBLISHED)
    assert [256 - removed(recipe) for recipe in (fifteen, twenty, thirty_two)] == [218, 205, 175]
    assert fifteen.calibration.datasets == ("NeelNanda/pile-10k(train[:256])",)
    assert fifteen.quantization.variants == (Variant("Q8_0", "Q8_0-for-MLX-q8"),)
    thoughts = (f"open-r1/Mixture-of-Thoughts[{domain}]:250" for domain in ("code", "math", "science"))
    assert twenty.calibration.datasets == ("theblackcat102/evol-codealpaca-v1:250", *thoughts)
    assert (twenty.calibration.ctx_size, twenty.calibration.seed) == (4096, 42)
    assert twenty.quantization.keep
    larger, smaller = thirty_two.quantization.variants
    assert [(each.type, each.name) for each in (larger, smaller)] == [
        ("Q4_K_M", "Q4_K_M-for-IQ4_K_M"),
        ("Q4_K_S", "Q4_K_S-for-IQ4_K_S"),
    ]
    assert larger.tensor_types == (*smaller.tensor_types, ("ffn_down_exps", "Q5_K"))
    made = thirty_two.quantization
    assert made.keep
    assert made.keep_imatrix
    assert made.imatrix_dat
    assert thirty_two.calibration.ctx_size == 1024
    assert not thirty_two.calibration.datasets


@pytest.mark.native
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_build_is_foreseen_without_a_network(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    model = qwen3moe(tmp_path / "Tiny-F16.gguf", n_embd=256, n_ff=256, n_expert=256, n_block=1, types=Kind.F16)
    foreseen = run(name, model, output=Output(tmp_path / "out", dry_run=True))
    recipe = load_recipe(name)
    assert foreseen.plan.n_keep == 256 - removed(recipe)
    suffixes = [variant.suffix for variant in recipe.quantization.variants]
    assert [made.paths[0].name.partition("-REAP-")[2][5:-5] for made in foreseen.quantized] == suffixes
    said = [record for record in caplog.records if "the hub is out of reach" in record.message]
    assert len(said) == bool(recipe.calibration.datasets)
    assert [record.name for record in foreseen.plan.datasets] == [
        text.partition("[")[0].partition("(")[0].partition(":")[0] for text in recipe.calibration.datasets
    ]
    assert not (tmp_path / "out").exists()


# What decides on types in Qwen3.5-35B-A3B, by the names that its converter writes, and the type each shall have.
@pytest.mark.parametrize(
    ("recipe", "tensor", "kind"),
    [
        ("q4_k_m-q8_0-critical", "blk.3.attn_q.weight", "Q8_0"),
        ("q4_k_m-q8_0-critical", "blk.3.attn_qkv.weight", "Q8_0"),
        ("q4_k_m-q8_0-critical", "blk.3.ssm_out.weight", "Q8_0"),
        ("q4_k_m-q8_0-critical", "blk.3.ffn_down_shexp.weight", "Q8_0"),
        ("q4_k_m-q8_0-critical", "blk.3.ffn_down_exps.weight", "Q5_K"),
        ("q4_k_m-q8_0-critical", "blk.3.ffn_up_exps.weight", None),
        ("iq3_xxs-experts", "blk.3.ffn_gate_up_exps.weight", "IQ3_XXS"),
        ("iq3_xxs-experts", "blk.3.ffn_down_shexp.weight", "Q8_0"),
        ("edges-high", "blk.1.ffn_up_exps.weight", "Q6_K"),
        ("edges-high", "blk.38.ffn_up_exps.weight", "Q6_K"),
        ("edges-high", "blk.39.attn_q.weight", "Q8_0"),
        ("edges-high", "blk.3.attn_q.weight", None),
        ("edges-high", "blk.10.ffn_up_exps.weight", None),
        ("edges-high", "blk.40.ffn_up_exps.weight", None),
    ],
)
def test_the_rules_of_the_shipped_variants(recipe: str, tensor: str, kind: str | None) -> None:
    variant = load_recipe(recipe).quantization.variants[0].of(40)
    assert next((named for pattern, named in variant.tensor_types if re.search(pattern, tensor)), None) == kind


# --- placeholders ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "n_block", "expanded"),
    [
        ("{first}", 40, "(?:0)"),
        ("{last}", 40, "(?:39)"),
        ("{first3}", 40, "(?:0|1|2)"),
        ("{last3}", 40, "(?:37|38|39)"),
        ("{last3}", 2, "(?:0|1)"),
        ("a{2}", 40, "a{2}"),
    ],
)
def test_placeholders_are_block_numbers(pattern: str, n_block: int, expanded: str) -> None:
    variant = Variant("Q4_K_M", tensor_types=((pattern, "Q6_K"),)).of(n_block)
    assert variant.tensor_types == ((expanded, "Q6_K"),)
    assert parse_tensor_type(f"{expanded}=Q6_K")


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[target]\nratoi = 0.2\n", ["target.ratoi is not known", "did you mean ratio?"]),
        ("[targt]\nratio = 0.2\n", ["table 'targt' is not known", "did you mean target?"]),
        ("[evaluatoin]\nppl = true\n", ["table 'evaluatoin' is not known"]),
        ("ratio = 0.2\n", ["key 'ratio' is not known"]),
        ("target = 3\n", ["target is 3", "must be a table"]),
        ("[target]\nratio = '0.2'\n", ["target.ratio is '0.2'", "must be a number"]),
        ("[target]\nratio = true\n", ["target.ratio is True", "must be a number"]),
        ("[target]\nratio = 1.5\n", ["target: ratio 1.5 is not in [0, 1)"]),
        ("[target]\nratio = nan\n", ["target: ratio nan"]),
        ("[target]\nkeep = 12.0\n", ["target.keep is 12.0", "a whole number from 1"]),
        ("[target]\nkeep = 0\n", ["target.keep is 0", "a whole number from 1"]),
        ("[target]\nkeep = 12\nratio = 0.2\n", ["of ratio, keep and shrink several are given"]),
        ("", ["or none is"]),
        ("[target]\nkeep = 12\nmethod = 'repa'\n", ["method 'repa' is not known", "did you mean reap?"]),
        ("[target]\nkeep = 12\nmtp = 'mirrored'\n", ["mtp 'mirrored'", "did you mean mirror?"]),
        (KEEPING + "[calibration]\nctx_size = '64'\n", ["calibration.ctx_size is '64'"]),
        (KEEPING + "[calibration]\nseed = -1\n", ["calibration.seed is -1", "from 0"]),
        (KEEPING + "[calibration]\ndatasets = 'a'\n", ["calibration.datasets is 'a'", "a list of strings"]),
        (KEEPING + "keep_imatrix = 1\n", ["quantization.keep_imatrix is 1", "true or false"]),
        (KEEPING + "variants = ['Q4_K_M']\n", ["quantization.variants is ['Q4_K_M']", "a list of tables"]),
        ("[target]\nkeep = 12\n", ["quantization: there are no variants and keep is false"]),
        (KEEPING + "[[quantization.variants]]\n", ["quantization.variants[0].type is missing"]),
        (KEEPING + "[[quantization.variants]]\ntyp = 'Q8_0'\n", ["variants[0].typ is not known", "did you mean type?"]),
        (KEEPING + "[[quantization.variants]]\ntype = 'Q4_K_N'\n", ["variants[0]: quantisation 'Q4_K_N'", "did you"]),
        (KEEPING + "[[quantization.variants]]\ntype = 'Q8_0'\nname = 'a/b'\n", ["name 'a/b' cannot end a file name"]),
        (KEEPING + "[[quantization.variants]]\ntype = 'Q8_0'\ntensor_types = ['a']\n", ["has no pattern"]),
        (KEEPING + "[[quantization.variants]]\ntype = 'Q8_0'\ntensor_types = ['a=Q9']\n", ["tensor type 'Q9'"]),
        (KEEPING + "[[quantization.variants]]\ntype = 'Q8_0'\ntensor_types = ['{fist}=Q8_0']\n", ["holds {fist}"]),
        (KEEPING + "[[quantization.variants]]\ntype = 'Q8_0'\noutput_tensor_type = 'Q9'\n", ["tensor type 'Q9'"]),
        (KEEPING + "[[quantization.variants]]\ntype = 'q8_0'\n" "[[quantization.variants]]\ntype = 'Q8_0'\n",
         ["2 variants are named q8_0"]),
        (KEEPING + "[evaluation]\nfiles = 'a.txt'\n", ["evaluation.files is 'a.txt'", "a list of strings"]),
        (KEEPING + "[evaluation]\nfiles = ['a.txt', 'b/a.txt']\n", ["evaluation: several files are named a"]),
        (KEEPING + "[evaluation]\nfiles = ['code=']\n", ["evaluation: files holds 'code='"]),
        (KEEPING + "[evaluation]\nchunks = 0\n", ["evaluation.chunks is 0"]),
        (KEEPING + "[evaluation]\ncompare = true\n", ["evaluation: compare and fail_if judge by held-out text"]),
        (KEEPING + "[evaluation]\nfiles = ['a']\nfail_if = ['x']\n", ["evaluation: --fail-if 'x' is not understood"]),
        ("[target\n", ["is not TOML"]),
    ],
)  # fmt: skip
def test_what_a_recipe_cannot_say(write: Write, text: str, parts: list[str]) -> None:
    message = refusal(write(text))
    for part in ["mine.toml", *parts]:
        assert part in message


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    message = refusal("q4_k_s")
    assert "did you mean q4_k_m?" in message
    assert all(name in message for name in RECIPES)
    assert "cannot read" in refusal(tmp_path / "none.toml")


def test_what_is_left_out_has_a_default(write: Write) -> None:
    recipe = load_recipe(write(KEEPING))
    assert (recipe.name, recipe.target.method, recipe.target.mtp) == ("mine", "rank_average", "mirror")
    assert (recipe.calibration.ctx_size, recipe.calibration.chunks, recipe.quantization.variants) == (None, None, ())


def test_held_out_texts_are_named(write: Write) -> None:
    recipe = load_recipe(write(KEEPING + "[evaluation]\nfiles = ['law=/data/x=1.txt', 'data/wiki.txt']\nchunks = 8\n"))
    assert recipe.evaluation.texts == {"law": Path("/data/x=1.txt"), "wiki": Path("data/wiki.txt")}
    assert (recipe.evaluation.chunks, recipe.evaluation.ctx_size) == (8, 512)
    empty = load_recipe(write(KEEPING + "[evaluation]\n"))
    assert empty.evaluation.texts == {}


@pytest.mark.parametrize("data", [None, Request(reading=Reading(n_chunks=8))])
def test_the_data_sets_of_a_recipe_are_looked_for(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Request | None
) -> None:
    """Also where no more is said than how to read."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"data set theblackcat102/evol-codealpaca-v1: the hub is out of reach"):
        run("reap-qwen3.5-35b-a3b-20", model, data, output=Output(tmp_path))


# --- from end to end -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "Tiny-Q8_0.gguf"
    qwen3moe(path, n_embd=256, n_ff=256, types=Kind.Q8_0)
    path.with_name("text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 60)
    return path


@pytest.fixture(scope="module")
def made(model: Path) -> Pruned:
    return run(
        "tiny", model, data=str(model.with_name("text.txt")), output=Output(model.with_name("out")), settings=SETTINGS
    )


@pytest.mark.native
def test_tiny_makes_what_it_says(made: Pruned) -> None:
    names = {path.name for path in made.plan_path.parent.iterdir()}
    stem = "Tiny-RANK-AVERAGE-0.25"
    files = {f"{stem}-{end}.gguf" for end in ("Q8_0", "IQ4_XS", "Q4_K_M-mixed")}
    beside = {f"{stem}-Q8_0.plan.json", f"{stem}-Q8_0.imatrix.gguf", "Tiny-Q8_0.stats.npz", "Tiny-Q8_0.imatrix.gguf"}
    beside.add(f"{stem}-IQ4_XS.Modelfile")
    assert names == files | beside
    assert made.verification
    assert made.verification.ok
    assert made.plan.n_keep == 12


@pytest.mark.native
def test_the_variants_have_the_types_that_were_asked_for(made: Pruned) -> None:
    plain, mixed = (
        {t.name: type_name(t.type) for t in open_gguf(made_of.paths[0]).tensors} for made_of in made.quantized
    )
    assert plain["blk.0.ffn_up_exps.weight"] == plain["blk.1.ffn_gate_exps.weight"] == "IQ4_XS"
    assert mixed["blk.0.ffn_up_exps.weight"] == "Q4_K"
    assert mixed["blk.1.ffn_down_exps.weight"] == "Q6_K"
    assert mixed["blk.0.attn_q.weight"] == mixed["blk.1.attn_v.weight"] == "Q8_0"
    assert mixed["token_embd.weight"] == "Q8_0"
    assert mixed["output.weight"] == "Q5_K"


@pytest.mark.native
@pytest.mark.parametrize("name", GENERAL[2:5])
def test_a_general_recipe_runs_on_a_small_model(model: Path, tmp_path: Path, name: str) -> None:
    recipe = load_recipe(name)
    made = run(recipe, model, data=str(model.with_name("text.txt")), output=Output(tmp_path / "out"), settings=SETTINGS)
    (variant,) = recipe.quantization.variants
    assert [path.name for path in made.quantized[0].paths] == [f"Tiny-RANK-AVERAGE-0.20-{variant.suffix}.gguf"]
    assert not made.script.files[0].path.exists()
    types = made.quantized[0].types
    for tensor, kind in types.items():
        asked = [to for regex, to in variant.of(2).tensor_types if re.search(regex, tensor)]
        if asked and tensor.startswith("blk.") and "norm" not in tensor and "gate_inp" not in tensor:
            assert kind == asked[0], tensor
    assert types["token_embd.weight"] == "Q8_0"
    assert types["output.weight"] == "Q6_K"


@pytest.mark.native
def test_the_importance_matrix_goes_when_it_is_not_wanted(model: Path, tmp_path: Path, write: Write) -> None:
    text = (FOLDER / "tiny.toml").read_text(encoding="utf-8").replace("keep_imatrix = true", "keep_imatrix = false")
    made = run(
        write(text), model, data=str(model.with_name("text.txt")), output=Output(tmp_path / "out"), settings=SETTINGS
    )
    assert made.imatrix_path is None
    assert not list((tmp_path / "out").glob("*RANK-AVERAGE*imatrix*"))


@pytest.mark.native
def test_the_importance_matrix_is_written_in_the_old_format_too(model: Path, tmp_path: Path) -> None:
    text = str(model.with_name("text.txt"))
    overrides = Overrides({"keep": 8}, {"imatrix_dat": True})
    made = run("iq4_xs", model, text, overrides=overrides, output=Output(tmp_path), settings=SETTINGS)
    assert made.imatrix_path
    old = made.imatrix_path.with_suffix(".dat")
    matrix, legacy = matrices.load(made.imatrix_path), matrices.load(old)
    assert set(legacy.entries) == set(matrix.entries)
    assert made.handover
    assert made.handover.more == (made.imatrix_path, old)


def test_a_matrix_that_is_not_there_cannot_be_written_so(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = Overrides({"method": "random"}, {"quant": ("keep",), "imatrix_dat": True})
    run("q4_k_m", model, overrides=overrides, output=Output(tmp_path, verify=False), settings=SETTINGS)
    assert "--imatrix-dat: no effect" in caplog.text
    assert not list(tmp_path.glob("*.dat"))


def test_what_is_given_takes_the_place_of_what_a_recipe_says(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["run", "reap-qwen3.5-35b-a3b-32", str(model), "--dry-run", "--json"]
    asked += ["--ratio", "0.25", "--quant", "Q8_0", "--quant", "IQ4_XS", "-c", "512", "-o", str(tmp_path)]
    asked += ["-f", str(model.with_name("text.txt"))]
    assert main(asked) == 1, "the file itself would be written over"
    asked.remove("Q8_0")
    asked.remove("--quant")
    assert main(asked) == 0
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert [Path(made["paths"][0]).name for made in told["quantized"]] == ["Tiny-REAP-0.25-IQ4_XS.gguf"]
    for line in (
        "--ratio 0.25, where the recipe reap-qwen3.5-35b-a3b-32 has keep 175",
        "--quant IQ4_XS, where the recipe reap-qwen3.5-35b-a3b-32 has keep, Q4_K_M-for-IQ4_K_M, Q4_K_S-for-IQ4_K_S",
        "-c 512, where the recipe reap-qwen3.5-35b-a3b-32 has 1024",
    ):
        assert line in said.err
    assert "--method" not in said.err


def test_overrides_are_values() -> None:
    recipe = load_recipe("tiny")
    assert Overrides().target_of(recipe, reads=True) == Target(ratio="0.25"), "nothing is drawn"
    assert Overrides({"method": "random"}).target_of(recipe, reads=False).seed == 1
    assert Overrides(judgement={"split": "5%"}).target_of(recipe, reads=False).seed == 1
    assert Overrides({"keep": 5, "seed": 3}).target_of(recipe, reads=True) == Target(keep=5, seed=3)
    published = load_recipe("reap-qwen3.5-35b-a3b-20")
    assert [Overrides().target_of(published, reads=each).seed for each in (True, False)] == [42, 0]
    judging = replace(
        recipe, target=replace(recipe.target, method="best", budget=7, blend="uniform", given=("budget",))
    )
    for method, blend in (("reap", "uniform"), ("random", None)):
        asked = Overrides({"method": method}).target_of(judging, reads=False)
        assert (asked.budget, asked.blend, asked.given) == (Target().budget, blend, ("method",)), "what is the recipe's"
    assert Overrides().target_of(judging, reads=False).given == ("budget",)
    assert Overrides().quantisation_of(recipe) == Quantisation(recipe.quantization.quant)
    judgement = Overrides(judgement={"files": ("a",), "split": "5%"}).judgement_of(recipe, reads=True)
    assert (judgement.files, judgement.split, judgement.ctx_size) == (("a",), "5%", 512)
    assert Overrides().judgement_of(recipe, reads=True).ctx_size is None, "nothing is judged"


def test_recipes_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code, text in (
        (["--list"], 0, "\ntiny                     For trying out"),
        (["--show", "tiny"], 0, (FOLDER / "tiny.toml").read_text()),
        (["--show", "tinny"], 2, "did you mean tiny?"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["run", *arguments])
        said = capsys.readouterr()
        assert stop.value.code == code
        assert text in said.out + said.err


@pytest.mark.native
def test_a_recipe_judges_what_it_makes(model: Path, tmp_path: Path, write: Write) -> None:
    text = model.with_name("held.txt")
    text.write_text("a lazy fox jumps over the quick brown dog\n" * 30)
    judged = f"[evaluation]\nfiles = ['held={text}']\nchunks = 2\nctx_size = 64\nfail_if = ['kld>1e9']\n"
    recipe = write((FOLDER / "tiny.toml").read_text(encoding="utf-8") + judged)
    made = run(recipe, model, data=str(model.with_name("text.txt")), output=Output(tmp_path / "out"), settings=SETTINGS)
    assert [each.kind for each in made.account.files] == ["Q8_0", "IQ4_XS", "Q4_K_M"]
    assert [set(each.comparison.domains) for each in made.account.files] == [{"held"}] * 3
    assert [outcome.failed for outcome in made.account.gates] == [False]


def test_a_dry_run_reads_no_text_and_writes_nothing(model: Path, tmp_path: Path) -> None:
    foreseen = run("q4_k_m", model, output=Output(tmp_path / "out", dry_run=True))
    assert foreseen.plan.n_keep == 13
    assert not list(tmp_path.iterdir())


def test_a_variant_never_overwrites_the_file_it_is_made_from(model: Path, tmp_path: Path) -> None:
    for keep in ((), ("keep",)):
        with pytest.raises(InputError, match=r"Q8_0 would be written over Tiny-RANK-AVERAGE-0\.25-Q8_0\.gguf"):
            prune(model, ratio=0.25, quant=("Q8_0", *keep), out=tmp_path, dry_run=True)
