"""What a run may write: no input, nothing that it did not make, nothing where another run works, no half a file."""

import importlib
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf

from ggufreap import cli, files, verbs
from ggufreap.container import open_gguf
from ggufreap.errors import EngineError, OutputError
from ggufreap.files import claim, private_folder, publish, replacing, writing
from ggufreap.files.folders import OWNER, lock_of
from ggufreap.options.judgement import Judgement

FLAGS = ("-c", "64", "-ub", "64", "-t", "1")


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def put(path: Path, text: str = "new", own: bool = False) -> None:
    with replacing(path, own) as file:
        file.write(text.encode())


# --- replacing --------------------------------------------------------------------------------------------------------


def test_a_file_appears_whole_and_alone(tmp_path: Path) -> None:
    with replacing(tmp_path / "f") as file:
        file.write(b"half")
        assert not (tmp_path / "f").exists()
    assert left(tmp_path) == {"f"}
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "g"):
        raise ZeroDivisionError
    assert left(tmp_path) == {"f"}


def test_another_file_is_replaced_by_force_alone(tmp_path: Path) -> None:
    path = tmp_path / "f"
    put(path, "old")
    before = path.stat()
    put(path, "old")
    assert path.stat() == before, "the same bytes: nothing happens"
    with pytest.raises(OutputError, match=r"is there already and is not of this very work; .*--force"):
        put(path)
    assert path.read_text() == "old"
    with writing(force=True):
        put(path)
    assert path.read_text() == "new"
    put(path, "own", own=True)
    assert path.read_text() == "own"


def test_what_this_run_made_it_may_replace_and_remove(tmp_path: Path) -> None:
    path, other = tmp_path / "f", tmp_path / "other"
    other.write_text("theirs")
    with writing():
        put(path, "one")
        put(path, "two")
        assert path.read_text() == "two"
        put(other, "theirs")
        for each in (path, other):
            files.discard(each)
    assert left(tmp_path) == {"other"}


def test_links_are_not_followed(tmp_path: Path) -> None:
    precious, path = tmp_path / "precious", tmp_path / "f"
    precious.write_text("all I have")
    (tmp_path / "f.partial").symlink_to(precious)
    put(path)
    path.unlink()
    path.symlink_to(precious)
    with pytest.raises(OutputError, match="is there already"):
        put(path)
    with writing(force=True):
        put(path)
    assert (precious.read_text(), path.read_text()) == ("all I have", "new")
    assert not path.is_symlink()
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="is there already"):
        put(path)
    assert not (tmp_path / "nowhere").exists()


def test_a_file_that_comes_in_the_meantime_stays(tmp_path: Path) -> None:
    path = tmp_path / "f"

    def write() -> None:
        with replacing(path) as file:
            file.write(b"ours")
            path.write_text("theirs")

    with pytest.raises(OutputError, match="is there already"):
        write()
    assert path.read_text() == "theirs"
    assert left(tmp_path) == {"f"}


