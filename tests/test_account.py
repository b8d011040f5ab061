"""What pruned files are said to be worth: measured as `eval` measures, compared honestly, reported."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
from asked import evaluate, preview, prune, report
from gguf import GGMLQuantizationType as Kind

from ggufreap import calibrate
from ggufreap.cli import main
from ggufreap.container import open_gguf
from ggufreap.errors import InfeasiblePlan, InputError, OutputError
from ggufreap.evaluation.speed import Speed
from ggufreap.options.engine import EngineSettings
from ggufreap.reporting.measured_facts import speeds_facts
from ggufreap.sizing import Sizer, nearest_type
from ggufreap.verbs import Pruned
from ggufreap.verbs.quantize import guide_of

pytestmark = pytest.mark.native
SETTINGS = EngineSettings(n_ctx=64, n_ubatch=64, n_threads=1)
FLAGS = ("-c", "64", "-t", "1")


@pytest.fixture(autouse=True)
def _log() -> Iterator[None]:
    logger = logging.getLogger("ggufreap")
    before = logger.handlers[:], logger.level
    yield
    logger.handlers[:], logger.level = before


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("account")
    tiny_gguf.qwen3moe(folder / "Tiny-Q8_0.gguf", n_embd=256, n_ff=256, types=Kind.Q8_0)
    random = np.random.default_rng(0)
    for name in ("calib", "held", "other"):
        words = random.integers(97, 123, (900, 5)).astype(np.uint8)
        (folder / f"{name}.txt").write_text(" ".join(bytes(word).decode() for word in words))
    return folder


@pytest.fixture(scope="module")
def pruned(folder: Path) -> Pruned:
    return prune(
        folder / "Tiny-Q8_0.gguf",
        folder / "calib.txt",
        ratio="0.25",
        quant=["keep", "Q4_K_M"],
        out=folder / "out",
        eval_file=[f"held={folder}/held.txt", f"other={folder}/other.txt"],
        eval_chunks=3,
        compare=True,
        fail_if=["worst_domain.kld>1e9", "kld<0"],
        report_out=folder / "out" / "report",
        command="ggufreap prune",
        settings=SETTINGS,
    )


def test_every_file_is_measured_as_eval_measures_it(folder: Path, pruned: Pruned) -> None:
    assert pruned.account
    assert [each.kind for each in pruned.account.files] == ["Q8_0", "Q4_K_M"]
    for each in pruned.account.files:
        found = evaluate(
            each.path,
            files=[f"held={folder}/held.txt", f"other={folder}/other.txt"],
            reference=folder / "Tiny-Q8_0.gguf",
            chunks=3,
            settings=SETTINGS,
        )
        assert found.comparison == each.comparison
        assert found.comparison.mean.kld > 0
    assert [outcome.failed for outcome in pruned.account.gates] == [False, False]
    assert pruned.account.ok


def test_the_rival_is_the_whole_model_of_nearly_the_same_size(folder: Path, pruned: Pruned) -> None:
    assert pruned.account
    rival, first = pruned.account.equal_size, pruned.account.files[0]
    assert rival
    assert rival.pruned == first
    matrix = folder / "out" / "Tiny-Q8_0.imatrix.gguf"
    model = open_gguf(folder / "Tiny-Q8_0.gguf")
    guide = guide_of(matrix, model)
    with Sizer(model) as sizer:
        nearest = nearest_type(sizer, first.nbytes, imatrix=guide.values, metadata=guide.metadata)
    assert (rival.kind, rival.nbytes) == nearest
    assert rival.loses == (first.comparison.mean.kld > rival.comparison.mean.kld)
    # It is gone once it was measured.
    assert not list((folder / "out").glob("**/unpruned*"))


def test_the_report_tells_what_was_measured(folder: Path, pruned: Pruned) -> None:
    assert pruned.account
    told = json.loads((folder / "out" / "report" / "report.json").read_text())
    assert [variant["name"] for variant in told["variants"]] == [each.path.name for each in pruned.account.files]
    first = pruned.account.files[0].comparison
    assert first
    assert told["variants"][0]["overall"]["kld"]["value"] == pytest.approx(first.mean.kld)
    assert {row["domain"] for row in told["variants"][0]["domains"]} == {"held", "other"}
    assert sorted(each["ratio"] for each in told["curve"]) == [0.1, 0.2, 0.25, 0.3, 0.4, 0.5]
    assert told["plan"]["sha256"] == pruned.plan.sha256
    assert told["calibration"]["sources"][0]["n_tokens"] == pruned.plan.datasets[0].tokens > 0
    assert told["verification"]["ok"]
    assert told["equal_size"][0]["type"] == pruned.account.equal_size.kind
    assert {path.name for path in pruned.account.paths} >= {"report.json", "report.html", "README.md"}


def test_a_gate_decides_on_the_exit_code(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["prune", folder / "Tiny-Q8_0.gguf", "-f", folder / "calib.txt", "--ratio", "0.25", "--quant", "keep"]
    asked += ["-o", tmp_path, "--eval-file", folder / "held.txt", "--eval-chunks", 2, *FLAGS, "--no-verify"]
    for gate, code in (("kld>1e9", 0), ("kld>1e-9", 4)):
        assert main([*map(str, asked), "--fail-if", gate]) == code
    out = capsys.readouterr().out
    assert "passes kld>1e9" in " ".join(out.split())
    assert "FAILS kld>1e-9" in " ".join(out.split())


def test_the_verb_reports_on_files_that_are_there(
    folder: Path, pruned: Pruned, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(each.path) for each in pruned.account.files]
    plan, stats = str(pruned.plan_path), str(pruned.statistics_path)
    common = ["report", str(folder / "Tiny-Q8_0.gguf"), *files, "--plan", plan, "-o", str(tmp_path / "r"), *FLAGS]
    assert main([*common, "--stats", stats, "-f", f"held={folder}/held.txt", "--chunks", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [each["path"] for each in told["files"]] == files
    assert (tmp_path / "r" / "report.html").stat().st_size > 10_000
    # Without held-out text there is nothing to judge by, and the page says so.
    bare = report(folder / "Tiny-Q8_0.gguf", files[:1], plan, tmp_path / "bare", settings=SETTINGS)
    assert bare.files[0].comparison is None
    assert "not measured" in (tmp_path / "bare" / "README.md").read_text()


def test_what_stops_the_judging_is_found_before_the_work(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(OutputError, match=r"README\.md was not made by ggufreap report"):
        prune(folder / "Tiny-Q8_0.gguf", folder / "calib.txt", ratio="0.25", out=tmp_path / "o", report_out=tmp_path)
    for asked in (
        {"eval_file": ["none.txt"]},
        {"eval_file": [str(folder / "held.txt")], "fail_if": ["domain.x.kld>1"]},
    ):
        with pytest.raises(InputError, match=r"cannot read none\.txt|there is no domain 'x'"):
            prune(folder / "Tiny-Q8_0.gguf", folder / "calib.txt", ratio="0.25", out=tmp_path / "o", **asked)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.parametrize("max_kld", [1e9, 1e-12])
def test_the_ratio_auto_goes_as_far_as_it_may(folder: Path, tmp_path: Path, max_kld: float) -> None:
    def made() -> Pruned:
        return prune(
            folder / "Tiny-Q8_0.gguf",
            folder / "calib.txt",
            ratio="auto",
            max_kld=max_kld,
            quant=["keep"],
            out=tmp_path,
            eval_file=[str(folder / "held.txt")],
            eval_chunks=1,
            verification=False,
            settings=SETTINGS,
        )

    if max_kld < 1:
        with pytest.raises(InfeasiblePlan, match=r"already with that worst_domain\.kld>1e-12 fails"):
            made()
        return
    found = made()
    assert found.plan.n_keep == 4  # as many as the router picks
    assert found.account.files[0].comparison.worst.kld < max_kld


def test_what_is_delivered_keeps_to_the_limit_or_it_is_said(folder: Path, tmp_path: Path) -> None:
    """The ratio is found on the model as it is; the quantised file costs more, and is judged by the same limit."""
    stats, held = tmp_path / "S.npz", [str(folder / "held.txt")]
    calibrate(folder / "Tiny-Q8_0.gguf", stats, folder / "calib.txt", settings=SETTINGS)
    options = {"files": held, "chunks": 1, "settings": SETTINGS}
    (one,) = preview(folder / "Tiny-Q8_0.gguf", stats=stats, ratios=["0.0625"], **options).candidates
    made = prune(
        folder / "Tiny-Q8_0.gguf",
        folder / "calib.txt",
        ratio="auto",
        max_kld=1.01 * one.comparison.worst.kld,
        quant=["keep", "Q2_K"],
        out=tmp_path,
        eval_file=held,
        eval_chunks=1,
        verification=False,
        settings=SETTINGS,
    )
    exact, small = made.account.files
    assert [[outcome.failed for outcome in each.gates] for each in (exact, small)] == [[False], [True]]
    assert not made.account.ok


def test_text_that_was_calibrated_on_is_told_from_held_out_text(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, warns in (("calib", True), ("held", False)):
        caplog.clear()
        options = {"eval_file": [f"x={folder}/{name}.txt"], "eval_chunks": 1, "quant": ["keep"], "settings": SETTINGS}
        prune(
            folder / "Tiny-Q8_0.gguf", folder / "calib.txt", ratio="0.25", out=tmp_path, verification=False, **options
        )
        assert ("of the lines of x stand in the calibration data too" in caplog.text) == warns


@pytest.mark.parametrize(
    "asked", [{"ratio": "auto"}, {"ratio": "0.25", "compare": True}, {"ratio": "0.25", "fail_if": ["kld>1"]}]
)
def test_judging_takes_held_out_text(folder: Path, asked: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"judge by held-out text; give some with --eval-file"):
        prune(folder / "Tiny-Q8_0.gguf", folder / "calib.txt", **asked)
    with pytest.raises(InputError, match=r"no pruned file was given"):
        report(folder / "Tiny-Q8_0.gguf", [], prune(folder / "Tiny-Q8_0.gguf", ratio="0.25", dry_run=True).plan)


def test_speeds_are_told_by_the_texts_at_once() -> None:
    speeds = [Speed("pp512", (100.0, 102.0)), Speed("tg128", (10.0, 10.0)), Speed("tg128 x4", (30.0, 32.0))]
    one, four = speeds_facts(speeds)
    assert (one.batch, one.pp.value, one.tg.value) == (1, 101.0, 10.0)
    assert (four.batch, four.pp, four.tg.value) == (4, None, 31.0)
