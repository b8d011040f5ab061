"""What was given and would not be used is refused, or said aloud: one rule for all verbs."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf

from ggufreap import cli
from ggufreap.container import open_gguf
from ggufreap.imatrix import Imatrix, ImatrixEntry, save

LLAMA = ("-c", "64", "-ub", "64", "-t", "1")
TEXT = ("prune", "m-F32.gguf", "--keep", "12", "-f", "t.txt", *LLAMA, "--quant")
PRUNE = (*TEXT, "keep")
CALIBRATE = ("calibrate", "m-F32.gguf", "-o", "S.npz", *LLAMA)
IDS = ("calibrate", "m-F32.gguf", "-o", "S.npz", "--tokens", "i.npy", *LLAMA)
FRONTIER = ("frontier", "m-F32.gguf")
PREVIEW = ("preview", "m-F32.gguf", "-f", "t.txt", "-c", "64")
NARROW = ("narrow", "m-F32.gguf", "--width-ratio", "0.5", "-o", "n.gguf", *LLAMA)
PLAN = ("plan", "m-F32.gguf", "--keep", "12", "-o", "P.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unused")
    file = open_gguf(tiny_gguf.qwen3moe(folder / "m-F32.gguf", n_embd=64, n_ff=64))
    (folder / "t.txt").write_text("the quick brown fox " * 60)
    np.save(folder / "i.npy", np.random.default_rng(0).integers(0, 300, 640))
    entries = {
        record.name: ImatrixEntry(
            np.ones((record.shape[0], record.shape[-1]), np.float32), np.ones(record.shape[0], int)
        )
        for record in file.tensors
        if "_exps" in record.name
    }
    save(folder / "i.gguf", Imatrix(entries, ("text",), 1, 64))
    return folder


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((*PRUNE, "--max-kld", "0.2"), "--max-kld is for --ratio auto"),
        ((*PRUNE, "--imatrix", "i.gguf"), "--imatrix is for quantised files, and none is made"),
        ((*PRUNE, "--process-output"), "--process-output is for quantised files, and none is made"),
        ((*PRUNE, "--keep-intermediate"), "--keep-intermediate is for quantised files, and none is made"),
        ((*PRUNE, "--allow-requantize"), "--allow-requantize is for quantised files, and none is made"),
        ((*PRUNE, "--eval-chunks", "3"), "--eval-chunks is for held-out text, of which none was given"),
        ((*PRUNE, "--eval-ctx-size", "64"), "--eval-ctx-size is for held-out text, of which none was given"),
        ((*PRUNE, "--seed", "3"), "--seed is for what is drawn at random, of which there is nothing here"),
        ((*TEXT, "Q4_K_M", "--split-max-size", "3M"), "--split-max-size is for the byte-exact file"),
        ((*TEXT, "Q4_K_M", "--keep-split"), "--keep-split is for the byte-exact file"),
        (
            ("prune", "m-F32.gguf", "--keep", "12", "--from-imatrix", "i.gguf", "--blend", "maxmin"),
            "--blend is for methods that choose by statistics",
        ),
        ((*PLAN, "--method", "weight_norm", "--blend", "maxmin"), "--blend is for methods that choose by statistics"),
        ((*PLAN, "--method", "weight_norm", "--seed", "3"), "--seed is for --method random"),
        ((*CALIBRATE, "-f", "t.txt", "--seed", "3"), "--seed is for what is drawn at random"),
        ((*CALIBRATE, "-f", "t.txt", "--text-field", "x"), "--text-field is for rows, and no file of rows was given"),
        (
            (*CALIBRATE, "-f", "t.txt", "--process-output", "--no-imatrix"),
            "--process-output is for an importance matrix",
        ),
        ((*IDS, "--no-chat-template"), "--no-chat-template is for text, and token ids were given"),
        ((*IDS, "--text-field", "x"), "--text-field is for text, and token ids were given"),
        ((*IDS, "--no-packing"), "--no-packing is for text, and token ids were given"),
        ((*IDS, "--parse-special"), "--parse-special is for text, and token ids were given"),
        # The same where it is given as it would be anyway.
        ((*PRUNE, "--max-kld", "0.1"), "--max-kld is for --ratio auto"),
        ((*PRUNE, "--seed", "0"), "--seed is for what is drawn at random, of which there is nothing here"),
        ((*PRUNE, "--budget", "30"), "--budget is for judging methods, which --method best does"),
        ((*PRUNE, "--fit-margin", "1GiB"), "--fit-margin is for --fit SIZE, and none was given"),
        ((*PRUNE, "--fit-ctx", "8192"), "--fit-ctx is for --fit SIZE, and none was given"),
        ((*PRUNE, "--no-chat-template"), "--no-chat-template is for rows, and no file of rows was given"),
        ((*PLAN, "--method", "weight_norm", "--seed", "0"), "--seed is for --method random"),
        ((*CALIBRATE, "-f", "t.txt", "--seed", "0"), "--seed is for what is drawn at random"),
        ((*FRONTIER, "--method", "rank_average"), "--method is for measuring what pruning loses"),
        ((*FRONTIER, "--blend", "maxmin"), "--blend is for measuring what pruning loses"),
        ((*FRONTIER, "-c", "512"), "-c is for measuring what pruning loses"),
        ((*FRONTIER, "-ub", "512"), "-ub is for measuring what pruning loses"),
        ((*FRONTIER, "-t", "1", "--fit", "1GB"), "-t is for measuring what pruning loses"),
        ((*NARROW, "-f", "t.txt", "--seed", "0"), "--seed is for what is drawn at random"),
        ((*NARROW, "-f", "gone.txt", "--dry-run"), "there is no file gone.txt"),
        ((*NARROW, "--dataset", "a=", "--dry-run"), "data is misnamed"),
        (("imatrix", "i.gguf", "i.gguf", "-o", "o.gguf"), "i.gguf and i.gguf hold the same; it would count twice"),
        (("probe", "m-F32.gguf", "--temp", "0", "--seed", "0"), "--seed draws at temperatures above 0"),
        (("inspect", "m-F32.gguf", "--download"), "--download fetches what -hf names"),
        (("bench", "m-F32.gguf", "-n", "0", "-np", "2"), "-np is for tokens that are written, and -n 0 writes none"),
        ((*PREVIEW, "--methods", "weight_norm", "--seed", "0"), "--seed is for --methods random"),
        ((*PREVIEW, "--methods", "weight_norm", "--stats", "i.npy"), "--stats: weight_norm chooses without statistics"),
        (
            ("run", "tiny", "m-F32.gguf", "--method", "random", "--count", "all"),
            "both method random and a text were given",
        ),
    ],
)
def test_it_is_refused_before_any_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    assert cli.main(list(arguments)) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"ggufreap: {said}")
    assert sorted(folder.iterdir()) == before


@pytest.mark.native
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("quantize", "m-F32.gguf", "--type", "Q8_0", "--imatrix", "i.gguf", "-t", "1"),
            "--imatrix: no effect, none of",
        ),
        (
            ("quantize", "m-F32.gguf", "--type", "Q8_0", "--keep-split"),
            "--keep-split: no effect, m-F32.gguf is one file",
        ),
        ((*PLAN[:-2], "--method", "random", "--mtp", "drop"), "--mtp drop: no effect, m-F32.gguf has no MTP blocks"),
    ],
)
def test_what_is_only_without_effect_is_said(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(folder)
    with caplog.at_level(logging.WARNING, "ggufreap"):
        assert cli.main([*arguments, "-o", str(tmp_path / "out")]) == 0
    assert any(record.getMessage().startswith(said) for record in caplog.records)


@pytest.mark.parametrize(
    "used",
    [
        lambda folder: (*PLAN[:-1], str(folder / "a.json"), "--method", "random", "--seed", "3"),
        lambda folder: (*CALIBRATE[:2], "-o", str(folder / "S.npz"), "--domain", "a=r.jsonl:5", "--seed", "3", *LLAMA),
    ],
)
@pytest.mark.native
def test_what_is_used_is_not(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: Callable[[Path], list[str]]
) -> None:
    monkeypatch.chdir(folder)
    (folder / "r.jsonl").write_text("".join(f'{{"text": "row {row} tells of foxes and hens"}}\n' for row in range(90)))
    try:
        assert cli.main(list(used(tmp_path))) == 0
    finally:
        (folder / "r.jsonl").unlink()
