"""The laws of narrower experts in bytes, over every layout of experts, without llama.cpp running a model."""

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
import tiny_layouts
from gguf import GGMLQuantizationType as Kind
from tiny_narrow import identity, random_narrowing, random_plan, with_columns

from ggufreap.architecture.layout import bind
from ggufreap.container import GgufFile, open_gguf, write
from ggufreap.engine.encoding import decode_rows, encode_rows
from ggufreap.errors import InfeasiblePlan, UnsupportedModel
from ggufreap.imatrix import Imatrix, ImatrixEntry, narrowed
from ggufreap.model import Model
from ggufreap.narrowing import Narrowing
from ggufreap.planning import PruningPlan
from ggufreap.progress import silent
from ggufreap.rewriting import Narrow, execute, lower
from ggufreap.rewriting.narrow import down_type

SMALL = {"n_expert": 16, "n_used": 4, "n_embd": 64, "n_ff": 96}
LAYOUTS = {
    "plain": [],
    "fused": [tiny_layouts.fused],
    "scaled": [tiny_layouts.scaled],
    "biased": [tiny_layouts.biased],
    "mtp": [tiny_layouts.with_mtp],
}
WIDTH = 64


@pytest.fixture(params=LAYOUTS)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> GgufFile:
    changes = LAYOUTS[request.param]
    return open_gguf(tiny_gguf.qwen3moe(tmp_path / "m.gguf", types=Kind.Q8_0, changes=changes, **SMALL))


@pytest.fixture
def plain(tmp_path: Path) -> GgufFile:
    return open_gguf(tiny_gguf.qwen3moe(tmp_path / "plain.gguf", types=Kind.F32, **SMALL))


def written(
    file: GgufFile, plan: PruningPlan, narrowing: Narrowing, name: str = "out.gguf", **asked: object
) -> GgufFile:
    out = file.path.with_name(name)
    script = lower(Model(file, bind(file)), plan, out, narrow=Narrow(narrowing), **asked)
    execute(script)
    assert script.nbytes == sum(each.path.stat().st_size for each in script.files), "prediction"
    return open_gguf(script.files[0].path)


def weights(file: GgufFile, name: str) -> np.ndarray:
    record = file.by_name[name]
    return decode_rows(file.map(record), record.type, record.shape[-1]).reshape(record.shape)


def raw(file: GgufFile, name: str, *shape: int) -> np.ndarray:
    return file.map(file.by_name[name]).reshape(*shape, -1)


def test_every_tensor_is_what_it_should_be(file: GgufFile) -> None:
    layout = bind(file)
    plan = random_plan(file, layout, 11)
    narrowing = random_narrowing(file, layout, plan, WIDTH)
    found = written(file, plan, narrowing)
    for record in found.tensors:
        block, name = layout.per_expert.get(record.name), record.name
        if block is None:
            assert np.array_equal(raw(found, name), raw(file, name)), name
            continue
        kept, ids = list(plan.keep[block]), narrowing.neurons[block]
        if match := re.search(r"ffn_(gate_up|gate|up)_exps\.(weight|bias)", name):
            times = 2 if match[1] == "gate_up" else 1
            before = raw(file, name, 16, times, 96)[kept]
            after = raw(found, name, 11, times, WIDTH)
            for place, row in enumerate(ids):
                assert np.array_equal(after[place], before[place][:, row]), name
        elif name.endswith("ffn_down_exps.weight"):
            wanted = np.stack([each[:, row] for each, row in zip(weights(file, name)[kept], ids, strict=True)])
            assert record.type == Kind.Q8_0
            assert np.abs(weights(found, name) - wanted).max() <= np.abs(wanted).max() / 127
        else:
            assert np.array_equal(raw(found, name, 11), raw(file, name, 16)[kept]), name
    assert found.get("qwen3moe.expert_feed_forward_length") == WIDTH
    assert found.get("qwen3moe.feed_forward_length") == file.get("qwen3moe.feed_forward_length")


