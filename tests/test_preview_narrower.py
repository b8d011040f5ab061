"""What narrower experts are expected to cost, in preview: against files that were made, and what is refused."""

import json
import re
from pathlib import Path

import asked
import numpy as np
import pytest
import tiny_gguf
from gguf import GGMLQuantizationType as Kind

from ggufreap import verbs
from ggufreap.cli import main
from ggufreap.errors import InputError
from ggufreap.options.data import Request
from ggufreap.options.engine import EngineSettings
from ggufreap.verbs.preview import Preview

SETTINGS = EngineSettings(n_ctx=64, n_ubatch=64, n_threads=1)
FLAGS = ("-c", "64", "-ub", "64", "-t", "1")

pytestmark = pytest.mark.native


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preview")
    tiny_gguf.qwen3moe(folder / "Tiny-F16.gguf", types=Kind.F16, n_expert=8, n_used=2, n_embd=64, n_ff=96)
    random = np.random.default_rng(0)
    for name, count in (("calib", 2000), ("held", 200), ("more", 200)):
        words = random.integers(97, 123, (count, 5)).astype(np.uint8)
        (folder / f"{name}.txt").write_text(" ".join(bytes(word).decode() for word in words))
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> Preview:
    files = [str(folder / "held.txt"), str(folder / "more.txt")]
    return asked.preview(
        folder / "Tiny-F16.gguf",
        data=folder / "calib.txt",
        width_ratio="0.4",
        ratios=["0", "0.25"],
        methods=["random"],
        files=files,
        settings=SETTINGS,
    )


def test_what_is_expected_goes_by_what_is_measured(found: Preview) -> None:
    assert [each.plan.n_keep for each in found.narrower] == [each.plan.n_keep for each in found.candidates] == [8, 6]
    for each, masked in zip(found.narrower, found.candidates, strict=True):
        assert (each.narrowing.width, each.narrowing.source_width, each.narrowing.downs) == (64, 96, {})
        assert each.whole is masked.comparison
        assert each.share == pytest.approx(1, abs=0.1)
        for name, kld in each.domains.items():
            whole, fewer = each.whole.domains[name].kld, each.masked.domains[name].kld
            assert kld == pytest.approx(whole + each.share * (fewer - whole))
            assert kld > whole


def test_what_is_expected_is_near_to_what_the_file_loses(found: Preview, folder: Path, tmp_path: Path) -> None:
    each, out, model = found.narrower[1], tmp_path / "out.gguf", folder / "Tiny-F16.gguf"
    verbs.narrow(model, folder / "calib.txt", width_ratio="0.4", plan=each.plan, output=out, settings=SETTINGS)
    files = [str(folder / "held.txt"), str(folder / "more.txt")]
    lost = asked.evaluate(out, reference=model, files=files, settings=SETTINGS).comparison
    assert lost is not None
    assert out.stat().st_size == each.nbytes
    assert each.mean == pytest.approx(lost.mean.kld, rel=0.1)


def test_the_command_line(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    held = str(folder / "held.txt")
    command = ["preview", str(folder / "Tiny-F16.gguf"), "--methods", "weight_norm", "-f", held, *FLAGS]
    text = ["--calibration-file", str(folder / "calib.txt"), "--shrink", "0.4"]
    assert main([*command, *text, "--fail-if", "worst_domain.kld>9"]) == 0
    out = capfd.readouterr().out
    assert re.search(r"weight_norm.* 7/8 +64/96 +720 kB ", out)
    assert re.search(r"recommended WEIGHT-NORM-0.13-NARROW-0\.34: worst_domain.kld>9 passes with", out)
    assert main([*command, *text, "--fail-if", "worst_domain.kld>0", "--json"]) == 4
    told = json.loads(capfd.readouterr().out)
    (each,) = told["narrower"]
    assert (each["n_keep"], each["width"], told["recommended"]) == (7, 64, None)
    assert each["expected"]["mean"] == each["expected"]["domains"]["held"]


TEXT = {"data": Request(text={"calib": "words " * 2000})}


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (TEXT, "no effect in a preview of whole experts; give --width-ratio or --shrink"),
        ({"width_ratio": "0.4"}, "is told by text; give it with --calibration-file"),
        ({"width_ratio": "0.4", "data": Request()}, "is told by text; give it with --calibration-file"),
        (TEXT | {"shrink": "0.4", "ratios": ["0.25"]}, "--shrink divides the cut .*; leave --ratios out"),
        (TEXT | {"width_ratio": "0.4", "sequential": True}, "--sequential gains cannot be foreseen; leave it out"),
        (TEXT | {"width_ratio": "0.4", "fail_if": ["top1<0.9"]}, "of narrower experts only kld can be foreseen"),
    ],
)
def test_what_cannot_be_foreseen_is_refused(folder: Path, wish: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        asked.preview(folder / "Tiny-F16.gguf", methods=["random"], files=[str(folder / "held.txt")], **wish)
