"""Which model a file is, and what may be used for it: weights, conversions of one model, and what belongs together."""

import dataclasses
import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
from gguf import GGMLQuantizationType

from ggufreap import cli, verbs
from ggufreap.container import identity, open_gguf, unchanged
from ggufreap.errors import MismatchError
from ggufreap.observation import Stored
from ggufreap.options.target import Target
from ggufreap.planning import load_plan, save_plan

KEEP = ["--keep", "8"]


def run(*arguments: object) -> int:
    return cli.main(list(map(str, arguments)))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_gguf.qwen3moe(tmp_path / "m-F32.gguf", n_embd=64, n_ff=32)


def changed(model: Path, tensor: str, at: int, nbytes: int = 4) -> Path:
    """A copy with other bytes, `at` of the tensor's data."""
    data = bytearray(model.read_bytes())
    start = open_gguf(model).by_name[tensor].offset + at
    data[start : start + nbytes] = bytes(byte ^ 1 for byte in data[start : start + nbytes])
    other = model.with_name("other-F32.gguf")
    other.write_bytes(data)
    return other


TENSORS = ("blk.0.ffn_gate_inp.weight", "blk.1.ffn_down_exps.weight", "output_norm.weight")


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("tensor", TENSORS)
def test_any_part_of_the_weights_tells(model: Path, monkeypatch: pytest.MonkeyPatch, tensor: str, small: bool) -> None:
    if not small:  # a large model, as far as the rule for them goes: every slice is sampled at its start
        for name in ("WHOLE_MODEL", "WHOLE_TENSOR"):
            monkeypatch.setattr(identity, name, 0)
    record = open_gguf(model).by_name[tensor]
    slices = record.shape[0] if len(record.shape) > 2 else 1
    before = open_gguf(model).fingerprint
    for index in range(slices):
        other = changed(model, tensor, index * record.nbytes // slices + (0 if not small else 8))
        assert open_gguf(other).fingerprint != before
        assert open_gguf(other).structure == open_gguf(model).structure


def test_experts_in_another_order_are_another_model(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WHOLE_MODEL", "WHOLE_TENSOR"):
        monkeypatch.setattr(identity, name, 0)
    before, file = open_gguf(model).fingerprint, open_gguf(model)
    record = file.by_name["blk.0.ffn_up_exps.weight"]
    experts = np.array(file.map(record)).reshape(record.shape[0], -1)
    data = bytearray(model.read_bytes())
    data[record.offset : record.offset + record.nbytes] = experts[[1, 0, *range(2, len(experts))]].tobytes()
    model.write_bytes(data)
    assert open_gguf(model).fingerprint != before


def test_statistics_of_other_weights_are_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = tmp_path / "ids.npy"
    np.save(ids, np.random.default_rng(0).integers(0, 300, 256))
    stats = tmp_path / "S.npz"
    assert run("calibrate", model, "--tokens", ids, "-o", stats, "-c", 64, "-ub", 64, "-t", 1) == 0
    other = changed(model, "blk.1.ffn_up_exps.weight", 1000)
    assert run("plan", other, "--stats", stats, *KEEP, "-o", tmp_path / "P.json") == 1
    assert "other weights in the same types" in capsys.readouterr().err
    assert Stored.open(stats).provenance.structure == open_gguf(model).structure


def test_a_plan_serves_another_conversion_of_the_model_aloud(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    coarse = tiny_gguf.qwen3moe(tmp_path / "m-Q8_0.gguf", n_embd=64, n_ff=32, types=GGMLQuantizationType.Q8_0)
    assert open_gguf(coarse).structure == open_gguf(model).structure
    chosen = verbs.plan(coarse, Target(keep=8, method="weight_norm"))
    with caplog.at_level(logging.WARNING):
        script = verbs.apply(model, chosen, tmp_path / "out.gguf")
    assert "taken on trust" in caplog.text
    made = open_gguf(script.files[0].path)
    assert made.get("ggufreap.source.fingerprint") == open_gguf(model).fingerprint
    other = changed(coarse, "blk.1.ffn_up_exps.weight", 1000)
    with pytest.raises(MismatchError, match="other weights in the same types"):
        verbs.apply(other, chosen, tmp_path / "no.gguf")


def test_a_plan_of_an_earlier_version_is_named_as_such(model: Path, tmp_path: Path) -> None:
    chosen = verbs.plan(model, Target(keep=8, method="weight_norm"))
    save_plan(path := tmp_path / "P.json", chosen)
    data = json.loads(path.read_text())
    del data["model"]["structure"], data["model"]["types"]
    data["model"]["fingerprint"] = "0" * 64
    path.write_text(json.dumps(data))
    with pytest.raises(MismatchError, match="an earlier version of ggufreap"):
        verbs.apply(model, path, tmp_path / "out.gguf")


def test_a_report_takes_the_plan_of_its_file_alone(model: Path, tmp_path: Path) -> None:
    chosen = verbs.plan(model, Target(keep=8, method="weight_norm"))
    verbs.apply(model, chosen, tmp_path / "out.gguf")
    other = dataclasses.replace(chosen, method="random")
    with pytest.raises(MismatchError, match="was made by the plan"):
        verbs.report(model, [tmp_path / "out.gguf"], other)
    assert verbs.report(model, [tmp_path / "out.gguf"], chosen).ok


def test_pruning_twice_tells_of_the_second_time_alone(model: Path, tmp_path: Path) -> None:
    first = dataclasses.replace(verbs.plan(model, Target(keep=12, method="weight_norm")), corpus="of the first")
    once = verbs.apply(model, first, tmp_path / "once.gguf").files[0].path
    assert open_gguf(once).get("ggufreap.corpus.sha256") == "of the first"
    second = verbs.plan(once, Target(keep=8, method="weight_norm"))
    twice = open_gguf(verbs.apply(once, second, tmp_path / "twice.gguf").files[0].path)
    assert twice.get("ggufreap.corpus.sha256") is None
    assert twice.get("ggufreap.plan.sha256") == second.sha256


def test_what_steers_the_quantiser_is_verified(model: Path, tmp_path: Path) -> None:
    chosen = verbs.plan(model, Target(keep=8, method="weight_norm"))
    out = verbs.apply(model, chosen, tmp_path / "out.gguf").files[0].path
    data = out.read_bytes()
    key = b"ggufreap.source.expert_count"
    at = data.index(key) + len(key) + 4
    out.write_bytes(data[:at] + np.uint32(64).tobytes() + data[at + 4 :])
    found = verbs.verify(model, out, chosen).checks[-1]
    assert (found.name, found.ok) == ("metadata", False)
    assert "ggufreap.source.expert_count is 64, and should be 16" in found.detail


def test_the_plan_keeps_its_identity_on_disk(model: Path, tmp_path: Path) -> None:
    chosen = verbs.plan(model, Target(keep=8, method="weight_norm"))
    save_plan(tmp_path / "P.json", chosen)
    assert load_plan(tmp_path / "P.json").sha256 == chosen.sha256


def hashings(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One entry for every time that a model is hashed; every one counts as large, every file as long untouched."""
    hashed, hash_model = [], identity._hashed
    monkeypatch.setattr(identity, "WHOLE_MODEL", 0)
    monkeypatch.setattr(unchanged, "SETTLED", -1.0)
    monkeypatch.setattr(identity, "_hashed", lambda *args, **kw: hashed.append(True) or hash_model(*args, **kw))
    return hashed


def fingerprint_of_another_run(model: Path) -> str:
    unchanged._known.clear()
    return open_gguf(model).fingerprint


def test_a_large_file_is_read_once_for_all_runs(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = hashings(monkeypatch)
    fingerprints = {fingerprint_of_another_run(model) for _ in range(3)}
    assert (len(fingerprints), len(hashed)) == (1, 1)


@pytest.mark.parametrize("how", ["in place", "with its old time", "another file of the name", "while it is read"])
def test_a_file_that_changed_is_never_believed(model: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    hashed = hashings(monkeypatch)
    before, times = fingerprint_of_another_run(model), model.stat()
    other = changed(model, TENSORS[0], 0).read_bytes()
    if how == "another file of the name":
        (fresh := model.with_name("fresh")).write_bytes(other)
        os.utime(fresh, ns=(times.st_atime_ns, times.st_mtime_ns))
        fresh.replace(model)
    elif how == "while it is read":
        hash_model = identity._hashed
        os.utime(model)
        monkeypatch.setattr(
            identity, "_hashed", lambda *args, **kw: (hash_model(*args, **kw), model.write_bytes(other))[0]
        )
        assert fingerprint_of_another_run(model) == before
        monkeypatch.setattr(identity, "_hashed", hash_model)
    else:
        model.write_bytes(other)
    if how == "with its old time":
        os.utime(model, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert model.stat().st_size == times.st_size
    assert fingerprint_of_another_run(model) != before
    assert len(hashed) >= 2


def test_what_was_just_written_is_not_remembered(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within one tick of a file system's clock it could change again and look the same."""
    hashed = hashings(monkeypatch)
    monkeypatch.setattr(unchanged, "SETTLED", 3600.0)
    assert fingerprint_of_another_run(model) == fingerprint_of_another_run(model)
    assert len(hashed) == 2
