"""Whatever stops a run, and whenever: what has a final name is whole and right, nothing else was touched, the same
command goes on, and ends as if nothing had happened.

Each verb is struck once by default; GGUFREAP_STRIKES=20 strikes each twenty times. At the end it is told how many
strikes, limits and pairs of runs there were, and how the struck ones ended.
"""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf

pytestmark = [pytest.mark.native, pytest.mark.skipif(sys.platform == "win32", reason="signals and limits of POSIX")]

STRIKES = int(os.environ.get("GGUFREAP_STRIKES", "1"))
FLAGS = ("-c", "64", "-ub", "64", "-t", "1")
MODEL, IDS, TEXT = "m-F32.gguf", "ids.npy", "text.txt"


@dataclass(frozen=True)
class Made:
    """A folder of inputs, and what every verb gives: name -> bytes, and how many seconds it takes."""

    folder: Path
    results: dict[str, dict[str, bytes]]
    seconds: dict[str, float]

    def command(self, verb: str, out: Path) -> list[str]:
        at = self.folder
        commands: dict[str, list[object]] = {
            "calibrate": ["calibrate", at / MODEL, "--tokens", at / IDS, "-o", out / "S.npz", *FLAGS],
            "merge": ["merge", at / "S.npz", "-o", out / "M.npz"],
            "plan": ["plan", at / MODEL, "--stats", at / "S.npz", "--keep", 6, "-o", out / "P.json"],
            "apply": ["apply", at / MODEL, "--plan", at / "P.json", "-o", out / "p.gguf", "--split-max-size", "3M"],
            "quantize": ["quantize", at / MODEL, "--type", "Q4_K_M", "-o", out / "q.gguf", "-t", 1],
            "narrow": [
                *("narrow", at / MODEL, "--width-ratio", 0.5, "--tokens", at / IDS),
                *("-o", out / "n.gguf", "--plan", at / "P.json", *FLAGS),
            ],
            "imatrix": ["imatrix", at / "S.imatrix.gguf", "-o", out / "i.dat"],
            "eval": ["eval", at / MODEL, "-f", at / TEXT, "--kl-divergence-base", out / "base", *FLAGS],
            "prune": [
                *("prune", at / MODEL, "--keep", 6, "--tokens", at / IDS, "-o", out, *FLAGS),
                *("--quant", "keep", "--quant", "Q4_K_M", "--eval-file", at / TEXT, "--compare"),
            ],
        }
        return [sys.executable, "-m", "ggufreap", *map(str, commands[verb])]


@pytest.fixture(scope="module", autouse=True)
def counted(request: pytest.FixtureRequest) -> Iterator[Counter[str]]:
    """What was done -> how often; told when all is done."""
    counts: Counter[str] = Counter()
    yield counts
    plugin = request.config.pluginmanager.getplugin
    told = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
    with plugin("capturemanager").global_and_fixture_disabled():
        plugin("terminalreporter").write_line(f"\nwhatever stops a run: {told or 'nothing was tried'}")


VERBS = ("calibrate", "merge", "plan", "apply", "narrow", "quantize", "imatrix", "eval", "prune")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def final(folder: Path) -> dict[str, bytes]:
    """What lies under final names: neither private, nor an unfinished calibration."""
    hidden = (".ggufreap-", ".checkpoint")
    return {n: data for n, data in contents(folder).items() if not (n.startswith(hidden[0]) or n.endswith(hidden[1]))}


def run(command: Sequence[str], **options: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload,no-any-return]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    made = Made(tmp_path_factory.mktemp("made"), {}, {})
    tiny_gguf.qwen3moe(made.folder / MODEL, n_embd=256, n_ff=256, n_expert=8, n_used=2)
    np.save(made.folder / IDS, np.random.default_rng(0).integers(0, 300, 640))
    (made.folder / TEXT).write_text("".join(f"{line} quick brown foxes\n" for line in range(60)))
    for verb in VERBS:
        out = tmp_path_factory.mktemp(verb)
        started = time.monotonic()
        done = run(made.command(verb, out))
        assert done.returncode == 0, done.stderr
        made.seconds[verb], made.results[verb] = time.monotonic() - started, contents(out)
        assert final(out) == contents(out), "nothing private is left"
        for path in out.iterdir():
            if verb in ("calibrate", "plan"):
                shutil.copy(path, made.folder)
    return made


def check_after(made: Made, verb: str, out: Path, before: dict[str, bytes]) -> None:
    """Whatever happened: what has a name is right, and the same command ends as if nothing had happened."""
    found = final(out)
    assert found.items() <= (made.results[verb] | {"stranger": b"precious"}).items(), sorted(found)
    assert contents(made.folder) == before
    again = run(made.command(verb, out))
    assert again.returncode == 0, again.stderr
    assert contents(out) == made.results[verb] | {"stranger": b"precious"}
    assert not [path for path in out.iterdir() if path.is_dir()]


