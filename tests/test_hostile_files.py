"""Damaged and hostile files: every reader gives a value or one bounded line, never a traceback.

Some hundred seeded mutations per reader; GGUFREAP_HOSTILE=N runs N of each.
"""

import json
import os
import random
import struct
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_gguf import qwen3moe
from tiny_report import large_report

from ggufreap.architecture.layout import bind
from ggufreap.container import open_gguf
from ggufreap.corpus.chunks import read_tokens
from ggufreap.corpus.local import LocalFiles
from ggufreap.corpus.rows import to_sample
from ggufreap.corpus.samples import Text, Unusable
from ggufreap.decoding import Damaged
from ggufreap.decoding.arrays import Array, open_arrays, parse_header, take
from ggufreap.errors import GgufReapError, InputError
from ggufreap.evaluation import open_base, writing_base
from ggufreap.evaluation.prompts import load_prompts
from ggufreap.evaluation.tasks import FORMATS
from ggufreap.imatrix import Imatrix, ImatrixEntry, load, save
from ggufreap.narrowing import Narrowing, load_narrowing, save_narrowing
from ggufreap.narrowing.solving import Solved
from ggufreap.narrowing.workplace import Task, Workplace
from ggufreap.planning import ModelIdentity, PruningPlan, check_plan, load_plan
from ggufreap.recipe import load_recipe
from ggufreap.reporting import load_report
from ggufreap.reporting.document import to_json
from ggufreap.showing import LONGEST_MESSAGE

N = int(os.environ.get("GGUFREAP_HOSTILE", "250"))
RECIPES = Path(__file__).parents[1] / "recipes"
WORST = 2 * LONGEST_MESSAGE  # escapes take more room than what they stand for
NUMBERS = (b"0.7", b"1e9", b"-1", b"1e999", b"NaN", b"9" * 30, b"9" * 5000, b"true", b"null", b'"x"', b"[]", b"{}")
VALUES: tuple[Any, ...] = (0.7, 1e9, -1, 2**63, 2**70, True, None, "", "x" * 5000, "\x1b]0;x\x07\u202e", [], {}, [[]])


# --- the files ------------------------------------------------------------------------------------------------------


def plan() -> PruningPlan:
    keep = dict.fromkeys(range(3), (0, 2, 5, 7))
    why = {block: {"retained": 0.75} for block in range(3)}
    return PruningPlan(ModelIdentity("a" * 64, "qwen3moe", "toy"), "reap", "0.50", 8, 4, "mirror", keep, why)


def model_file(path: Path) -> None:
    qwen3moe(path, n_block=1, n_expert=4, n_used=2, n_embd=32, n_ff=32, n_vocab=300, heads=1, kv_heads=1)


def base_file(path: Path) -> None:
    rng = np.random.default_rng(0)
    with writing_base(path, rng.integers(0, 12, (2, 8), np.int32), 12) as writer:
        for _ in range(2):
            writer.add(rng.standard_normal((3, 12), np.float32))


def binary_questions(path: Path) -> None:
    def text(word: str) -> bytes:
        return struct.pack("<I", len(word)) + word.encode()

    answers = struct.pack("<I", 2) + text("yes") + text("no") + struct.pack("<2i", 1, 0)
    path.write_bytes(struct.pack("<3I", 2, 12, 60) + 2 * (text("is it?") + 2 * answers))


def narrowing(path: Path) -> None:
    """The neurons that stay as N.narrowing.json, the columns as N.narrowing.downs.gguf, whichever of them is `path`."""
    rng = np.random.default_rng(0)
    neurons = {block: np.sort(rng.permuted(np.tile(np.arange(32), (4, 1)), axis=1)[:, :24]) for block in range(3)}
    ids = {block: rows.astype(np.int32) for block, rows in neurons.items()}
    downs = {1: rng.standard_normal((4, 8, 24), np.float32)}
    save_narrowing(path.with_name("N.narrowing.json"), Narrowing(32, 24, ids, downs, "x", ("few",)), plan())


def waiting(path: Path) -> None:
    """A block that was narrowed, as it waits for the others."""
    work = Workplace(path.parent, TASK)
    ids = np.zeros((1, 2), np.int32)
    found = Solved(ids, np.ones((1, 3)), np.ones(1, np.int64), np.zeros(1, bool), ids, np.ones(1))

    def columns(put: Callable[[Any], object]) -> Solved:
        put(np.zeros((4, 2), np.float32))
        return found

    work.keep(0, 4, columns)