def test_all_neurons_change_nothing_but_what_the_file_says(file: GgufFile) -> None:
    layout = bind(file)
    plan = random_plan(file, layout, 16)
    found = written(file, plan, random_narrowing(file, layout, plan, 96))
    for record in file.tensors:
        assert np.array_equal(raw(found, record.name), raw(file, record.name)), record.name
    assert found.get("qwen3moe.expert_feed_forward_length") == 96


def test_columns_of_down_are_exact_in_plain_types(tmp_path: Path) -> None:
    for kind in (Kind.F32, Kind.F16, Kind.BF16):
        file = open_gguf(tiny_gguf.qwen3moe(tmp_path / f"{kind.name}.gguf", types=kind, **SMALL))
        layout = bind(file)
        plan = random_plan(file, layout, 12)
        narrowing = random_narrowing(file, layout, plan, 40)
        found = written(file, plan, narrowing, f"{kind.name}-narrow.gguf")
        name, size = "blk.1.ffn_down_exps.weight", 4 if kind is Kind.F32 else 2
        before = raw(file, name, 16, 64, 96, size)[list(plan.keep[1])]
        after = raw(found, name, 12, 64, 40, size)
        for place, row in enumerate(narrowing.neurons[1]):
            assert np.array_equal(after[place], before[place][:, row])


def test_two_cuts_equal_one(plain: GgufFile) -> None:
    layout = bind(plain)
    plan = random_plan(plain, layout, 12)
    first = random_narrowing(plain, layout, plan, 80, seed=1)
    middle = written(plain, plan, first, "middle.gguf")
    everything = random_plan(middle, bind(middle), 12)
    second = random_narrowing(middle, bind(middle), everything, 48, seed=2)
    twice = written(middle, everything, second, "twice.gguf")
    both = {block: np.take_along_axis(first.neurons[block], ids, axis=1) for block, ids in second.neurons.items()}
    once = written(plain, plan, Narrowing(96, 48, both), "once.gguf")
    for record in once.tensors:
        assert np.array_equal(raw(twice, record.name), raw(once, record.name)), record.name


def test_computed_columns_are_written(plain: GgufFile) -> None:
    layout = bind(plain)
    plan = random_plan(plain, layout, 12)
    narrowing = with_columns(plain, plan, random_narrowing(plain, layout, plan, WIDTH))
    found = written(plain, plan, narrowing)
    assert np.array_equal(weights(found, "blk.1.ffn_down_exps.weight"), narrowing.downs[1])


def test_importance_guides_the_columns(tmp_path: Path) -> None:
    file = open_gguf(tiny_gguf.qwen3moe(tmp_path / "m.gguf", types=Kind.Q4_0, **SMALL))
    layout = bind(file)
    plan = random_plan(file, layout, 12)
    narrowing = with_columns(file, plan, random_narrowing(file, layout, plan, WIDTH))
    name = "blk.1.ffn_down_exps.weight"
    importance = {name: np.random.default_rng(0).gamma(0.3, 1, (12, WIDTH)).astype(np.float32)}
    script = lower(Model(file, layout), plan, tmp_path / "out.gguf", narrow=Narrow(narrowing, importance=importance))
    execute(script)
    found = open_gguf(tmp_path / "out.gguf")
    expected = [
        encode_rows(down, Kind.Q4_0, row) for down, row in zip(narrowing.downs[1], importance[name], strict=True)
    ]
    assert np.array_equal(raw(found, name, 12), np.stack([each.ravel() for each in expected]))
    assert not np.array_equal(expected[0], encode_rows(narrowing.downs[1][0], Kind.Q4_0))


