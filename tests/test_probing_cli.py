"""probe, tasks and bench as a user meets them: flags, tables, JSON, refusals."""

import json
import logging
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asked
import pytest
import tiny_gguf

from ggufreap import console
from ggufreap.cli import main
from ggufreap.demonstration import MODEL
from ggufreap.evaluation import probes
from ggufreap.evaluation.generation import Answer
from ggufreap.evaluation.probes import Probes, judge
from ggufreap.evaluation.prompts import Prompt
from ggufreap.planning import save_plan

pytestmark = pytest.mark.native

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    monkeypatch.setenv("COLUMNS", "120")
    logger, on_kill = logging.getLogger("ggufreap"), signal.getsignal(signal.SIGTERM)
    before = logger.handlers[:], logger.level

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    yield call
    logger.handlers[:], logger.level = before
    signal.signal(signal.SIGTERM, on_kill)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    save_plan(tmp_path / "p.json", asked.plan(MODEL, keep=2, method="random", seed=1))
    return tmp_path / "p.json"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    rows = [{"prompt": "def read_header(path):\n", "domain": "code"}, {"prompt": "import os\n" * 12}]
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_probe_shows_shares_and_what_is_new(run: Run, plan: Path, prompts: Path) -> None:
    flags = ("probe", MODEL, "--plan", plan, "--prompts", prompts, "-n", 40, "-np", 2, "-t", 1, "-ub", 64)
    code, out, _ = run(*flags)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == f"{MODEL.name}, removes 14 of 16, keeps 2 against {MODEL.name}"
    assert lines[1] == "Temperature 0, at most 40 tokens, 95 % intervals"
    assert lines[2].split() == ["answers", "control", "new"]
    assert [line.split()[0] for line in lines[3:7]] == ["loop", "endless", "empty", "drift"]
    found = json.loads(run(*flags, "--json")[1])
    assert len(found["probes"]) == 4
    greedy = found["shares"]["0"]
    assert greedy["endless"]["answers"]["n"] == 2
    assert 0 <= greedy["loop"]["answers"]["interval"][0] <= greedy["loop"]["answers"]["share"]
    assert all(probe["control"]["text"] for probe in found["probes"])


def test_what_the_control_does_not_show_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    def answer(text: str) -> Answer:
        return Answer(text, (1, 2), ended=False)

    asked = [Prompt("one\n" + "two " * 20, "code"), Prompt("three")]
    written = {0.2: [answer("no " * 9), answer("a b c")]}
    judged = judge(asked, written, {0.2: [answer("a b c"), answer("no " * 9)]})
    console.show(Probes("pruned", "base", 2, judged), as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()) for line in lines[3:5]] == [
        "loop 1 of 2, 50% [9%, 91%] 1 of 2, 50% [9%, 91%] 1",
        "endless 2 of 2, 100% [34%, 100%] 2 of 2, 100% [34%, 100%] 0",
    ]
    assert lines[-2:] == [
        "What the control does not show:",
        "0.2  code: one two two two two two two two two two two two tw…  loop: word",
    ]


def test_probe_without_a_control_only_counts(run: Run, prompts: Path) -> None:
    code, out, _ = run("probe", MODEL, "--prompts", prompts, "-n", 4, "--temp", 0, "-t", 1)
    assert code == 0
    assert out.splitlines()[0] == f"{MODEL.name}, without a control"
    assert [line.split()[0] for line in out.splitlines()[3:]] == ["loop", "endless", "empty"]


def test_probe_uses_the_chat_template(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}{% if add_generation_prompt %}[go]{% endif %}"
    )
    model = tiny_gguf.qwen3moe(tmp_path / "m.gguf", metadata={"tokenizer.chat_template": template})
    seen: list[list[str]] = []
    answer = probes.answers
    monkeypatch.setattr(probes, "answers", lambda *a, **k: (seen.append([*a[1], k["special"]]), answer(*a, **k))[1])
    (tmp_path / "p.txt").write_text("hi\n")
    flags = ("probe", model, "--prompts", tmp_path / "p.txt", "-n", 2, "--temp", 0, "-t", 1)
    assert run(*flags)[0] == run(*flags, "--no-chat-template")[0] == 0
    assert seen == [["[user] hi[go]", True], ["hi", False]]
    refusing = tiny_gguf.qwen3moe(tmp_path / "r.gguf", metadata={"tokenizer.chat_template": "{{ messages.x() }}"})
    code, _, err = run("probe", refusing, "-n", 2)
    assert code == 1
    assert "the prompts cannot be rendered: chat template refused" in err


def test_tasks_shows_both_accuracies(run: Run, tmp_path: Path, plan: Path) -> None:
    path = tmp_path / "h.txt"
    path.write_text("import os\nimport\n0\nsys\nthe\nof\na\n".replace("\nimport", " import", 1) * 3)
    code, out, _ = run("tasks", MODEL, "--plan", plan, "--hellaswag", path, "-n", 2, "-t", 1, "-ub", 64)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "hellaswag: h.txt, 2 questions"
    assert lines[3].split() == ["accuracy", "reference", "lost", "won", "p", "(McNemar)"]
    assert [line.split()[0] for line in lines[4:]] == ["sum", "by"]
    found = json.loads(run("tasks", MODEL, "--hellaswag", path, "-t", 1, "--json")[1])
    assert found["accuracy"]["share"]["n"] == 3
    assert found["reference"] is None


def test_bench_shows_rates(run: Run) -> None:
    flags = ("bench", MODEL, "--reference", MODEL, "-p", 16, "-n", 2, "-np", "1,2", "-r", 2, "-t", 1)
    code, out, _ = run(*flags)
    assert code == 0
    lines = out.splitlines()
    assert lines[1] == "Mean ± standard deviation of 2 runs"
    assert [line.split()[0] for line in lines[3:6]] == ["pp16", "tg2", "tg2"]
    assert "As many experts per token as before" in lines[-1]
    found = json.loads(run(*flags, "--json")[1])
    assert [len(speed["samples"]) for speed in found["speeds"] + found["reference_speeds"]] == [2] * 6
    assert found["speeds"][0]["mean"] > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("probe", MODEL, "--temp", "-1"), "'-1' is not a temperature from 0 to 100"),
        (("probe", MODEL, "--plan", "p", "--reference", "r"), "not allowed with argument"),
        (("bench", MODEL, "-np", "1,x"), "'x' is not a number"),
    ],
)
def test_wrong_usage(run: Run, capsys: pytest.CaptureFixture[str], flags: Any, message: str) -> None:
    with pytest.raises(SystemExit) as caught:
        run(*flags)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("probe", MODEL, "--prompts", "gone.txt"), "cannot read gone.txt: No such file or directory"),
        (("probe", MODEL, "--plan", "gone.json"), "cannot read gone.json"),
        (("probe", MODEL, "-c", 64, "-n", 60), "it does not fit the 16 of -c 64 that each of 4 texts may take"),
        (("tasks", MODEL), "0 files of questions were given; give one of --hellaswag, --winogrande, --multiple-choice"),
        (("tasks", MODEL, "--jsonl", "gone.jsonl"), "cannot read gone.jsonl"),
        (("bench", MODEL, "-p", 0, "-n", 0), "nothing to measure"),
    ],
)
def test_what_cannot_be_done_is_one_line(run: Run, flags: Any, message: str) -> None:
    code, out, err = run(*flags)
    assert (code, out) == (1, "")
    assert err.startswith("ggufreap: ")
    assert message in err
    assert err.count("\n") == 1