def test_all_names_or_none(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("theirs")
    with writing(), private_folder(tmp_path) as folder:
        for name in "abc":
            (folder / name).write_text(name)
        with pytest.raises(OutputError, match="b is there already"):
            publish({folder / name: tmp_path / name for name in "abc"})
    assert left(tmp_path) == {"b"}


# --- claims -----------------------------------------------------------------------------------------------------------


def hard(path: Path, to: Path) -> None:
    os.link(to, path)


def soft(path: Path, to: Path) -> None:
    path.symlink_to(to)


@pytest.mark.parametrize("link", [hard, soft])
def test_no_output_is_an_input_by_any_name(tmp_path: Path, link: Callable[[Path, Path], None]) -> None:
    source = tmp_path / "in"
    source.write_text("text")
    link(tmp_path / "out", source)
    for path in (source, tmp_path / "out", tmp_path / "." / "in"):
        with writing(force=True), pytest.raises(OutputError, match="is the input itself"):
            claim(path, inputs=[source])


def test_two_outputs_are_two_files(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with writing(), pytest.raises(OutputError, match="are one file, and two are to be written"):
        claim(tmp_path / "out", tmp_path / "link" / "out")


def test_what_is_known_before(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    long = "n" * (os.pathconf(tmp_path, "PC_NAME_MAX") + 1)
    expected = {"folder": "is a directory", "pipe": "is no file on disk", "no/out": "does not exist", long: "shorter"}
    for name, line in expected.items():
        with writing(), pytest.raises(OutputError, match=line):
            claim(tmp_path / name)


def test_nothing_is_written_to_standard_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with writing(), pytest.raises(OutputError, match="nothing is written to standard output; name a file with -o"):
        claim(Path("-"))


def test_one_run_at_a_time(tmp_path: Path) -> None:
    path, inside, done = tmp_path / "out", threading.Event(), threading.Event()

    def first() -> None:
        with writing():
            claim(path)
            inside.set()
            done.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    try:
        assert inside.wait(10)
        with writing(force=True), pytest.raises(OutputError) as caught:
            claim(path)
        assert f"is being written by process {os.getpid()} on " in str(caught.value)
        assert "wait for it, or choose another -o" in str(caught.value)
    finally:
        done.set()
        thread.join()
    with writing():
        claim(path)
    assert left(tmp_path) == set()


DYING = """
import os, sys
from pathlib import Path
from ggufreap.files import claim, private_folder, writing
with writing():
    claim(Path(sys.argv[1]) / "out")
    with private_folder(Path(sys.argv[1])) as folder:
        (folder / "model.gguf").write_bytes(b"large")
        os.kill(os.getpid(), 9)
"""


@pytest.fixture
def dead(tmp_path: Path) -> set[str]:
    subprocess.run([sys.executable, "-c", DYING, str(tmp_path)], check=False)
    names = left(tmp_path)
    assert len(names) == 2
    return names


def test_a_dead_owner_is_named_and_its_leftovers_go(
    tmp_path: Path, dead: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    mine = tmp_path / ".ggufreap-1-notheirs"
    mine.mkdir()
    (tmp_path / ".ggufreap-backup").mkdir()
    with caplog.at_level(logging.WARNING):
        put(tmp_path / "out")
    assert "died while it worked on it; its lock was taken over" in caplog.text
    assert left(tmp_path) == {"out", mine.name, ".ggufreap-backup"}


def test_leftovers_go_where_nothing_is_written_too(tmp_path: Path, dead: set[str]) -> None:
    assert dead <= left(tmp_path)
    with writing():
        claim(tmp_path / "other")
    assert not dead & left(tmp_path)


@pytest.mark.parametrize("owned", [(), (OWNER,), ("precious",)])
def test_a_folder_goes_whose_maker_died_before_it_was_its_own(tmp_path: Path, owned: tuple[str, ...]) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    theirs, living = (tmp_path / f".ggufreap-{maker}-12345678" for maker in (gone.pid, os.getpid()))
    for folder in (theirs, living):
        folder.mkdir()
        for name in owned:
            (folder / name).touch()
    put(tmp_path / "out")
    assert left(tmp_path) == {"out", living.name} | ({theirs.name} if "precious" in owned else set())


def test_leftovers_of_the_living_stay(tmp_path: Path, dead: set[str]) -> None:
    with writing(), private_folder(tmp_path) as folder:
        claim(tmp_path / "other")
        put(tmp_path / "third")
        assert (folder / OWNER).exists()
        assert lock_of(tmp_path / "other").exists()
        assert not dead & left(tmp_path)
    assert left(tmp_path) == {"third"}


# --- the verbs --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, token ids, a text, statistics with their matrix, a plan and the pruned file."""
    folder = tmp_path_factory.mktemp("made")
    tiny_gguf.qwen3moe(folder / "m-F32.gguf", n_embd=256, n_ff=256, n_expert=8, n_used=2)
    np.save(folder / "ids.npy", np.random.default_rng(0).integers(0, 300, 256))
    (folder / "text.txt").write_text("".join(f"{line} quick brown foxes\n" for line in range(60)))
    (folder / "notes").mkdir()
    shutil.copy(folder / "text.txt", folder / "notes" / "a.txt")
    for command in (
        ["calibrate", "m-F32.gguf", "--tokens", "ids.npy", "-o", "S.npz", *FLAGS],
        ["plan", "m-F32.gguf", "--stats", "S.npz", "--keep", "6", "-o", "P.json"],
        ["apply", "m-F32.gguf", "--plan", "P.json", "-o", "pruned.gguf"],
    ):
        assert run(folder, *command) == 0
    return folder


def run(folder: Path, *arguments: object) -> int:
    before = os.getcwd()
    os.chdir(folder)
    try:
        return cli.main(list(map(str, arguments)))
    finally:
        os.chdir(before)


# What would be overwritten -> the command that must not do that, with --force neither.
INPUTS = {
    "m-F32.gguf": [
        "apply m-F32.gguf --plan P.json -o m-F32.gguf",
        "calibrate m-F32.gguf --tokens ids.npy -o m-F32.gguf",
        "plan m-F32.gguf --stats S.npz --keep 6 -o m-F32.gguf",
        "quantize m-F32.gguf --type Q8_0 -o m-F32.gguf",
        "imatrix S.imatrix.gguf --model m-F32.gguf -o m-F32.gguf",
        "eval m-F32.gguf -f text.txt -c 64 --kl-divergence-base m-F32.gguf",
    ],
    "P.json": [
        "apply m-F32.gguf --plan P.json -o P.json",
        "imatrix S.imatrix.gguf --model m-F32.gguf --plan P.json -o P.json",
    ],
    "S.npz": ["plan m-F32.gguf --stats S.npz --keep 6 -o S.npz", "merge S.npz -o S.npz"],
    "ids.npy": [
        "calibrate m-F32.gguf --tokens ids.npy -o ids.npy",
        "calibrate m-F32.gguf --tokens ids.npy -o T.npz --imatrix-out ids.npy",
    ],
    "text.txt": [
        "calibrate m-F32.gguf -f *.txt -o text.txt",
        "calibrate m-F32.gguf --domain a=text.txt -o text.txt",
        "eval m-F32.gguf -f x=text.txt -c 64 --kl-divergence-base text.txt",
    ],
    "notes/a.txt": [
        "calibrate m-F32.gguf -f notes -o T.npz --imatrix-out notes/a.txt",
        "calibrate m-F32.gguf --dataset notes/*.txt:2 -o notes/a.txt",
    ],
    "S.imatrix.gguf": [
        "imatrix S.imatrix.gguf -o S.imatrix.gguf",
        "quantize m-F32.gguf --type IQ4_XS --imatrix S.imatrix.gguf -o S.imatrix.gguf",
        "plan m-F32.gguf --from-imatrix S.imatrix.gguf --keep 6 -o S.imatrix.gguf",
    ],
}


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(("name", "command"), [(name, each) for name, all_ in INPUTS.items() for each in all_])
def test_no_verb_overwrites_what_it_reads(
    made: Path, name: str, command: str, force: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (made / name).read_bytes()
    assert run(made, *command.split(), *(["--force"] if force else [])) == 1
    assert "is the input itself" in capsys.readouterr().err
    assert (made / name).read_bytes() == before


WRITERS = {
    "calibrate": "calibrate m-F32.gguf --tokens ids.npy -c 64 -ub 64 -o {} --no-imatrix",
    "the matrix of calibrate": "calibrate m-F32.gguf --tokens ids.npy -c 64 -ub 64 -o T.npz --imatrix-out {}",
    "plan": "plan m-F32.gguf --stats S.npz --keep 6 -o {}",
    "apply": "apply m-F32.gguf --plan P.json -o {}",
    "quantize": "quantize m-F32.gguf --type Q8_0 -o {}",
    "imatrix": "imatrix S.imatrix.gguf -o {}",
    "merge": "merge S.npz -o {}",
    "eval": "eval m-F32.gguf -f text.txt -c 64 --kl-divergence-base {}",
}


@pytest.mark.parametrize("verb", WRITERS)
def test_a_strangers_file_goes_by_force_alone(
    made: Path, tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made, folder := tmp_path / "work")
    out = folder / "stranger"
    out.write_text("precious")
    command = WRITERS[verb].format("stranger").split()
    names = left(folder)
    assert run(folder, *command) == 1
    assert "--force" in capsys.readouterr().err or verb == "calibrate"
    assert out.read_text() == "precious"
    assert left(folder) == names
    assert run(folder, *command, "--force") == 0
    written = out.read_bytes()
    assert written != b"precious"
    assert run(folder, *command) == 0, "its own work again"
    assert out.read_bytes() == written
    assert not [name for name in left(folder) if name.startswith(".ggufreap")]


def test_the_pruned_file_stays_when_a_variant_is_asked_for_later(made: Path, tmp_path: Path) -> None:
    command = ["prune", made / "m-F32.gguf", "--keep", 6, "--tokens", made / "ids.npy", *FLAGS, "-o", tmp_path]
    assert run(made, *command, "--quant", "keep") == 0
    (exact,) = tmp_path.glob("*RANK-AVERAGE*F32.gguf")
    before = exact.read_bytes(), exact.stat().st_mtime_ns
    assert run(made, *command, "--quant", "Q4_K_M") == 0
    assert (exact.read_bytes(), exact.stat().st_mtime_ns) == before
    assert list(tmp_path.glob("*Q4_K_M.gguf"))
    exact.write_text("of a stranger")
    assert run(made, *command, "--quant", "Q4_K_M") == 0
    assert exact.read_text() == "of a stranger"
    assert run(made, *command, "--quant", "keep") == 1
    assert exact.read_text() == "of a stranger"


@pytest.mark.parametrize(
    "name", ["m-F32.imatrix.gguf", "m-F32-RANK-AVERAGE-0.25-Q4_K_M.gguf", "m-F32-RANK-AVERAGE-0.25-F32.plan.json"]
)
def test_prune_knows_a_strangers_file_before_it_calibrates(
    made: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / name.replace("m-F32-RANK-AVERAGE", "m-RANK-AVERAGE")
    shutil.copy(made / "S.imatrix.gguf", place)
    before = place.read_bytes()
    command = ["prune", made / "m-F32.gguf", "--ratio", "0.25", "--tokens", made / "ids.npy", *FLAGS, "-o", tmp_path]
    assert run(made, *command, "--quant", "Q4_K_M") == 1
    assert f"{place.name} is there already" in capsys.readouterr().err
    assert place.read_bytes() == before
    assert not list(tmp_path.glob("*.stats.npz"))
    assert not list(tmp_path.glob("*.checkpoint"))


@pytest.mark.parametrize("failure", ["a proof that fails", "no proof"])
def test_what_is_not_proven_gets_no_name(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    prune = importlib.import_module("ggufreap.verbs.prune")
    from ggufreap.verification import Check, Verification

    def verify(*_: object, **__: object) -> Verification:
        if failure == "no proof":
            raise EngineError("llama.cpp does not load it")
        return Verification((Check("bytes", False, "wrong"),))

    monkeypatch.setattr(prune, "verify", verify)
    command = ["prune", made / "m-F32.gguf", "--keep", 6, "--tokens", made / "ids.npy", *FLAGS, "-o", tmp_path]
    assert run(made, *command, "--quant", "keep") == (1 if failure == "no proof" else 3)
    assert left(tmp_path) == {"m-F32.stats.npz", "m-RANK-AVERAGE-0.25-F32.plan.json"}


def test_apply_says_that_nothing_is_proven(made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    verbs.apply(made / "m-F32.gguf", made / "P.json", tmp_path / "out.gguf")
    assert "is unproven: ggufreap verify" in caplog.text
    assert open_gguf(tmp_path / "out.gguf")


def test_a_checkpoint_that_cannot_be_written_stops_nothing(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from functools import partial

    from ggufreap.observation import chunkwise, observe

    calibrate = importlib.import_module("ggufreap.verbs.calibrate")

    def save(path: Path, *arguments: object, before: Callable[..., None] = chunkwise.save, **named: object) -> None:
        if path.suffix == ".checkpoint":
            raise OutputError(f"cannot write {path}: No space left on device")
        before(path, *arguments, **named)

    monkeypatch.setattr(chunkwise, "save", save)
    monkeypatch.setattr(calibrate, "observe", partial(observe, checkpoint_seconds=0))
    settings = cli_settings()
    verbs.calibrate(made / "m-F32.gguf", tmp_path / "S.npz", made / "ids.npy", settings=settings)
    assert "no checkpoint: cannot write" in caplog.text
    assert left(tmp_path) == {"S.npz"}


def cli_settings() -> object:
    from ggufreap.options.engine import EngineSettings

    return EngineSettings(n_ctx=64, n_ubatch=64, n_threads=1)


def test_a_report_folder_is_looked_at_before_anything_runs(made: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    asked, started = Judgement(report=tmp_path / "file" / "report"), time.monotonic()
    with pytest.raises(OutputError, match="is no folder"):
        verbs.report(made / "m-F32.gguf", [made / "pruned.gguf"], made / "P.json", asked)
    assert time.monotonic() - started < 5