def hold_back() -> None:
    """Let Ctrl-C wait until the verb can answer it: while Python starts, Python answers."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("verb", VERBS)
def test_a_strike_at_any_moment(
    made: Made, counted: Counter[str], tmp_path: Path, verb: str, number: signal.Signals
) -> None:
    chance = random.Random(f"{verb} {number} {os.environ.get('GGUFREAP_SEED', 0)}")
    before = contents(made.folder)
    for strike in range(STRIKES):
        out, temporary = tmp_path / str(strike), tmp_path / f"tmp-{strike}"
        for folder in (out, temporary):
            folder.mkdir()
        (out / "stranger").write_bytes(b"precious")
        process = subprocess.Popen(
            made.command(verb, out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=os.environ | {"TMPDIR": str(temporary)},
            preexec_fn=hold_back if number == signal.SIGINT else None,
        )
        time.sleep(chance.uniform(0, made.seconds[verb]))
        if number == signal.SIGKILL:
            os.killpg(process.pid, number)  # whatever sees it in the same way: the whole group is gone
        else:
            process.send_signal(number)
        said = process.communicate(timeout=60)[1].decode()
        died = () if number == signal.SIGINT else (-number,)  # before it could answer
        assert process.returncode in (0, 130, *died), said
        assert "Traceback" not in said or number == signal.SIGKILL
        check_after(made, verb, out, before)
        ending = "that came too late" if process.returncode == 0 else "after which the same command ended the same"
        counted[f"x {number.name} {ending}"] += 1


@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("verb", ["calibrate", "plan", "apply", "quantize", "eval", "prune"])
def test_a_file_that_cannot_grow(made: Made, counted: Counter[str], tmp_path: Path, verb: str, share: float) -> None:
    before, limit = contents(made.folder), int(share * max(map(len, made.results[verb].values())))
    (tmp_path / "stranger").write_bytes(b"precious")

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    # What Python compiles under such a limit is cut short, and must not be kept for later children.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = run(made.command(verb, tmp_path), preexec_fn=limited, env=environment)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    check_after(made, verb, tmp_path, before)
    counted["x a file that could not grow"] += 1


def mounted(options: str, folder: Path, command: Sequence[str], listing: Path) -> "subprocess.CompletedProcess[str]":
    """Run a command with a file system of its own at `folder`, which nobody else sees; what it holds then is listed."""
    script = (
        'mount -t tmpfs -o "$1" tmpfs "$2" || exit 99; l="$3"; d="$2"; shift 3; "$@"; c=$?; ls -A "$d" >"$l"; exit $c'
    )
    return run(["unshare", "-m", "sh", "-c", script, "sh", options, str(folder), str(listing), *command])


def can_mount(folder: Path) -> bool:
    (folder / "trial").mkdir()
    return (
        bool(shutil.which("unshare")) and mounted("size=1m", folder / "trial", ["true"], folder / "l").returncode == 0
    )


@pytest.mark.parametrize("verb", ["calibrate", "plan", "apply", "quantize", "eval", "prune"])
@pytest.mark.parametrize("options", ["size=200k", "ro"])
def test_a_small_or_read_only_disk(made: Made, counted: Counter[str], tmp_path: Path, verb: str, options: str) -> None:
    if not can_mount(tmp_path):
        pytest.skip("only root can mount")
    before = contents(made.folder)
    (out := tmp_path / "out").mkdir()
    done = mounted(options, out, made.command(verb, out), tmp_path / "list")
    found = (tmp_path / "list").read_text().split()
    assert "Traceback" not in done.stderr
    assert not [name for name in found if name.startswith(".ggufreap-")]
    if options == "ro":
        assert (done.returncode, found) == (1, [])
    assert done.returncode == (0 if set(found) == set(made.results[verb]) else 1), done.stderr
    assert contents(made.folder) == before
    counted["x a full or read-only disk"] += 1


def test_two_runs_into_one_folder(made: Made, counted: Counter[str], tmp_path: Path) -> None:
    before = contents(made.folder)
    (tmp_path / "stranger").write_bytes(b"precious")
    command = made.command("prune", tmp_path)
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [each.communicate(timeout=300)[1] for each in both]
    codes = sorted(each.returncode for each in both)
    assert codes == [0, 1], said
    (second,) = (text for each, text in zip(both, said, strict=True) if each.returncode)
    assert "is being written by process" in second.splitlines()[-1]
    check_after(made, "prune", tmp_path, before)
    counted["x two runs into one folder"] += 1
