"""The proof of narrower experts: it holds for what was written right, and every way to spoil that is noticed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
import tiny_native
from gguf import GGMLQuantizationType as Kind
from test_verification import flip, nothing_differs
from tiny_narrow import random_narrowing, random_plan, with_columns

from ggufreap import verbs
from ggufreap.architecture.layout import bind
from ggufreap.container import GgufFile, encode, lay_out, open_gguf, write
from ggufreap.model import Model
from ggufreap.narrowing import Narrowing
from ggufreap.options.engine import EngineSettings
from ggufreap.planning import PruningPlan
from ggufreap.progress import silent
from ggufreap.rewriting import Narrow, execute, lower
from ggufreap.verification import N_TOKENS, Check, Verification, verify_file

EXACT = EngineSettings(n_ctx=N_TOKENS, n_ubatch=N_TOKENS, n_threads=1, exact=True)
Made = tuple[GgufFile, PruningPlan, Narrowing, Path]


def make(file: GgufFile, keep: int, width: int, columns: bool = False, **asked: object) -> Made:
    layout = bind(file)
    plan = random_plan(file, layout, keep)
    narrowing = random_narrowing(file, layout, plan, width)
    narrowing = with_columns(file, plan, narrowing) if columns else narrowing
    out = file.path.with_name("narrow.gguf")
    execute(lower(Model(file, layout), plan, out, narrow=Narrow(narrowing, **asked)))
    return file, plan, narrowing, out


@pytest.fixture
def made(tmp_path: Path) -> Made:
    file = open_gguf(tiny_gguf.qwen3moe(tmp_path / "m.gguf", n_embd=64, n_ff=96, types=Kind.Q8_0))
    return make(file, 12, 64)


def proof(made: Made, narrowing: Narrowing | None = None) -> Verification:
    """All checks that need no llama.cpp; those that do are taken to hold."""
    file, plan, own, out = made
    return verify_file(Model(file, bind(file)), plan, out, nothing_differs, silent, narrowing or own)


def failed(found: Verification) -> Check:
    assert not found.ok
    return found.checks[-1]


@pytest.mark.native
@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("name", ["qwen3moe", "gpt-oss", "deepseek2", "llama", "jamba", "gemma4"])
def test_it_holds(name: str, columns: bool, tmp_path: Path) -> None:
    made = make(open_gguf(tiny_native.build(name, tmp_path / "m.gguf")), 12, 24, columns)
    found = verbs.verify(made[0].path, made[3], made[1], narrowing=made[2], settings=EXACT)
    assert [check.name for check in found.checks] == ["header", "metadata", "bytes", "blocks", "logits"]
    found.require()
    assert "24 neurons in each of them" in found.checks[0].detail
    assert "matrices of down are the narrowing's, to the bit" in found.checks[2].detail


@pytest.mark.native
@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_K, Kind.IQ4_XS, Kind.MXFP4])
def test_it_holds_in_every_type(kind: Kind, columns: bool, tmp_path: Path) -> None:
    file = open_gguf(tiny_gguf.qwen3moe(tmp_path / "m.gguf", n_ff=512, n_expert=8, n_used=2, types=kind))
    made = make(file, 6, 192, columns)
    verbs.verify(file.path, made[3], made[1], narrowing=made[2], settings=EXACT).require()


@pytest.mark.native
def test_it_holds_for_what_is_quantised_next(tmp_path: Path) -> None:
    file = open_gguf(tiny_gguf.qwen3moe(tmp_path / "m.gguf", n_embd=64, n_ff=96, types=Kind.Q8_0))
    made = make(file, 12, 64, columns=True, intermediate=True)
    assert {record.type for record in open_gguf(made[3]).tensors if "ffn_down_exps" in record.name} == {Kind.F16}
    verbs.verify(file.path, made[3], made[1], narrowing=made[2], settings=EXACT).require()


def test_one_flipped_bit_in_any_tensor_is_noticed(made: Made) -> None:
    for record in open_gguf(made[3]).tensors:
        if "ffn_down_exps" in record.name:
            continue  # encoded anew: it may be off by rounding
        for offset in (record.offset, record.offset + record.nbytes - 1):
            flip(made[3], offset)
            assert record.name in failed(proof(made)).detail
            flip(made[3], offset)
    assert [check.ok for check in proof(made).checks[:3]] == [True] * 3


def test_down_of_another_expert_is_noticed(made: Made) -> None:
    record = open_gguf(made[3]).by_name["blk.1.ffn_down_exps.weight"]
    slab, data = record.nbytes // 12, bytearray(made[3].read_bytes())
    start = record.offset + 3 * slab
    data[start : start + slab] = data[start + slab : start + 2 * slab]
    made[3].write_bytes(data)
    assert f"for expert {made[1].keep[1][3]}, " in failed(proof(made)).detail


Spoil = Callable[[Narrowing], Narrowing]


def swapped(narrowing: Narrowing) -> Narrowing:
    """One neuron is another in one expert."""
    ids = narrowing.neurons[0].copy()
    other = np.setdiff1d(np.arange(96), ids[5])[0]
    ids[5] = np.sort(np.append(ids[5][1:], other))
    return replace(narrowing, neurons={**narrowing.neurons, 0: ids})


def test_another_narrowing_is_noticed(made: Made) -> None:
    other = swapped(made[2])
    found = failed(proof(made, other))
    assert (found.name, "ggufreap.narrowing.sha256" in found.detail) == ("metadata", True)
    file, plan, _, out = made
    execute(lower(Model(file, bind(file)), plan, out.with_name("other.gguf"), narrow=Narrow(other)))
    relabelled = with_key(open_gguf(out.with_name("other.gguf")), "ggufreap.narrowing.sha256", made[2].sha256)
    found = failed(proof((file, plan, made[2], relabelled)))
    assert (found.name, "differs from rows of expert" in found.detail) == ("bytes", True)


def with_key(file: GgufFile, key: str, value: str | int) -> Path:
    """The same file with one value changed."""
    entries = [encode(key, value, entry.item_type) if entry.key == key else entry for entry in file.metadata.values()]
    layout = bind(file)
    everything = {block.index: tuple(range(layout.n_expert)) for block in layout.blocks}
    plan = replace(random_plan(file, layout, layout.n_expert), keep=everything)
    out = file.path.with_name("changed.gguf")
    script = lower(Model(file, layout), plan, out)
    with silent("write", 0, "B") as bar:
        write(lay_out(out, entries, [script.files[0].tensors], file.alignment), bar)
    return out


@pytest.mark.parametrize("key", ["ggufreap.source.expert_feed_forward_length", "ggufreap.source.fingerprint"])
def test_what_the_file_says_of_its_source_has_to_be_so(made: Made, key: str) -> None:
    file, plan, narrowing, out = made
    value = 95 if "length" in key else "0" * 64
    found = failed(proof((file, plan, narrowing, with_key(open_gguf(out), key, value))))
    assert (found.name, key in found.detail) == ("metadata", True)


def test_a_file_that_is_not_narrower_is_noticed(made: Made) -> None:
    file, plan, narrowing, out = made
    wide = out.with_name("wide.gguf")
    execute(lower(Model(file, bind(file)), plan, wide))
    assert failed(proof((file, plan, narrowing, wide))) == Check(
        "header", False, "12 experts in each of 2 MoE blocks, 96 neurons in each of them, narrowing: 64"
    )


def test_shared_experts_are_looked_at(tmp_path: Path) -> None:
    made = make(open_gguf(tiny_native.build("deepseek2", tmp_path / "m.gguf")), 12, 24)
    record = open_gguf(made[3]).by_name["blk.1.ffn_down_shexp.weight"]
    flip(made[3], record.offset + record.nbytes - 1)  # among the zeros
    assert failed(proof(made)).detail == f"{record.name} is not the source's with zeros behind"
