"""What a finished model is handed over with: a Modelfile, and commands that a shell takes as they stand."""

import logging
import shlex
from pathlib import Path

import pytest
import tiny_gguf
from gguf import GGMLQuantizationType as Kind

from ggufreap.cli import main
from ggufreap.files import writing
from ggufreap.handover import Handover

ONE = (Path("out/My Model-REAP-0.20-Q4_K_M.gguf"),)
SPLIT = tuple(Path(f"Big-REAP-0.20-Q8_0-0000{n}-of-00002.gguf") for n in (1, 2))


def test_the_modelfile_names_the_first_and_can_name_the_others() -> None:
    assert Handover((ONE, SPLIT)).modelfile == (
        "# ollama create my-model-reap-0.20:q4_k_m\n"
        "FROM ./My Model-REAP-0.20-Q4_K_M.gguf\n"
        "# FROM ./Big-REAP-0.20-Q8_0-*.gguf\n"
    )
    assert Handover((ONE,)).modelfile_path == Path("out/My Model-REAP-0.20-Q4_K_M.Modelfile")
    assert Handover((SPLIT,)).modelfile_path == Path("Big-REAP-0.20-Q8_0.Modelfile")


def test_every_command_is_whole() -> None:
    steps = dict(Handover((ONE, SPLIT), (Path("m.imatrix.gguf"),), Path("my report")).steps)
    words = {program: [shlex.split(command) for command in commands] for program, commands in steps.items()}
    assert words["llama.cpp"] == [["llama-server", "-m", str(ONE[0])]]
    assert [each[-1] for each in words["LM Studio"]] == [str(Path.cwd() / ONE[0])]
    assert words["Ollama"] == [
        ["ollama", "create", "my-model-reap-0.20:q4_k_m", "-f", "out/My Model-REAP-0.20-Q4_K_M.Modelfile"],
        ["ollama", "run", "my-model-reap-0.20:q4_k_m"],
    ]
    repository = "YOU/My Model-REAP-0.20-GGUF"
    assert words["upload"][0] == ["hf", "upload", repository, "my report", "."]
    assert [each[3] for each in words["upload"][1:]] == [str(ONE[0]), *map(str, SPLIT), "m.imatrix.gguf"]
    assert len(dict(Handover((SPLIT,)).steps)["LM Studio"]) == 2


def test_a_modelfile_that_somebody_changed_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    handover = Handover(((tmp_path / "m.gguf",),))
    with writing():
        path = handover.write()
    assert path.read_text() == handover.modelfile
    with writing():
        assert handover.write() == path
    path.write_text("mine")
    with writing(), caplog.at_level(logging.INFO, "ggufreap"):
        handover.write()
    assert path.read_text() == "mine"
    assert "is there already and stays as it is" in caplog.text
    with writing(force=True):
        handover.write()
    assert path.read_text() == handover.modelfile


@pytest.mark.native
def test_prune_ends_with_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_gguf.qwen3moe(tmp_path / "Tiny-Q8_0.gguf", n_embd=64, n_ff=32, types=Kind.Q8_0)
    asked = ["prune", str(model), "--ratio", "0.25", "--method", "random", "--quant", "keep", "-t", "1", "--no-verify"]
    assert main([*asked, "-o", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    stem = tmp_path / "out" / "Tiny-RANDOM-0.25-Q8_0"
    for line in (
        f"llama-server -m {stem}.gguf",
        "ollama run tiny-random-0.25:q8_0",
        "--report DIR writes the model card",
    ):
        assert line in out
    assert Path(f"{stem}.Modelfile").read_text().endswith("FROM ./Tiny-RANDOM-0.25-Q8_0.gguf\n")
    assert main([*asked, "-o", str(tmp_path / "dry"), "--dry-run"]) == 0
    assert "llama-server" not in capsys.readouterr().out