def test_a_split_set_is_narrowed_too(tmp_path: Path) -> None:
    file = open_gguf(tiny_gguf.qwen3moe(tmp_path / "m.gguf", types=Kind.Q8_0, per_shard=9, **SMALL))
    layout = bind(file)
    plan = random_plan(file, layout, 12)
    narrowing = random_narrowing(file, layout, plan, WIDTH)
    one, same = (written(file, plan, narrowing, f"{keep}.gguf", keep_split=keep) for keep in (False, True))
    assert len(same.headers) == len(file.headers) > 1
    for record in one.tensors:
        assert np.array_equal(raw(one, record.name), raw(same, record.name)), record.name


def test_what_is_announced_has_to_come(plain: GgufFile, tmp_path: Path) -> None:
    layout = bind(plain)
    plan = random_plan(plain, layout, 16)
    narrow = Narrow(random_narrowing(plain, layout, plan, WIDTH))
    script = lower(Model(plain, layout), plan, tmp_path / "out.gguf", narrow=narrow)
    tensors = script.files[0].tensors
    piece = next(tensor for tensor in tensors if "ffn_down_exps" in tensor.name).pieces[0]
    short = replace(piece, compute=lambda: np.zeros(4, np.uint8))
    broken = tuple(
        replace(tensor, pieces=(short, *tensor.pieces[1:])) if piece in tensor.pieces else tensor for tensor in tensors
    )
    with silent("write", 0, "B") as bar, pytest.raises(AssertionError, match="4 bytes were computed"):
        write((replace(script.files[0], tensors=broken),), bar)
    assert not (tmp_path / "out.gguf").exists()


