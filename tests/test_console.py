"""What the console draws: on eighty columns, for people; and exactly what a machine would want on a pipe."""

import json
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggufreap import console, coverage
from ggufreap.architecture.catalog import ARCHITECTURES
from ggufreap.architecture.layout import MoeBlock, MoeLayout
from ggufreap.console import stages
from ggufreap.container import OutputFile, OutputTensor, Piece
from ggufreap.demonstration import Demonstration
from ggufreap.evaluation import Perplexity
from ggufreap.inspection import Inspection, Outlook
from ggufreap.observation import DomainStatistics, ExpertStatistics
from ggufreap.planning import ModelIdentity, PruningPlan, make_plan
from ggufreap.quantization import Fallback, Quantized
from ggufreap.rewriting import RewriteScript
from ggufreap.verbs import Pruned, Variants
from ggufreap.verification import Check, Verification

FOLDER = Path("/srv/models/huggingface/deepseek-ai/DeepSeek-V3.1-Terminus-REAP-0.25-GGUF/UD-Q2_K_XL")
DOMAINS = ("code", "mathematics", "prose-en", "prose-fr", "prose-zh", "chat", "tool-calls", "science")
SENTENCES = ("note: ", "WARNING ", "keep-set is ")  # these stay on one line, for grep


def big_inspection() -> Inspection:
    """A model as large as they come, with every number at its widest."""
    ratios = [Outlook(f"0.{tens}0", 256 - 25 * tens, 400_000_000_000 - tens * 30_000_000_000) for tens in range(1, 5)]
    return Inspection(
        path=FOLDER / "DeepSeek-V3.1-Terminus-UD-Q2_K_XL-00001-of-00006.gguf",
        name="DeepSeek V3.1 Terminus",
        architecture="deepseek2",
        proven=True,
        fingerprint="f" * 64,
        n_shards=6,
        n_block=62,
        n_moe_block=58,
        n_mtp_block=1,
        n_expert=256,
        n_expert_before=0,
        widths=(2048,),
        width_before=0,
        n_used=8,
        n_shared=1,
        n_group=8,
        n_group_used=4,
        nbytes=404_120_000_000,
        expert_nbytes=390_000_000_000,
        expert_types={"Q2_K": 240_000_000_000, "Q3_K": 149_000_000_000, "F32": 1_000_000_000},
        other_types={"Q4_K": 10_000_000_000, "Q6_K": 4_000_000_000, "F32": 120_000_000},
        outlook=(*ratios, Outlook("0.50", 0, 0, "keeping 128 experts in 8 groups: too few")),
    )


def plan_of(n_block: int = 60) -> PruningPlan:
    blocks = tuple(MoeBlock(index, 8, False, ()) for index in range(3, 3 + n_block))
    layout = MoeLayout(ARCHITECTURES["deepseek2"], n_block + 3, n_block + 3, 256, 1, 1, 1, causal=True, blocks=blocks)
    scores = np.random.default_rng(0).random((n_block, 256))
    return make_plan(layout, ModelIdentity("f" * 64, "deepseek2", "big"), scores, method="reap", ratio="0.25")