def matrix(path: Path, legacy: bool) -> None:
    entries = {f"blk.{block}.ffn_down_exps.weight": ImatrixEntry.of([[1, 2], [3, 4]], [5, 6]) for block in range(2)}
    save(path, Imatrix(entries, ("text",), 2, 256), legacy)


TEXTS = {
    "plan.json": plan().to_json(),
    "recipe.toml": (RECIPES / "q4_k_m-q8_0-critical.toml").read_text(encoding="utf-8"),
    "prompts.jsonl": '{"prompt": "one", "domain": "a"}\n{"prompt": "two", "id": 3}\n',
    "questions.jsonl": '{"question": "1+1?", "choices": ["1", "2"], "answer": "B"}\n'
    '{"question": "?", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"}\n',
    "hellaswag.txt": "a man\n1\nruns\nwalks\nsits\nflies\n" * 3,
    "winogrande.csv": "0,the _ is big,cat,dog,1\n1,the _ is small,cat,dog,2\n",
    "rows.jsonl": '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    '{"text": "b", "n": NaN}\n{"instruction": "x", "input": "", "output": "y"}\n',
    "report.json": to_json(large_report(2, 16, ("code", "de"))),
    "rows.json": '[{"text": "a"}, {"prompt": "b", "completion": "c", "tools": "[]"}]',
    "rows.csv": 'text,b\n"two\nlines",1\nx,2\n',
}
TASK = Task("a" * 64, {0: (0,)}, 4, 2, "b" * 64, "all", 64, 64)
BINARIES: dict[str, Callable[[Path], object]] = {
    "N.narrowing.json": narrowing,
    "N.narrowing.downs.gguf": narrowing,
    "0.npz": waiting,
    "base": base_file,
    "questions.bin": binary_questions,
    "model.gguf": model_file,
    "imatrix.gguf": lambda path: matrix(path, legacy=False),
    "imatrix.dat": lambda path: matrix(path, legacy=True),
    "tokens.npy": lambda path: np.save(path, np.arange(24, dtype=np.int32).reshape(2, 12)),
    "arrays.npz": lambda path: np.savez(path, header=np.array('{"a": 1}'), count=np.ones((2, 3)), ids=np.arange(3)),
}


def rows(path: Path) -> None:
    for entry in LocalFiles.find(str(path)).entries():
        if not isinstance(entry.value, Unusable | Text):
            with suppress(Unusable):
                to_sample(entry.value)


def applied(path: Path) -> None:
    """A plan that is read is one that a model could obey."""
    found = load_plan(path)
    assert all(len(kept) == found.n_keep and max(kept) < found.n_expert for kept in found.keep.values())
    assert isinstance(found.to_json(), str)


def all_arrays(path: Path) -> dict[str, Array]:
    with open_arrays(path, "a file of arrays", "make one") as arrays:
        return dict(arrays)


def chunks_of(path: Path) -> None:
    base = open_base(path)
    for index in range(len(base.chunks)):
        assert np.isfinite(base.reference(index).logits).all()


READERS: dict[str, Callable[[Path], object]] = {
    "N.narrowing.json": lambda path: load_narrowing(path, plan()),
    "N.narrowing.downs.gguf": lambda path: load_narrowing(path.with_name("N.narrowing.json"), plan()),
    "0.npz": lambda path: Workplace(path.parent, TASK).solved,
    "plan.json": applied,
    "recipe.toml": load_recipe,
    "prompts.jsonl": load_prompts,
    "questions.jsonl": FORMATS["jsonl"],
    "hellaswag.txt": FORMATS["hellaswag"],
    "winogrande.csv": FORMATS["winogrande"],
    "questions.bin": FORMATS["multiple-choice"],
    "report.json": load_report,
    "rows.jsonl": rows,
    "rows.json": rows,
    "rows.csv": rows,
    "base": chunks_of,
    "model.gguf": lambda path: bind(open_gguf(path)),
    "imatrix.gguf": load,
    "imatrix.dat": load,
    "tokens.npy": read_tokens,
    "arrays.npz": all_arrays,
}


def written(path: Path) -> Path:
    if path.name in TEXTS:
        path.write_text(TEXTS[path.name], encoding="utf-8")
    else:
        BINARIES[path.name](path)
    return path


# --- what is done to them -------------------------------------------------------------------------------------------


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwritten(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    number = rng.choice((0, 1, -1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)) & (2**64 - 1)
    return data[:at] + number.to_bytes(8, "little")[: rng.choice((4, 8))] + data[at + rng.choice((4, 8)) :]


def repeated(data: bytes, rng: random.Random) -> bytes:
    start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:end] + data[start:]