SPOILT = {
    "another width": (lambda own: replace(own, source_width=97), "is for experts of 97 neurons"),
    "no block": (lambda own: replace(own, neurons={0: own.neurons[0]}), "disagree on MoE block 1"),
    "too few": (lambda own: replace(own, width=65), "does not name 65 ascending neurons"),
    "twice": (
        lambda own: replace(own, neurons={**own.neurons, 1: np.sort(own.neurons[1] // 2, axis=1)}),
        "does not name 64 ascending neurons",
    ),
    "beyond": (lambda own: replace(own, neurons={**own.neurons, 1: own.neurons[1] + 40}), "ascending neurons below 96"),
    "columns of another size": (
        lambda own: replace(own, downs={1: np.zeros((16, 64, 63), np.float32)}),
        r"columns of down of shape \[16, 64, 63\]",
    ),
}


@pytest.mark.parametrize("what", SPOILT)
def test_narrowings_that_do_not_fit(plain: GgufFile, what: str) -> None:
    layout = bind(plain)
    plan = random_plan(plain, layout, 16)
    spoil, words = SPOILT[what]
    with pytest.raises(InfeasiblePlan, match=words):
        written(plain, plan, spoil(random_narrowing(plain, layout, plan, WIDTH)))


def test_a_type_that_needs_importance_is_refused_without(tmp_path: Path) -> None:
    sizes = {**SMALL, "n_embd": 256, "n_ff": 512}
    file = open_gguf(tiny_gguf.qwen3moe(tmp_path / "m.gguf", types=Kind.IQ2_XXS, **sizes))
    layout = bind(file)
    plan = random_plan(file, layout, 16)
    with pytest.raises(UnsupportedModel, match="IQ2_XXS, which cannot be encoded anew without an importance matrix"):
        written(file, plan, random_narrowing(file, layout, plan, 256))
    assert written(file, plan, random_narrowing(file, layout, plan, 480)).by_name[
        "blk.0.ffn_down_exps.weight"
    ].type == (Kind.IQ4_NL)


def test_the_label_and_the_size_are_true(plain: GgufFile) -> None:
    layout = bind(plain)
    plan = random_plan(plain, layout, 12)
    found = written(plain, plan, random_narrowing(plain, layout, plan, WIDTH))
    assert found.get("general.name") == f"{plain.get('general.name')} RANDOM-0.25-NARROW-0.34"
    assert found.get("general.size_label") != plain.get("general.size_label")
    assert not found.get("general.size_label").startswith("12x"), "experts are narrower than that says"
    assert {"pruned", "random", "narrowed"} <= set(found.get("general.tags"))
    assert identity(plain).fingerprint == found.get("ggufreap.source.fingerprint")
    assert found.get("ggufreap.narrowing.compensated") is False


# Types.


@pytest.mark.parametrize(
    ("kind", "width", "intermediate", "expected"),
    [
        (Kind.F32, 100, False, Kind.F32),
        (Kind.BF16, 100, True, Kind.BF16),
        (Kind.Q8_0, 96, False, Kind.Q8_0),
        (Kind.Q8_0, 96, True, Kind.F16),
        (Kind.Q8_0, 100, False, Kind.F16),
        (Kind.Q4_K, 512, False, Kind.Q4_K),
        (Kind.Q4_K, 384, False, Kind.Q5_0),
        (Kind.Q4_K, 400, False, Kind.F16),
        (Kind.IQ4_XS, 384, False, Kind.IQ4_NL),
        (Kind.MXFP4, 384, False, Kind.MXFP4),
    ],
)
def test_the_type_that_down_gets(kind: Kind, width: int, intermediate: bool, expected: Kind) -> None:
    assert down_type(kind, width, intermediate) == expected


SOURCE = os.environ.get("LLAMA_CPP_SOURCE")


@pytest.mark.skipif(SOURCE is None, reason="LLAMA_CPP_SOURCE does not name llama.cpp's sources")
def test_types_give_way_as_in_llama_quantize() -> None:
    text = Path(str(SOURCE), "src/llama-quant.cpp").read_text("utf-8")
    body = text[text.index("static ggml_type tensor_type_fallback") :]
    body = body[: body.index("default:")]
    table, waiting = {}, []
    for case, given in re.findall(r"case GGML_TYPE_(\w+):|return_type = GGML_TYPE_(\w+);", body):
        waiting += [case] if case else []
        if given:
            table |= dict.fromkeys(waiting, given)
            waiting = []
    known = {name: given for name, given in table.items() if name in Kind.__members__}
    assert len(known) > 10
    for name, given in known.items():
        assert down_type(Kind[name], 32 * 9) == Kind[given], name


# The importance matrix.


def test_the_matrix_of_down_is_sliced_and_that_of_shared_experts_filled_up() -> None:
    rng = np.random.default_rng(0)
    sums, shared = rng.random((3, 8)).astype(np.float32), rng.random((1, 8)).astype(np.float32)
    entries = {
        "blk.0.ffn_down_exps.weight": ImatrixEntry.of(sums, [5, 6, 7]),
        "blk.0.ffn_up_exps.weight": ImatrixEntry.of(sums, [5, 6, 7]),
        "blk.0.ffn_down_shexp.weight": ImatrixEntry.of(shared, [18]),
        "blk.1.ffn_down_exps.weight": ImatrixEntry.of(sums, [1]),
    }
    ids = np.array([[0, 3, 7], [1, 2, 3], [4, 5, 6]], np.int32)
    found = narrowed(Imatrix(entries), {0: ids, 1: ids}, shared=10).entries
    assert np.array_equal(found["blk.0.ffn_down_exps.weight"].in_sum2, np.take_along_axis(sums, ids, axis=1))
    assert found["blk.0.ffn_down_exps.weight"].counts.tolist() == [5, 6, 7]
    assert found["blk.0.ffn_up_exps.weight"] is entries["blk.0.ffn_up_exps.weight"]
    assert found["blk.0.ffn_down_shexp.weight"].in_sum2[0, :8].tolist() == shared[0].tolist()
    assert found["blk.0.ffn_down_shexp.weight"].in_sum2[0, 8:] == pytest.approx(shared.mean())
    assert np.array_equal(  # the experts of a .dat lie in one row
        found["blk.1.ffn_down_exps.weight"].in_sum2.reshape(3, 3), np.take_along_axis(sums, ids, axis=1)
    )