def script_of(n_files: int = 2) -> RewriteScript:
    shapes = {"token_embd.weight": (129280, 7168), "blk.60.ffn_gate_exps.weight": (192, 2048, 7168), "norm": (7168,)}
    tensors = tuple(
        OutputTensor(name, shape, 12, (Piece(FOLDER, 0, int(np.prod(shape)) // 256 * 144),))
        for name, shape in shapes.items()
    )
    paths = [FOLDER / f"DeepSeek-V3.1-Terminus-REAP-0.25-UD-Q2_K_XL-0000{n}-of-00006.gguf" for n in range(n_files)]
    files = tuple(OutputFile(path, b"x" * 64, tensors, 32) for path in paths)
    return RewriteScript(files, 10**13, 10**12, (), paths[0])


def verification(ok: bool = True) -> Verification:
    return Verification((Check("header", True, "256 experts"), Check("metadata", ok, "[bold]key[/bold] differs")))


def pruned(proof: Verification | None) -> Pruned:
    return Pruned(script_of(1), plan_of(), FOLDER / "p.json", FOLDER / "s.npz", proof)


def demonstration() -> Demonstration:
    made = replace(pruned(verification()), quantized=(quantized(),))
    losses = [Perplexity(value, 0.4, 99) for value in (18.3, 19.2, 19.3)]
    return Demonstration(made, *losses, "def f(x):\n", "y[i] = x[/a]")


def quantized(name: str = "Q4_K_M") -> Quantized:
    path = FOLDER / f"DeepSeek-V3.1-Terminus-REAP-0.25-{name}.gguf"
    fallback = Fallback("blk.60.ffn_down_exps.weight", 1000, "Q4_K", "Q5_0")
    types = {"blk.60.ffn_gate_exps.weight": "Q4_K"}
    notes = ("blk.60.ffn_down_exps.weight and 57 more are quantised without importance",)
    return Quantized(
        (path,), 404_120_000_000, (404_120_000_000,), types, {"Q4_K": 404_000_000_000, "F32": 1}, (fallback,), (), notes
    )


def statistics(domains: Sequence[str] = ("calibration",)) -> DomainStatistics:
    """Every domain routes the same, in one chunk per half."""
    half = ExpertStatistics.empty([0, 1], [1, 1], 4)
    half = replace(half, n_tokens=5000 // len(domains), n_chunks=1)
    for name in ("count", "sum_gf"):
        half.values[name][:] = np.array([[2500, 1500, 1000, 0], [1250] * 4]) / len(domains)
    return DomainStatistics((0, 1), (1, 1), 4, dict.fromkeys(domains, (half, half)))


def choice() -> console.Choice:
    """One that a domain suffers from, and of which nobody can say whether it is stable."""
    measured = coverage.measure(statistics(DOMAINS), {0: [1, 2, 3], 1: [0, 1, 2]}, "reap")
    return console.Choice(plan_of(), measured)


RESULTS: dict[str, Any] = {
    "inspection": big_inspection(),
    "statistics": statistics(),
    "statistics of domains": statistics(DOMAINS),
    "plan": plan_of(),
    "choice": choice(),
    "coverage": choice().coverage,
    "script": script_of(),
    "dry run": console.DryRun(script_of()),
    "dry run with a variant": console.DryRun(script_of(), (quantized(),)),
    "quantised": quantized(),
    "variants": Variants((quantized(), quantized("IQ4_XS"))),
    "proof": verification(),
    "refutation": verification(ok=False),
    "pruned": pruned(verification()),
    "unverified": pruned(None),
    "demonstration": demonstration(),
}


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("COLUMNS", "80")

    def show(result: object, as_json: bool = False) -> str:
        console.show(result, as_json)
        return capsys.readouterr().out

    return show


def test_every_result_of_a_stage_is_looked_at_here() -> None:
    assert stages.DRAWERS.keys() <= {type(result) for result in RESULTS.values()}


@pytest.mark.parametrize("name", RESULTS)
def test_a_pipe_gets_neither_colours_nor_trailing_blanks_nor_broken_paths(name: str, shown: Any) -> None:
    drawn = shown(RESULTS[name])
    assert "\x1b" not in drawn
    assert drawn.endswith("\n")
    for file in re.findall(r"\S+\.gguf", drawn):
        assert file.startswith(str(FOLDER)), "a path stands on one line, to be copied"


@pytest.mark.parametrize("name", RESULTS)
def test_tables_fit_eighty_columns(name: str, shown: Any) -> None:
    for line in shown(RESULTS[name]).splitlines():
        assert len(line.rstrip()) <= 80 or str(FOLDER) in line or line.startswith(SENTENCES), line


def test_a_terminal_gets_colours(monkeypatch: pytest.MonkeyPatch, shown: Any) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    assert re.search(r"\x1b\[32mholds\x1b\[0m", shown(verification()))
    assert re.search(r"\x1b\[31mFAILS\x1b\[0m", shown(verification(ok=False)))


def test_an_inspection_has_one_row_per_ratio(shown: Any) -> None:
    lines = [line.rstrip() for line in shown(big_inspection()).splitlines()]
    assert lines[0] == "DeepSeek V3.1 Terminus  deepseek2, 404 GB in 6 shards"
    assert "256, 8 used per token, 1 shared, in 8 groups of which 4 are used" in lines[2]
    start = lines.index("What pruning would leave")
    assert lines[start + 1].split() == ["ratio", "removes", "keeps", "file", "of", "now"]
    assert lines[start + 2].split() == ["0.10", "25", "of", "256", "231", "370", "GB", "92%"]
    assert lines[-1] == "0.50   keeping 128 experts in 8 groups: too few"
    assert len(lines) == start + 2 + 5


def test_statistics_tell_who_was_never_routed(shown: Any) -> None:
    lines = shown(statistics()).splitlines()
    assert lines[1:] == [
        "experts  4 in each of 2 MoE blocks, 1 never routed to",
        "routed   2,500 tokens per expert (median), 0 at least",
    ]
    by_domain = [line.split() for line in shown(statistics(DOMAINS)).splitlines()[-len(DOMAINS) :]]
    assert by_domain == [[domain, "1,250"] for domain in DOMAINS]


def test_a_plan_shows_what_stays_per_block(shown: Any) -> None:
    lines = shown(plan_of()).splitlines()
    assert lines[0] == "removes 64 of 256, keeps 192 (reap, ratio 0.25)"
    assert [line.split()[0] for line in lines[-60:]] == [str(block) for block in range(3, 63)]
    assert all(re.fullmatch(r" *\d\d\.\d%", line[6:]) for line in lines[-60:])


def test_a_script_shows_files_and_a_dry_run_every_tensor(shown: Any) -> None:
    brief, full = shown(script_of()), shown(console.DryRun(script_of()))
    assert len(brief.splitlines()) == 3
    assert "blk.60" not in brief
    assert full.count("blk.60.ffn_gate_exps.weight") == 2
    assert "7168x2048x192" in full
    assert full.endswith(brief)


def test_nothing_is_taken_for_markup(shown: Any) -> None:
    assert "holds  metadata: [bold]key[/bold] differs" in shown(verification())
    drawn = shown(demonstration())
    assert "\nThe pruned model continues 'def f(x):\\n':\ny[i] = x[/a]\n" in drawn
    assert "\nnow yours: ggufreap  " in drawn
    assert "not verified" not in drawn
    assert "not verified" in shown(pruned(None))


# For machines.


@pytest.mark.parametrize("name", RESULTS)
def test_every_result_is_one_json_object(name: str, shown: Any) -> None:
    assert isinstance(json.loads(shown(RESULTS[name], as_json=True)), dict)


def test_json_has_every_digit(shown: Any) -> None:
    script = json.loads(shown(script_of(), as_json=True))
    assert script["nbytes"] == sum(file["nbytes"] for file in script["files"]) == script_of().nbytes
    first, second = script["files"][0]["tensors"][:2]
    assert first["offset"] == script["files"][0]["header_nbytes"] == 64
    assert second == {
        "name": "blk.60.ffn_gate_exps.weight",
        "shape": [192, 2048, 7168],
        "type": "Q4_K",
        "offset": 64 + first["nbytes"],
        "nbytes": 192 * 2048 * 7168 // 256 * 144,
    }
    found = json.loads(shown(statistics(("code", "chat")), as_json=True))
    assert found["blocks"]["0"]["count"] == [5000, 3000, 2000, 0]
    assert found["domains"]["chat"]["blocks"]["0"]["count"] == [2500, 1500, 1000, 0]
    assert json.loads(shown(big_inspection(), as_json=True))["outlook"][4]["refused"]
    assert json.loads(shown(plan_of(), as_json=True)) == json.loads(plan_of().to_json())
    found = json.loads(shown(demonstration(), as_json=True))
    assert found["after"]["value"] == 19.2
    assert found["pruned"]["verification"]["ok"] is True


# Notes and progress.


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("ggufreap")
    before = logger.handlers[:], logger.level
    yield logger
    logger.handlers[:], logger.level = before


@pytest.mark.parametrize(
    ("verbosity", "lines"), [(0, ["noted", "WARNING: mind"]), (1, ["deep", "noted", "WARNING: mind"])]
)
def test_notes_go_to_standard_error(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str], verbosity: int, lines: list[str]
) -> None:
    console.listen(verbosity)
    console.listen(verbosity)  # once is enough
    logging.getLogger("ggufreap.llama_cpp").debug("deep")
    logger.info("noted")
    logger.warning("mind")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == lines


def test_progress_is_silent_where_nobody_looks(capfd: pytest.CaptureFixture[str]) -> None:
    with console.progress("calibrate", 1000, "tokens", 10) as bar:
        for _ in range(10):
            bar.update(99)
    assert capfd.readouterr() == ("", "")


def test_progress_on_a_terminal_tells_the_stage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with console.progress("calibrate", 1000, "tokens", 500) as bar:
        bar.update(500)
    said = capsys.readouterr()
    assert said.out == ""
    assert re.search(r"calibrate: +50%.*calibrate: 100%.* 1.00k/1.00k .*tokens/s\]\n$", said.err, re.DOTALL)