def inserted(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    piece = rng.choice(
        (b"[" * 480, b"{" * 480, b'{"a":' * 480, b"\x00", b"\xff", b'"', b"\n", b"\x1b]0;x\x07", *NUMBERS)
    )
    return data[:at] + piece + data[at:]


def renumbered(data: bytes, rng: random.Random) -> bytes:
    """A digit becomes a number that is none, or too large."""
    places = [at for at, byte in enumerate(data) if 48 <= byte <= 57] or [0]
    at = rng.choice(places)
    return data[:at] + rng.choice(NUMBERS) + data[at + 1 :]


def restructured(data: bytes, rng: random.Random) -> bytes:
    """One value of a JSON document becomes another, or goes; of other files a byte goes."""
    try:
        document = json.loads(data)
    except ValueError:
        at = rng.randrange(len(data))
        return data[:at] + data[at + 1 :]
    places: list[tuple[Any, Any]] = []
    left = [document]
    while left:
        value = left.pop()
        keys: Any = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        places += [(value, key) for key in keys]
        left += [value[key] for key in keys]
    holder, key = rng.choice(places)
    if rng.random() < 0.2:
        del holder[key]
    else:
        holder[key] = rng.choice(VALUES)
    return json.dumps(document).encode()


MUTATIONS = (cut, flipped, overwritten, repeated, inserted, renumbered, restructured)


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_one_line(tmp_path: Path, name: str) -> None:
    path, rng, said = tmp_path / name, random.Random(name), []
    data = written(path).read_bytes()
    READERS[name](path)
    for number in range(N):
        path.write_bytes(MUTATIONS[number % len(MUTATIONS)](data, rng))
        try:
            READERS[name](path)
        except GgufReapError as error:
            said.append(str(error))
    assert all(line.isprintable() and len(line) < WORST for line in said)
    assert len(said) > N / 10 or name.startswith("rows")


# --- single faults, and what is said of them ------------------------------------------------------------------------


def _edited(edit: Callable[[dict[str, Any]], object]) -> str:
    document = json.loads(plan().to_json())
    edit(document)
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (_edited(lambda d: d["layers"]["1"]["keep"].__setitem__(0, 0.7)), "Expected `int"),
        (_edited(lambda d: d.update(n_expert=10**9)), "Expected `int` <= 1024 - at `$.n_expert`"),
        (_edited(lambda d: d.update(n_expert=True)), "Expected `int`, got `bool` - at `$.n_expert`"),
        (_edited(lambda d: d.update(n_keep=3)), "block 0 keeps 4 experts, n_keep is 3"),
        (_edited(lambda d: d.update(n_keep=9)), "it keeps 9 of 8 experts"),
        (_edited(lambda d: d.update(n_group=2, n_expert=12)), "equally many experts in each of 2 groups"),
        (_edited(lambda d: d.update(ratio="-2")), "ratio -2 is not in [0, 1)"),
        (_edited(lambda d: d.update(method="../../x")), "at `$.method`"),
        (_edited(lambda d: d.update(mtp="both")), "Invalid enum value"),
        (_edited(lambda d: d.update(colour="blue")), "unknown field `colour`"),
        (_edited(lambda d: d["layers"]["2"].update(keep=[5, 2, 0, 7])), "block 2 does not keep ascending ids below 8"),
        (_edited(lambda d: d["layers"]["2"].update(keep=[0, 2, 2, 7])), "block 2 does not keep ascending ids below 8"),
        (_edited(lambda d: d["layers"]["2"].update(keep=[0, 2, 5, 8])), "block 2 does not keep ascending ids below 8"),
        (_edited(lambda d: d["layers"]["2"].pop("keep")), "block 2 has no list keep"),
        (_edited(lambda d: d["layers"]["2"].update(retained=[1])), "'retained' is a list, it must be a number"),
        (_edited(lambda d: d["layers"].update({"512": {"keep": [0]}})), "<= 511"),
        (_edited(lambda d: d.update(layers={})), "Expected `object` of length >= 1"),
        (plan().to_json().replace('"0": {', '"0": {"keep": [1]}, "0": {'), "the name '0' stands twice in one object"),
        (plan().to_json().replace("0.75", "NaN", 1), "it is not JSON"),
        ('{"schema": "ggufreap.plan/1", "model": ' + "[" * 480, "it nests more than 64 deep"),
        ('{"schema": "ggufreap.plan/9"}', "has schema 'ggufreap.plan/9', this version reads 'ggufreap.plan/1'"),
        ("<!DOCTYPE html><p>404", "is a web page, which a server sent in place of the file, not a plan of ggufreap"),
        ("version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer, which git lfs pull replaces"),
    ],
)
def test_what_is_wrong_with_a_plan_is_said(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "p.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_plan(tmp_path / "p.json")
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'p.json'} ")
    assert len(str(caught.value)) < len(str(tmp_path)) + 300
    assert caught.value.__cause__ is not None or "is a " in said or "schema" in said


