"""The first contact: what `ggufreap` says alone and of a model, models by name, and completion."""

import hashlib
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_gguf
from gguf import GGMLQuantizationType as Kind
from test_finding import in_hub, in_ollama

from ggufreap.cli import VERBS, main
from ggufreap.cli.completion import SHELLS, offered
from ggufreap.cli.help import GROUPS
from ggufreap.engine.build import Build, Measured
from ggufreap.finding.places import hub_caches
from ggufreap.memory import Memory

pytestmark = pytest.mark.native

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in a home of nobody's, on a machine with 100 MB."""
    for name in ("LLAMA_CACHE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "OLLAMA_MODELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with_machine(monkeypatch, 100_000_000)
    return tmp_path / "here"


def with_machine(monkeypatch: pytest.MonkeyPatch, nbytes: int, *gpus: Measured) -> None:
    monkeypatch.setattr("ggufreap.finding.machine.memory", lambda: Memory(nbytes, nbytes, limited=False))
    monkeypatch.setattr("ggufreap.finding.machine.build", lambda: Build("1", "", bool(gpus), gpus))


@pytest.fixture(scope="session")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("contact") / "Tiny-Q8_0.gguf"
    return tiny_gguf.qwen3moe(path, n_embd=256, n_ff=256, types=Kind.Q8_0)


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capfd.readouterr()

    return run


# --- alone -----------------------------------------------------------------------------------------------------------


def test_alone_it_lists_what_lies_here_and_what_fits(
    run: Run, eight: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "My Model-Q8_0.gguf").write_bytes(eight.read_bytes())
    (here / "text.gguf").write_text("no model")
    code, out, _ = run()
    assert code == 0
    assert out == run("models")[1]
    (line,) = (line for line in out.splitlines() if "current folder" in line)
    assert line.endswith("'My Model-Q8_0.gguf'")
    assert line.split()[2] == "memory"
    assert "could not be read: 1\n  text.gguf: " in out
    assert out.endswith("next: ggufreap 'My Model-Q8_0.gguf'\n")
    with_machine(monkeypatch, 1_000_000)
    assert json.loads(run("--json")[1])["listing"]["models"][0]["fits"] == "no"


def test_where_there_is_none_it_says_what_can_be_given(run: Run) -> None:
    code, out, _ = run()
    assert code == 0
    assert "no mixture of experts was found here" in out
    assert "next: ggufreap MODEL, with the path of a .gguf file, -hf user/repo or an Ollama name" in out


# --- a model ---------------------------------------------------------------------------------------------------------


def test_a_model_alone_is_inspected_and_the_commands_are_told(run: Run, eight: Path) -> None:
    code, out, _ = run(eight)
    assert code == 0
    assert out == run("advise", eight)[1]
    assert "experts  16, 4 used per token" in out
    assert "it fits unpruned as it is" in out
    assert f"   ggufreap prune {eight} --ratio 0.20 --dry-run\n" in out
    assert run("inspect", eight)[1].splitlines()[0] in out


@pytest.mark.parametrize(
    ("largest", "ratio", "verdict"),
    [
        ("", "0.20", "it fits unpruned as Q4_K_M: "),
        ("0.30", "0.30", "unpruned it does not fit as Q4_K_M, with 0.30 of the experts removed it does"),
        (None, "0.50", "none of these fits as Q4_K_M; fewer bits are needed too"),
    ],
)
def test_it_begins_with_the_least_that_has_to_go(
    largest: str | None, ratio: str, verdict: str, run: Run, eight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = json.loads(run(eight, "--json")[1])
    sizes = {(each["type"], each["ratio"]): each["nbytes"] for each in told["candidates"]}
    with_machine(monkeypatch, 1 if largest is None else int(sizes["Q4_K_M", largest] / 0.9) + 1)
    told = json.loads(run(eight, "--json")[1])
    assert (told["ratio"], told["verdict"][: len(verdict)]) == (ratio, verdict)
    assert f"prune {eight} --ratio {ratio}" in told["commands"][-1]["command"]
    assert any("--fit auto" in each["command"] for each in told["commands"]), "as it is it never fits"
    assert sizes["", ""] == eight.stat().st_size
    dry = json.loads(
        run("prune", eight, "--ratio", "0.20", "--method", "random", "--quant", "keep", "--dry-run", "--json")[1]
    )
    assert sizes["", "0.20"] == pytest.approx(dry["nbytes"], abs=2048)
    assert sizes["Q4_K_M", "0.50"] < sizes["Q4_K_M", "0.20"] < sizes["Q4_K_M", ""] < sizes["", ""]


def test_a_gpu_counts(run: Run, eight: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbytes = eight.stat().st_size
    with_machine(monkeypatch, nbytes, Measured("CUDA0", "a GPU", "GPU", nbytes // 2, nbytes))
    told = json.loads(run(eight, "--json")[1])
    fits = {(each["type"], each["ratio"]): each["fits"] for each in told["candidates"]}
    assert (fits["", ""], fits["", "0.50"]) == ("GPU and memory", "memory")
    assert fits["Q4_K_M", "0.50"] == "GPU"


def test_on_a_terminal_it_asks_which_shall_run(eight: Path, tmp_path: Path) -> None:
    model = tmp_path / eight.name
    model.write_bytes(eight.read_bytes())
    said, code = on_terminal(model, b"9\nx\n\n")
    assert code == 0
    assert said.count("run one of them? [1-4, Enter: none]") == 3
    said, code = on_terminal(model, b"2\n")
    assert code == 0
    assert "blk.0.ffn_down_exps.weight" in said, "the dry run"


def on_terminal(model: Path, answers: bytes) -> tuple[str, int]:
    screen, terminal = pty.openpty()
    command = [sys.executable, "-m", "ggufreap", str(model)]
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    os.write(screen, answers)
    said = b""
    try:
        while part := os.read(screen, 4096):
            said += part
    except OSError:  # what Linux says once the last writer is gone
        pass
    os.close(screen)
    return said.decode(), process.wait(timeout=60)


# --- by name ---------------------------------------------------------------------------------------------------------


def test_hf_is_a_model_everywhere(run: Run, eight: Path) -> None:
    snapshot = in_hub(hub_caches()[0], "a/Tiny-GGUF", eight, "Tiny-Q8_0.gguf")
    for arguments in (("inspect", "-hf", "a/Tiny-GGUF"), ("inspect", "--hf-repo=a/Tiny-GGUF:Q8_0")):
        code, out, err = run(*arguments, "--json")
        assert code == 0, err
        assert json.loads(out)["path"] == str(snapshot / "Tiny-Q8_0.gguf")
        assert "Tiny-Q8_0.gguf" in err
    assert "ggufreap prune -hf a/Tiny-GGUF --ratio" in run("-hf", "a/Tiny-GGUF")[1]
    code, out, err = run("inspect", "-hf", "a/none")
    assert (code, out) == (1, "")
    assert "-hf a/none is not in" in err
    assert "--download fetches it there" in err


def test_what_is_made_of_a_model_by_name_lies_here_and_is_named_after_it(run: Run, eight: Path, here: Path) -> None:
    folder = here.parent / ".ollama" / "models"
    blob = in_ollama(folder, "registry.ollama.ai/library/tiny/8b-q8_0", eight)
    before = hashlib.sha256(blob.read_bytes()).hexdigest()
    asked = ("prune", "tiny:8b-q8_0", "--ratio", "0.25", "--method", "random", "--quant", "keep", "-t", 1)
    code, _, err = run(*asked)
    assert code == 0, err
    assert "the results go to the current folder" in err
    assert (here / "tiny-8b-RANDOM-0.25-q8_0.gguf").is_file()
    assert hashlib.sha256(blob.read_bytes()).hexdigest() == before
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == sorted(["8b-q8_0", blob.name])
    code, _, err = run(*asked, "-o", here / "other")
    assert code == 0, err
    assert (here / "other" / "tiny-8b-RANDOM-0.25-q8_0.gguf").is_file()
    code, out, err = run("verify", "tiny:8b-q8_0", "tiny-8b-RANDOM-0.25-q8_0.gguf", "--plan", next(here.glob("*.json")))
    assert code == 0, err
    assert out.count("holds") == 5


# --- help and completion ---------------------------------------------------------------------------------------------


def test_every_verb_stands_in_one_group_of_the_help(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(name for names, _ in GROUPS.values() for name in names) == sorted(VERBS)
    _, out, _ = run("--help")
    assert [line.strip() for line in out.splitlines() if line.strip().rstrip(":") in GROUPS] == [
        f"{g}:" for g in GROUPS
    ]


def test_the_examples_of_the_help_can_be_parsed() -> None:
    from ggufreap.cli import parse

    for _, examples in GROUPS.values():
        for example in examples:
            _, *words = example.partition("#")[0].split()
            assert parse(words).verb in VERBS


def test_completion_offers_what_the_parser_takes() -> None:
    verbs = offered(VERBS)
    assert set(verbs) == set(VERBS)
    prune = {name: flag for flag in verbs["prune"].flags for name in flag.names}
    assert prune["--mtp"].words == ("mirror", "drop")
    assert prune["--ratio"].takes
    assert not prune["--dry-run"].takes
    assert "tiny" in verbs["run"].words
    assert verbs["completion"].words == ("bash", "zsh", "fish")


@pytest.mark.parametrize(
    ("words", "offers"),
    [
        (["ggufreap", "calib"], ["calibrate"]),
        (["ggufreap", "prune", "--rat"], ["--ratio"]),
        (["ggufreap", "prune", "m.gguf", "--mtp", ""], ["mirror", "drop"]),
        (["ggufreap", "run", "q4"], ["q4_k_m", "q4_k_m-q8_0-critical"]),
        (["ggufreap", "prune", "m"], []),
    ],
)
def test_bash_completes(words: list[str], offers: list[str], run: Run) -> None:
    script = run("completion", "bash")[1]
    ask = f"COMP_WORDS=({' '.join(repr(word) for word in words)}); COMP_CWORD={len(words) - 1}; _ggufreap"
    command = ["bash", "-c", f'{script}\n{ask}; printf "%s\\n" "${{COMPREPLY[@]}}"']
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == offers


@pytest.mark.parametrize("shell", SHELLS)
def test_every_verb_and_flag_is_in_the_script(shell: str, run: Run) -> None:
    code, out, _ = run("completion", shell)
    assert code == 0
    for name, verb in offered(VERBS).items():
        assert name in out
        flags: list[Any] = [spelling.lstrip("-") for flag in verb.flags for spelling in flag.names]
        assert all(flag in out for flag in flags)
