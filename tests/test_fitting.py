"""What fits a memory: exact sizes and llama.cpp's own buffers, and the search against all there is."""

import logging
import re
import time
from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import real_headers
import tiny_gguf
import tiny_native
from gguf import GGMLQuantizationType as Kind

from ggufreap import fitting
from ggufreap.container import GgufFile
from ggufreap.container.header import block_size
from ggufreap.engine import log
from ggufreap.engine.buffers import Buffers, buffers
from ggufreap.engine.build import Measured
from ggufreap.engine.session import LlamaSession
from ggufreap.errors import EngineError, InfeasiblePlan, InputError
from ggufreap.fitting import Budget, Curve, Mix, Pool, Prospect, Step
from ggufreap.fitting.budget import counted
from ggufreap.fitting.losses import table
from ggufreap.fitting.mixes import UNSEEN
from ggufreap.fitting.pool import NEVER
from ggufreap.imatrix import reached
from ggufreap.model import Model
from ggufreap.options.engine import EngineSettings
from ggufreap.options.fit import Fit, memory_size
from ggufreap.options.target import FRIENDLY, Target
from ggufreap.planning.counts import feasible_counts
from ggufreap.quantization.request import TENSOR_TYPES
from ggufreap.sizing import CLASSES, TYPES, Sizer
from ggufreap.verbs.frontier import verdict, whole_plan
from ggufreap.verbs.prospects import Making
from ggufreap.verbs.widths import Widths, _duration, announce, source_width, widths_for, widths_of

GIB = 1 << 30
CONTEXTS = (2_048, 8_192, 32_768, 131_072)
SHARES = (0.15, 0.25, 0.4, 0.6, 0.9)  # of the size of the model


# --- what is asked ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("16G", 16 * 1000**3), ("16GB", 16 * 1000**3), ("1.5 gib", 3 * GIB // 2), ("900m", 9 * 10**8), ("12", 12)],
)
def test_sizes_are_decimal_or_binary_as_they_are_written(text: str, nbytes: int) -> None:
    assert memory_size()(text) == nbytes