@pytest.mark.parametrize("read", [load_plan, load_recipe, load_report], ids=lambda read: read.__name__)
def test_a_model_in_the_wrong_place_is_told_by_its_first_bytes(tmp_path: Path, read: Callable[[Path], object]) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(b"GGUF" + os.urandom(32 << 20))
    tracemalloc.start()
    with pytest.raises(InputError) as caught:
        read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "is a GGUF file, not a" in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 500
    assert peak < 40 << 20


def test_a_plan_applies_to_its_model_alone(tmp_path: Path) -> None:
    model_file(tmp_path / "m.gguf")
    layout = bind(open_gguf(tmp_path / "m.gguf"))
    with pytest.raises(GgufReapError, match="make a plan for this file"):
        check_plan(plan(), ModelIdentity("b" * 64, "qwen3moe", "other\x1b[2J\nname"), layout)


def test_a_recipe_takes_no_time_that_grows_with_the_square_of_its_keys(tmp_path: Path) -> None:
    path, before = tmp_path / "r.toml", time.process_time()
    for text, said in (
        ("a." * 100_000 + "a = 1", "a key has more than 64 parts"),
        ("a = " + "[" * 480, "is not TOML"),
        ("ratio = " + "9" * 5000, "is not TOML"),
        (f"[target]\nkeep = {hex(2**80)}", "an integer has more than 64 bits"),
        ("#" * (1 << 20), "has more than 262,144 bytes, so it is not a recipe"),
        (f"[target]\n{'x' * 9000} = 1", "is not known"),
        (f"[target]\nkeep = '{'x' * 9000}'", "it must be a whole number"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=said) as caught:
            load_recipe(path)
        assert len(str(caught.value)) < len(str(path)) + 400
    assert time.process_time() - before < 5


@pytest.mark.parametrize("claimed", [10**12, 2**62, -1])
def test_an_array_takes_no_memory_that_its_file_does_not_have(tmp_path: Path, claimed: int) -> None:
    path = tmp_path / "t.npy"
    np.save(path, np.arange(24, dtype=np.int32))
    header = f"{{'descr': '<i4', 'fortran_order': False, 'shape': ({claimed},), }}".ljust(117).encode() + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(96))
    with pytest.raises(InputError, match=r"is not an \.npy file of numbers: "):
        read_tokens(path)


def test_an_archive_is_no_bomb(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, count=np.zeros(4 << 20))
    with pytest.raises(InputError, match="claim to unpack to 33,554,"):
        all_arrays(path)
    np.savez(path, what=np.array([{}], object))
    with pytest.raises(InputError, match="'what': it holds object; plain numbers and text are read"):
        all_arrays(path)


def test_what_an_archive_holds_is_checked_by_name_type_shape_and_value(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, header=np.array('{"a": 1}'), count=np.array([[1.0, np.nan]]), ids=np.array([3, -1]), half="\ud800")
    arrays = all_arrays(path)
    assert parse_header(arrays, "header", dict[str, int]) == {"a": 1}
    assert take(arrays, "ids", "iu", (2,)).tolist() == [3, -1]
    for wrong, said in (
        (lambda: take(arrays, "tokens", "iu", (2,)), "it has no tokens"),
        (lambda: take(arrays, "ids", "f", (2,)), "ids holds int64"),
        (lambda: take(arrays, "ids", "iu", (3,)), r"ids has shape \(2,\), the rest says \(3,\)"),
        (lambda: take(arrays, "ids", "iu", (2,), least=0), "ids holds -1, below 0"),
        (lambda: take(arrays, "count", "f", (1, 2)), "count holds what is no number"),
        (lambda: parse_header(arrays, "count", dict[str, int]), "count holds float64"),
        (lambda: parse_header(arrays, "half", dict[str, int]), "it is not JSON"),
        (lambda: parse_header(arrays, "header", dict[str, str]), r"Expected `str`, got `int` - at `\$\[...\]`"),
    ):
        with pytest.raises(Damaged, match=said):
            wrong()