@pytest.mark.parametrize("text", ["", "much", "16 potatoes", "-1G", "1I", "G"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is no size"):
        memory_size()(text)
    with pytest.raises(InputError, match=r"--fit: .* is no size; .* or auto"):
        Target(fit=text or "?")


def test_options_are_checked() -> None:
    assert Target(fit="auto").fit == "auto"
    with pytest.raises(InputError, match="--round: 'much' is not known"):
        Target(round="much")
    with pytest.raises(InputError, match="--fit-ctx: '0' is not a number"):
        Fit(ctx=0)


# --- what there is ----------------------------------------------------------------------------------------------------


def test_memory_of_gpus_counts_and_that_of_integrated_ones_only_once() -> None:
    devices = [
        Measured("CPU", "", "CPU", 7, 9),
        Measured("CUDA0", "", "GPU", 8 * 10**9, 9),
        Measured("CUDA1", "", "GPU", 4 * 10**9, 9),
        Measured("Vulkan1", "", "integrated GPU", 5 * 10**9, 9),
    ]
    total, told = counted(devices, 16 * 10**9)
    assert total == 28 * 10**9
    assert told == "8.00 GB free on CUDA0 and 4.00 GB free on CUDA1 and 16.0 GB free in memory"
    assert counted(devices[:1], 3) == (3, "3 B free in memory")


def test_a_budget_tells_what_is_in_it() -> None:
    budget = Budget(16 * 10**9, "as asked", 8192, Buffers(10**9, 0, 5 * 10**8, 0), 10**9, GIB)
    assert budget.room == 16 * 10**9 - 10**9 - 5 * 10**8 - 10**9 - GIB
    assert "8,192 tokens of context" in budget.told
    assert "1.00 GB vision part" in budget.told
    assert "state" not in budget.told
    assert replace(budget, total=0).told.endswith("leave nothing for the file")


def test_a_vision_part_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    model = tiny_gguf.qwen3moe(tmp_path / "m.gguf")
    with pytest.raises(InputError, match=r"cannot read --mmproj .*nowhere\.gguf: No such file"):
        fitting.budget_of(model, GIB, Fit(mmproj=tmp_path / "nowhere.gguf"))
    (tmp_path / "mmproj.gguf").write_bytes(bytes(1234))
    found = fitting.budget_of(model, GIB, Fit(ctx=256, margin=0, mmproj=tmp_path / "mmproj.gguf"))
    assert found.room == GIB - 1234 - found.buffers.nbytes
    with pytest.raises(EngineError, match=r"does not tell how much memory .*: gguf_init"):
        buffers(tmp_path / "mmproj.gguf", EngineSettings())


def check_buffers(path: Path, n_ctx: int) -> None:
    """As llama.cpp reports them when it does allocate; wlosses too, which are mapped."""
    settings = EngineSettings(n_ctx=n_ctx, n_threads=1, mmap=True)
    told = buffers(path, settings)
    with LlamaSession(path, Model.open(path).layout.nodes, settings):
        taken = log.context_nbytes()
        wlosses = sum(float(line.rpartition("=")[2].split()[0]) for line in log.placement() if "buffer size" in line)
    assert taken > 0
    found, there = told.nbytes + path.stat().st_size, taken + wlosses * 2**20
    assert abs(found - there) <= max(0.03 * there, 64 * 2**20)
    context = told.kv_cache + told.recurrent + told.compute
    assert abs(context - taken) <= max(0.03 * taken, 2**20)


@pytest.mark.native
@pytest.mark.parametrize("n_ctx", [512, 8_192])
def test_buffers_of_the_trained_model_are_those_of_llama_cpp(shared: Path, n_ctx: int) -> None:
    check_buffers(shared / "models" / "six-domain-moe-f16.gguf", n_ctx)


@pytest.mark.native
@pytest.mark.parametrize(("name", "n_block"), [("Qwen3.5-35B-A3B", 4), ("Qwen3-30B-A3B", 6)])
@pytest.mark.parametrize("n_ctx", [512, 16_384])
def test_buffers_of_wide_models_are_those_of_llama_cpp(tmp_path: Path, name: str, n_block: int, n_ctx: int) -> None:
    path = real_headers.write(name, tmp_path, n_block=n_block, n_expert=16, n_vocab=16_384)
    check_buffers(path, n_ctx)


# --- what is estimated ------------------------------------------------------------------------------------------------


def test_a_curve_never_falls_and_hits_what_was_measured() -> None:
    curve = Curve({0.5: 0.16, 0.25: 0.04, 0.125: 0.05}, measured=True)  # the noise of a measurement
    fractions = np.linspace(0, 0.5, 101)
    losses = curve.at(fractions)
    assert losses[0] == 0
    assert (np.diff(losses) >= 0).all()
    assert curve.at([0.125, 0.25, 0.5]).tolist() == pytest.approx([0.05, 0.05, 0.16])
    assert curve.at([0.0625]).tolist() == pytest.approx([0.05 / 4])
    assert curve.last == 0.5


def test_the_table_has_all_that_is_searched() -> None:
    found = table()
    assert set(found.classes) == set(CLASSES)
    assert list(found.pruning) == sorted(found.pruning)
    for name in ("gate_up", "down"):
        assert set(found.classes[name]) <= set(TENSOR_TYPES)
        assert found.classes[name]["IQ2_XXS"] > found.classes[name]["Q4_K"] > found.classes[name]["Q8_0"] >= 0
    assert tuple(found.whole) == TYPES
    losses = [found.whole[kind] for kind in ("Q8_0", "Q4_K_M", "Q2_K", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S")]
    assert losses == sorted(losses)


def mixes_of(tmp_path: Path, name: str, **asked: bool) -> tuple[GgufFile, list[Mix]]:
    source = Model.open(real_headers.write(name, tmp_path)).file
    return source, fitting.possible_mixes(source, table(), **asked)


def test_fp4_stays_and_the_rest_may_shrink(tmp_path: Path) -> None:
    _, mixes = mixes_of(tmp_path, "gpt-oss-20b")
    assert mixes[0] == Mix(None)
    assert {mix.routed for mix in mixes[1:]} == {("MXFP4", "MXFP4")}
    assert len({mix.type for mix in mixes}) > 5


def test_rows_have_to_fit(tmp_path: Path) -> None:
    source, mixes = mixes_of(tmp_path, "GLM-4.5-Air")
    downs = {mix.routed[1] for mix in mixes if mix.routed}
    width = source.by_name["blk.1.ffn_down_exps.weight"].shape[-1]
    assert all(width % block_size(TENSOR_TYPES[kind]) == 0 for kind in downs)
    assert {"Q8_0", "IQ4_NL", "BF16"} <= downs
    assert "Q4_K" not in downs
    assert "Q4_K" in {mix.routed[0] for mix in mixes if mix.routed}


def test_low_bits_stay_unless_they_may_lose_twice(tmp_path: Path) -> None:
    low = Model.open(tiny_gguf.qwen3moe(tmp_path / "low.gguf", types=Kind.Q4_K)).file
    assert fitting.possible_mixes(low, table()) == [
        mix for mix in fitting.possible_mixes(low, table()) if set(mix.routed) <= {"Q4_K"}
    ]
    twice = fitting.possible_mixes(low, table(), allow_requantize=True)
    assert {"Q4_K", "IQ3_S", "Q2_K"} <= {mix.routed[0] for mix in twice if mix.routed}
    assert not {"Q8_0", "Q5_K", "Q5_0"} & {mix.routed[0] for mix in twice if mix.routed}


def test_without_importance_there_is_no_type_that_takes_it(tmp_path: Path) -> None:
    source, mixes = mixes_of(tmp_path, "Mixtral-8x7B", weighted=False)
    with Sizer(source) as sizer:
        layout = Model.open(source.path).layout
        smallest = min((mix for mix in mixes if not mix.routed and mix.type), key=lambda mix: -mix.loss)
        assert sizer.quantised(None, smallest.variant(layout).request())
    kinds = {kind for mix in mixes for kind in (*mix.routed, mix.type or "")}
    assert not any(kind.startswith(("IQ1", "IQ2", "IQ3_XXS")) for kind in kinds)
    assert "Q2_K" in kinds


@pytest.mark.native
@pytest.mark.parametrize("name", ["GLM-4.5-Air", "Qwen3.5-35B-A3B"])
def test_blocks_that_no_calibration_runs_need_no_importance(tmp_path: Path, name: str) -> None:
    model = opened(real_headers.write(name, tmp_path))
    layout, making = model.layout, making_of(model)
    assert layout.n_block == layout.n_trunk + 1
    (low,) = (mix for mix in fitting.possible_mixes(model.file, table()) if mix.type == "IQ2_S" and not mix.routed)
    with Sizer(model.file, making.scripts()) as sizer:
        for n_keep in (None, 64):
            tensors = reached(sizer.opened(n_keep), layout)
            said = sizer.quantised(n_keep, making.ask(n_keep, low), imatrix_later=tensors)
            types = [said.types[f"blk.{block}.ffn_up_exps.weight"] for block in (layout.n_trunk - 1, layout.n_trunk)]
            assert types[0].startswith("IQ2")
            assert types[1] == UNSEEN


def test_nothing_is_named_as_the_file_that_it_is_made_from(tmp_path: Path) -> None:
    model = Model.open(tiny_gguf.qwen3moe(tmp_path / "Toy-Q8_0.gguf", types=Kind.Q8_0))
    making = making_of(model)
    mixes = [mix for mix in fitting.possible_mixes(model.file, table()) if mix.type is not None]
    suffixes = [making.variant(n_keep, mix).suffix for mix in mixes for n_keep in (None, 8)]
    assert "Q8_0" not in suffixes
    assert {"Q8_0_MIX", "Q6_K"} <= set(suffixes)


# --- the search -------------------------------------------------------------------------------------------------------


def opened(path: Path) -> Model:
    """A model that is all hole: what tells its wlosses apart would be read from the disk."""
    model = Model.open(path)
    vars(model.file)["fingerprint"] = "0" * 64
    return model


def making_of(model: Model, mtp: str = "mirror") -> Making:
    return Making(model, whole_plan(model, Target(mtp=mtp)), None, None, "text", "m.imatrix.gguf")


NARROWED = ("Qwen3.5-35B-A3B", "DeepSeek-V3")  # all others in tests/benchmarks/fit.py


@pytest.fixture(scope="module", params=real_headers.MODELS)
def searched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Model, Pool]]:
    """A real model's header, and all its prospects."""
    path = real_headers.write(request.param, tmp_path_factory.mktemp("real"))
    model = opened(path)
    start = time.process_time()
    pool = making_of(model).pool(widths_of(model, request.param in NARROWED))
    assert time.process_time() - start < 10
    assert (len(pool.widths) > 1) == (request.param in NARROWED)
    yield model, pool
    path.unlink()


def brute_force(pool: Pool, room: int) -> float | None:
    """The lowest estimate by looking at every prospect in turn."""
    losses = [
        pool.pruning[place] + pool.narrowing[width] + mix.loss
        for place, width, (column, mix) in product(
            range(len(pool.counts)), range(len(pool.widths)), enumerate(pool.mixes)
        )
        if pool.nbytes[place, width, column] <= room
    ]
    return min(losses, default=None)


@pytest.mark.native
def test_the_search_finds_the_best_of_what_fits_at_twenty_budgets(searched: tuple[Model, Pool]) -> None:
    model, pool = searched
    path = model.path
    taken = {n_ctx: buffers(path, EngineSettings(n_ctx=n_ctx)) for n_ctx in CONTEXTS}
    assert taken[131_072].kv_cache > 10 * taken[8_192].kv_cache
    combinations = list(product((int(share * model.file.nbytes) for share in SHARES), CONTEXTS))
    assert len(combinations) == 20
    chosen: set[Prospect] = set()
    start = time.process_time()
    for place, (total, n_ctx) in enumerate(combinations):
        budget = Budget(total, "as asked", n_ctx, taken[n_ctx], 0, GIB)
        found = fitting.lowest(pool, budget.room)
        if found is None:
            assert pool.nbytes.min() > budget.room
            with pytest.raises(InfeasiblePlan, match="the smallest file has"):
                fitting.contenders(pool, budget.room)
            continue
        assert found.nbytes + budget.buffers.nbytes + budget.margin <= budget.total
        assert found.loss == pytest.approx(float(pool.losses[pool.nbytes <= budget.room].min()), abs=0)
        if place == 9:  # the longest of all steps, so once
            assert found.loss == brute_force(pool, budget.room)
        chosen.update(fitting.contenders(pool, budget.room))
    assert time.process_time() - start < 10
    assert any(each.narrowed for each in chosen) == (len(pool.widths) > 1)
    check_sizes(making_of(model), chosen)


def check_sizes(making: Making, chosen: Collection[Prospect], most: int = 2) -> None:
    """That prospects are as large as llama.cpp's dry run says, narrower ones of `most` widths."""
    source = making.model.file
    narrow = sorted({each.width for each in chosen if each.narrowed})
    widths = narrow[:: max(1, -(-len(narrow) // most))]
    for width in (0, *widths):
        with Sizer(source, making.scripts(width)) as sizer:
            for each in chosen:
                if (each.width if each.narrowed else 0) != width:
                    continue
                n_keep = each.n_keep if each.pruned else None
                if each.mix.type is None:
                    exact = making.outline(each.n_keep, width).script.nbytes if n_keep else source.nbytes
                    assert each.nbytes == exact, each.label
                else:
                    asked = making.ask(n_keep, each.mix, width)
                    said = sizer.quantised(n_keep, asked, imatrix_later=source.by_name)
                    assert each.nbytes == said.nbytes, each.label


LOSSES = {"A": 0.0, "B": 0.03, "C": 0.1}


def toy(counts: tuple[int, ...] = (16, 15, 14, 12, 8)) -> Pool:
    """Prospects of round sizes: a hundred bytes for each expert and two, one or half a byte for each of these."""
    mixes = tuple(Mix(kind, (), loss) for kind, loss in LOSSES.items())
    nbytes = np.array([[[100 * count * share for share in (4, 2, 1)]] for count in counts])
    curve = Curve({0.25: 0.04, 0.5: 0.16}, measured=True)
    return Pool(counts, (256,), mixes, nbytes, curve.at([1 - count / 16 for count in counts]), np.zeros(1))


def narrower(pool: Pool, loss: float = 0.005) -> Pool:
    """The same with experts of three quarters of their width, which lose so much."""
    nbytes = np.concatenate([pool.nbytes, pool.nbytes * 3 // 4], axis=1)
    return replace(pool, widths=(256, 192), nbytes=nbytes, narrowing=np.array([0.0, loss]))


def test_ties_go_to_the_smaller_file_and_winners_are_the_lower_of_both_kinds() -> None:
    pool = toy()
    steps = fitting.frontier(pool, [700, 1500, 3200, 6400])
    assert steps[0] == Step(700, None, None, None)
    assert [step.winner and step.winner.label for step in steps[1:]] == [
        "15 of 16 experts, C",
        "unpruned, B",
        "unpruned, A",
    ]
    same = replace(pool, mixes=tuple(replace(mix, loss=0.0) for mix in pool.mixes))
    assert fitting.lowest(same, 10**6).nbytes == 1600  # type: ignore[union-attr]


def test_contenders_are_the_best_of_both_kinds_and_one_that_is_another() -> None:
    labels = [each.label for each in fitting.contenders(toy(), 3200)]
    assert labels == ["unpruned, B", "15 of 16 experts, B", "14 of 16 experts, B"]
    assert len(fitting.contenders(toy(), 3200, 1)) == 1
    assert [each.label for each in fitting.contenders(toy((16,)), 3200)] == ["unpruned, B"]
    with pytest.raises(InfeasiblePlan, match=r"nothing of 700 B can be made: the smallest file has 800 B \(8 of 16"):
        fitting.contenders(toy(), 700)


def test_the_verdict_says_where_pruning_is_worth_it() -> None:
    pool = toy()
    assert "only where no unpruned file is so small: 1.50 kB" in verdict(fitting.frontier(pool, [800, 1500, 3200]))
    assert "not estimated to be better at any size" in verdict(fitting.frontier(pool, [1600, 3200]))
    worse = replace(pool, mixes=(*pool.mixes[:2], replace(pool.mixes[2], loss=1.0)))
    assert "at every size" in verdict(fitting.frontier(worse, [1700, 3100]))


def test_widths_are_a_dimension_of_their_own() -> None:
    pool = narrower(toy())
    best = fitting.lowest(pool, 2400)
    assert best is not None
    assert (best.n_keep, best.width, best.kind) == (16, 192, "narrowed")
    assert best.label == "16 of 16 experts, 192 of 256 neurons, B"
    assert best.loss == pytest.approx(0.035)
    (step,) = fitting.frontier(pool, [2400])
    assert step.winner == step.narrowed == best
    assert [step.unpruned, step.pruned] == [
        fitting.lowest(toy(), 2400, toy().kinds[kind]) for kind in ("unpruned", "pruned")
    ]
    assert {each.sum() for each in pool.kinds.values()} == {1, 4, 5}


def test_each_kind_has_a_place_among_the_contenders() -> None:
    labels = [each.label for each in fitting.contenders(narrower(toy()), 2400)]
    assert labels == ["16 of 16 experts, 192 of 256 neurons, B", "12 of 16 experts, B", "unpruned, C"]
    dear = fitting.contenders(narrower(toy(), 1.0), 2400)
    assert [each.kind for each in dear] == ["pruned", "unpruned", "narrowed"], "whatever is estimated of them"


def test_what_cannot_be_made_is_no_prospect() -> None:
    pool = narrower(toy())
    pool.nbytes[:, 1, 1] = NEVER
    best = fitting.lowest(pool, NEVER)
    assert best is not None
    assert best.loss == 0
    assert pool.size == 5 * 2 * 3 - 5
    assert all(each.mix.label != "B" for each in fitting.contenders(pool, 2400) if each.narrowed)
    assert fitting.spread(pool, 3)[-1] == 6400


@pytest.mark.parametrize(
    ("source_width", "widths"),
    [
        (512, [480, 448, 416, 384, 352, 320, 288, 256]),
        (768, [704, 640, 576, 512, 448, 384]),
        (96, [64]),
        (32, []),
        (14_336, [13_312, 12_288, 11_264, 10_240, 9_216, 8_192, 7_168]),
    ],
)
def test_widths_are_whole_blocks_and_not_too_many(source_width: int, widths: list[int]) -> None:
    assert fitting.widths_to_try(source_width, 0.5) == widths


def test_rows_of_a_width_take_the_types_whose_blocks_they_fill(tmp_path: Path) -> None:
    _, mixes = mixes_of(tmp_path, "Mixtral-8x7B")
    assert all(mix.fits(512) for mix in mixes)
    downs = {mix.routed[1] for mix in mixes if mix.routed and mix.fits(480)}
    assert downs == {"F16", "Q8_0", "Q5_0", "IQ4_NL"}
    assert all(mix.fits(480) for mix in mixes if not mix.routed), "llama-quantize's own mixes fall back"


def test_what_was_measured_of_experts_scales_what_is_tabulated_of_neurons() -> None:
    neurons = Curve.of_neurons(Curve.tabulated())
    assert neurons.points == table().narrowing
    assert list(neurons.points) == sorted(neurons.points)
    assert neurons.at([0.0, 0.25, 0.5]).tolist() == sorted(neurons.at([0.0, 0.25, 0.5]))
    more = Curve({place: 4 * kld for place, kld in table().pruning.items()}, measured=True)
    assert Curve.of_neurons(more).points == pytest.approx({place: 2 * kld for place, kld in neurons.points.items()})
    assert Curve.of_neurons(Curve({0.01: 0.1}, measured=True)).at([0.25])[0] > 0


def test_fewer_experts_and_fewer_neurons_lose_about_the_sum() -> None:
    """Of all splits of the trained model in the lab book: experts x neurons of 32 x 256, bytes, mean KLD."""
    book = (Path(__file__).parent / "benchmarks" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d\d) x (\d{3}) \| [\d.]+ % \| ([\d.]+) /", book, re.MULTILINE)
    splits = [(int(experts), int(neurons), float(kld)) for experts, neurons, kld in rows]
    both = [each for each in splits if each[0] < 32 and each[1] < 256]
    pruning = Curve.tabulated()
    estimated = [
        pruning.at([1 - experts / 32])[0] + Curve.of_neurons(pruning).at([1 - neurons / 256])[0]
        for experts, neurons, _ in both
    ]
    ratios = np.array(estimated) / [kld for *_, kld in both]
    assert len(ratios) >= 12
    assert 0.9 < ratios.min() < ratios.max() < 1.1


@pytest.mark.parametrize(
    ("name", "words"),
    [("gpt-oss-20b", "down is MXFP4, and narrower experts have it encoded anew"), ("", "as asked")],
)
def test_it_is_said_why_experts_stay_as_wide_as_they_are(tmp_path: Path, name: str, words: str) -> None:
    path = real_headers.write(name, tmp_path) if name else tiny_gguf.qwen3moe(tmp_path / "Toy-F16.gguf")
    model = Model.open(path)
    found = widths_of(model, bool(name))
    assert words in found.reason
    assert found.all == (source_width(model),)


def test_what_narrowing_takes_is_told_beforehand(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = Model.open(tiny_gguf.qwen3moe(tmp_path / "Toy-F16.gguf", n_ff=96, types=Kind.F16))
    job: Any = SimpleNamespace(model=model)
    mix = Mix("Q8_0")
    likely = [Prospect(16, n_keep, 96, width, mix, 1, 0.0, 0.0) for n_keep, width in ((12, 96), (12, 64))]
    with caplog.at_level(logging.INFO, "ggufreap"):
        announce(job, Widths((96, 64)), likely)
    (line,) = caplog.messages
    n_experts = 12 * len(model.layout.trunk)
    assert "such as 12 of 16 experts, 64 of 96 neurons, Q8_0" in line
    assert re.search(rf"solving {n_experts} experts takes about \d+ s here; --no-narrow leaves it out", line)
    assert [_duration(seconds) for seconds in (3, 600, 7_200, 200_000)] == ["3 s", "10 min", "2 h", "2 days"]


def test_without_text_or_memory_no_experts_get_narrower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model.open(tiny_gguf.qwen3moe(tmp_path / "Toy-F16.gguf", n_ff=96, types=Kind.F16))
    data = SimpleNamespace(chunk_length=lambda asked: asked or 512)
    job: Any = SimpleNamespace(model=model, data=data, settings=None)
    assert widths_for(job, True) == Widths((96, 64))
    assert "as asked" in widths_for(job, False).reason
    monkeypatch.setattr("ggufreap.verbs.widths.free_memory", lambda: 1000)
    assert "and 1.00 kB are free" in widths_for(job, True).reason
    job.data = None
    assert widths_for(job, True) == Widths((96,), "neurons are chosen by what text runs through them, and none will")


def test_experts_of_one_block_and_shared_experts_that_are_as_wide(tmp_path: Path) -> None:
    small = Model.open(tiny_gguf.qwen3moe(tmp_path / "Toy-F16.gguf", n_ff=32, types=Kind.F16))
    assert "experts of 32 neurons have too few" in widths_of(small, True).reason
    tied = Model.open(tiny_native.build("llama4", tmp_path / "l.gguf"))
    assert "its shared expert is exactly as wide as a routed one" in widths_of(tied, True).reason


def test_friendly_counts_alone_are_searched_where_that_is_asked(tmp_path: Path) -> None:
    model = Model.open(tiny_gguf.qwen3moe(tmp_path / "Toy-F16.gguf", types=Kind.F16))
    making = making_of(model)
    own = Widths((source_width(model),))
    assert making.pool(own, FRIENDLY).counts == (16, 8, 4)
    assert making.pool(own).counts == tuple(feasible_counts(model.layout))
