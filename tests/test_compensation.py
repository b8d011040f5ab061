"""Narrowing with compensation: what is summed up, in which portions, what is solved, and what a killed run leaves."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
import tiny_layouts
import tiny_native
import tiny_reference
from dying import killed
from tiny_narrow import narrowed_logits

from ggufreap import verbs
from ggufreap.architecture.layout import bind
from ggufreap.container import open_gguf
from ggufreap.corpus import Chunk
from ggufreap.corpus.request import open_request
from ggufreap.engine.neuron_tap import FewerNeurons
from ggufreap.engine.observables import ACTIVATIONS, STREAM_NORMS
from ggufreap.engine.observing import Wanted
from ggufreap.engine.protocol import RoutedBatch
from ggufreap.engine.session import LlamaSession
from ggufreap.errors import InputError, MismatchError, NumericFailure, UnsupportedModel
from ggufreap.files import writing
from ggufreap.model import Model
from ggufreap.narrowing.collecting import shares
from ggufreap.narrowing.curvature import NEEDS, Curvature, curvature_nbytes
from ggufreap.narrowing.solving import solve
from ggufreap.narrowing.surgeon import damped, refitted, remove
from ggufreap.narrowing.workplace import Solution
from ggufreap.observation import Texts
from ggufreap.options.data import Request
from ggufreap.options.engine import ALL_BLOCKS, EngineSettings
from ggufreap.options.target import Target
from ggufreap.planning import PruningPlan
from ggufreap.saliency import expert_weights
from ggufreap.verbs.compensation import compensated

WHOLE = EngineSettings(
    n_ctx=64, n_ubatch=32, n_threads=1, n_gpu_layers=0, repack=False, blockwise=ALL_BLOCKS, exact=True
)
APART = replace(WHOLE, blockwise=1)
Run = Callable[[Path, PruningPlan, Path, Path], Solution]
N_EMBD, WIDTH, LEFT, N_CHUNKS = 64, 32, 24, 6
# For `killed`, with the name of a function here, a model, its plan, ids and a folder.
NARROWING = """
from pathlib import Path
import test_compensation
from ggufreap import planning
run, model, plan, ids, folder = sys.argv[1:]
getattr(test_compensation, run)(Path(model), planning.load_plan(Path(plan)), Path(ids), Path(folder))
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_gguf.qwen3moe(tmp_path / "m.gguf", n_block=3, n_expert=8, n_used=2, n_embd=N_EMBD, n_ff=WIDTH)


@pytest.fixture
def plan(model: Path) -> PruningPlan:
    return verbs.plan(model, Target(method="random", keep=6))


@pytest.fixture
def ids(tmp_path: Path) -> Path:
    tokens = np.random.default_rng(3).integers(0, 320, (N_CHUNKS, 64)).astype(np.int32)
    np.save(tmp_path / "ids.npy", tokens)
    return tmp_path / "ids.npy"


def run(
    model: Path,
    plan: PruningPlan,
    ids: Path,
    folder: Path,
    settings: EngineSettings = WHOLE,
    width: int = LEFT,
    memory: int = 0,
) -> Solution:
    data = open_request(Request(tokens=str(ids)))
    return compensated(Model.open(model), plan, width, folder, data, memory=memory, settings=settings)


def run_apart(model: Path, plan: PruningPlan, ids: Path, folder: Path) -> Solution:
    return run(model, plan, ids, folder, APART)


def run_sequentially(model: Path, plan: PruningPlan, ids: Path, folder: Path) -> Solution:
    data = open_request(Request(tokens=str(ids)))
    return compensated(Model.open(model), plan, LEFT, folder, data, sequential=True, settings=WHOLE)


def session(path: Path, settings: EngineSettings = WHOLE) -> LlamaSession:
    return LlamaSession(path, bind(open_gguf(path)).nodes, settings)


def sums_of(path: Path, chunks: np.ndarray, keep: Mapping[int, tuple[int, ...]]) -> dict[int, np.ndarray]:
    """H from numpy's forward pass, `[n_expert, width, width]` per block."""
    found: dict[int, np.ndarray] = {}
    for chunk in chunks:
        for block, routed in enumerate(tiny_reference.forward(path, chunk.tolist(), keep=keep)[1]):
            sums = found.setdefault(block, np.zeros((8, WIDTH, WIDTH)))
            counts = routed.g**2 / (routed.s**2).sum(axis=-1, keepdims=True)
            for token, slot in np.ndindex(routed.ids.shape):
                h = routed.h[token, slot]
                sums[routed.ids[token, slot]] += counts[token, slot] * np.outer(h, h)
    return found


# What is summed up.


@pytest.mark.native
def test_the_sums_of_masked_experts_are_those_of_numpy(model: Path, plan: PruningPlan, ids: Path) -> None:
    chunks = np.load(ids)
    expected = sums_of(model, chunks, plan.keep)
    found = {block: Curvature.empty(block, kept, WIDTH) for block, kept in plan.keep.items()}
    with session(model) as engine:
        for chunk in chunks:
            for batch in engine.observe(chunk, Wanted(observables=NEEDS, keep=plan.keep)):
                found[batch.block].fold(batch, weighted_input=False)
    for block, kept in plan.keep.items():
        found[block].flush()
        whole = expected[block][list(kept)]
        np.testing.assert_allclose(found[block].sums, whole, rtol=1e-3, atol=1e-4 * whole.max())
        assert found[block].counts.sum() == 2 * chunks.size
        assert found[block].weight == chunks.size


@pytest.mark.native
@pytest.mark.parametrize("name", ["qwen3moe", "gpt-oss", "gemma4", "llama4", "deepseek4", "nemotron_h_moe", "grok"])
def test_activations_times_down_are_the_outputs(tmp_path: Path, name: str) -> None:
    """Whatever the architecture does before; biases come behind the product."""
    path = tiny_native.build(name, tmp_path / "m.gguf", scales=False)
    file = open_gguf(path)
    nodes = bind(file).nodes
    tokens = np.arange(40, dtype=np.int32)
    with session(path, replace(WHOLE, n_ubatch=24)) as engine:
        batches = engine.observe(tokens, Wanted(observables=(ACTIVATIONS, STREAM_NORMS, "norms")))
    assert [batch.block for batch in batches] == [block.index for block in nodes.blocks] * 2
    for batch in batches:
        biases = file.by_name.get(f"blk.{batch.block}.ffn_down_exps.bias")
        for token, slot in np.ndindex(batch.experts.shape):
            expert = int(batch.experts[token, slot])
            record = file.by_name[f"blk.{batch.block}.ffn_down_exps.weight"]
            output = expert_weights(file, record, expert) @ batch[ACTIVATIONS][token, slot]
            if biases is not None:
                output = output + expert_weights(file, biases, expert).ravel()
            assert np.linalg.norm(output) == pytest.approx(batch["norms"][token, slot], rel=1e-3)


def batch_of(seed: int = 0, **changes: np.ndarray) -> RoutedBatch:
    rng = np.random.default_rng(seed)
    observed = {
        ACTIVATIONS: rng.normal(size=(10, 2, 4)).astype(np.float32),
        STREAM_NORMS: 1 + rng.random(10).astype(np.float32),
    }
    return RoutedBatch(0, rng.integers(0, 3, (10, 2)), rng.random((10, 2)).astype(np.float32), observed | changes)


def test_sums_add_up_over_any_split() -> None:
    whole, parts = Curvature.empty(0, (0, 1, 2), 4), Curvature.empty(0, (0, 1, 2), 4)
    batch = batch_of()
    whole.fold(batch, weighted_input=False)
    for marked in (np.arange(10) < 3, np.arange(10) >= 3):
        parts.fold(batch.only(marked), weighted_input=False)
        parts.flush()
    whole.flush()
    np.testing.assert_allclose(parts.sums, whole.sums, rtol=1e-5)
    assert parts.counts.tolist() == whole.counts.tolist()


def test_what_is_weighted_already_is_not_weighted_again() -> None:
    batch = batch_of()
    weighted = batch_of(**{ACTIVATIONS: batch[ACTIVATIONS] * batch.weights[..., None]})
    found, expected = Curvature.empty(0, (0, 1, 2), 4), Curvature.empty(0, (0, 1, 2), 4)
    found.fold(weighted, weighted_input=True)
    expected.fold(batch, weighted_input=False)
    found.flush()
    expected.flush()
    np.testing.assert_allclose(found.sums, expected.sums, rtol=1e-5)


def test_padding_does_not_count() -> None:
    found = Curvature.empty(0, (0, 1, 2), 4)
    found.fold(batch_of(**{STREAM_NORMS: np.zeros(10, np.float32)}), weighted_input=False)
    found.flush()
    assert not found.sums.any()


def test_what_is_not_finite_is_refused_with_its_place() -> None:
    activations = batch_of()[ACTIVATIONS].copy()
    activations[4, 1, 2] = np.inf
    found = Curvature.empty(7, (0, 1, 2), 4)
    found.fold(batch_of(**{ACTIVATIONS: activations}), weighted_input=False)
    with pytest.raises(NumericFailure, match=r"block 7, expert \d: an activation is NaN or infinite"):
        found.flush()


def test_what_waits_is_added_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ggufreap.narrowing.curvature.TOGETHER", 15)
    found, expected = Curvature.empty(0, (0, 1, 2), 4), Curvature.empty(0, (0, 1, 2), 4)
    for seed in range(3):
        found.fold(batch_of(seed), weighted_input=False)
        expected.fold(batch_of(seed), weighted_input=False)
        expected.flush()
    assert found.counts.sum() == 40  # two of three batches of 10 tokens
    found.flush()
    np.testing.assert_allclose(found.sums, expected.sums, rtol=1e-5)


def test_every_domain_counts_the_same() -> None:
    def chunk(n: int, domain: str, counted: int | None = None) -> Chunk:
        mask = None if counted is None else np.arange(n) < counted
        return Chunk(np.zeros(n, np.int32), domain, 0, mask)

    found = shares(Texts((chunk(60, "a"), chunk(30, "a"), chunk(30, "b", counted=10)), ""))
    assert found == pytest.approx({"a": 100 / 2 / 90, "b": 100 / 2 / 10})
    assert 90 * found["a"] == pytest.approx(10 * found["b"])


# What is solved.


@pytest.mark.native
def test_a_solution_is_the_surgeon_s_of_those_sums(model: Path, plan: PruningPlan, ids: Path, tmp_path: Path) -> None:
    found = run(model, plan, ids, tmp_path / "work")
    expected, file = sums_of(model, np.load(ids), plan.keep), open_gguf(model)
    assert (found.narrowing.source_width, found.narrowing.width) == (WIDTH, LEFT)
    agreeing = 0
    for block, kept in plan.keep.items():
        record = file.by_name[f"blk.{block}.ffn_down_exps.weight"]
        for place, expert in enumerate(kept):
            down = expert_weights(file, record, expert).astype(np.float64)
            hessian = damped(expected[block][expert])
            removal = remove(hessian, down.T @ down, WIDTH - LEFT)
            neurons = found.narrowing.neurons[block][place]
            # Two of near equal cost may change places, where sums differ in their last bits.
            agreeing += np.array_equal(neurons, removal.kept(LEFT, WIDTH))
            np.testing.assert_allclose(
                found.narrowing.downs[block][place], refitted(down, hessian, neurons), rtol=1e-2, atol=1e-3
            )
            assert found.solved[block].losses[place, -1] == pytest.approx(
                removal.losses[-1] / np.load(ids).size, rel=1e-2
            )
    assert agreeing >= 16
    assert found.losses[-1] == pytest.approx(found.loss)
    assert np.all(np.diff(found.losses) >= 0)


@pytest.mark.native
def test_what_as_many_neurons_cost_alone_is_known_without_columns(
    model: Path, plan: PruningPlan, ids: Path, tmp_path: Path
) -> None:
    whole = run(model, plan, ids, tmp_path / "whole")
    data = open_request(Request(tokens=str(ids)))
    found = compensated(Model.open(model), plan, LEFT, tmp_path / "work", data, downs=False, settings=WHOLE)
    assert not list((tmp_path / "work").iterdir())
    assert found.narrowing.downs == {}
    sums, file = sums_of(model, np.load(ids), plan.keep), open_gguf(model)
    neurons, share = found.as_costly
    lost = foreseen = 0.0
    for block, kept in plan.keep.items():
        assert np.array_equal(found.narrowing.neurons[block], whole.narrowing.neurons[block])
        solved, record = found.solved[block], file.by_name[f"blk.{block}.ffn_down_exps.weight"]
        count = WIDTH - neurons[block].shape[1]
        used = LEFT / solved.counts
        assert solved.foreseen == pytest.approx(solved.losses[:, -1] / (1 - used.clip(max=0.5)) ** 2)
        distances = np.abs(solved.bare.sum(axis=0) - solved.foreseen.sum())
        assert distances[count] == distances[1:].min()
        foreseen += solved.foreseen.sum()
        for place, expert in enumerate(kept):
            gone = np.setdiff1d(np.arange(WIDTH), neurons[block][place])
            assert sorted(solved.order[place, :count]) == gone.tolist()
            down, hessian = expert_weights(file, record, expert)[:, gone], sums[block][expert][np.ix_(gone, gone)]
            alone = np.trace(down @ hessian @ down.T) / np.load(ids).size
            assert solved.bare[place, count] == pytest.approx(alone, rel=1e-2)
            lost += alone
    assert share == pytest.approx(foreseen / lost, rel=1e-2)


@pytest.mark.native
def test_experts_with_scales_are_those_with_the_scales_in_their_weights(ids: Path, tmp_path: Path) -> None:
    sizes = {"n_block": 1, "n_expert": 8, "n_used": 2, "n_embd": N_EMBD, "n_ff": WIDTH}
    found = []
    for change in (tiny_layouts.scaled, tiny_layouts.scales_folded):
        path = tiny_gguf.qwen3moe(tmp_path / f"{change.__name__}.gguf", changes=[change], **sizes)
        plan = verbs.plan(path, Target(method="random", keep=6))
        found.append(run(path, plan, ids, tmp_path / change.__name__))
    np.testing.assert_array_equal(found[0].narrowing.neurons[0], found[1].narrowing.neurons[0])
    np.testing.assert_allclose(found[0].losses, found[1].losses, rtol=1e-3)


def test_too_few_tokens_are_answered_by_energy_and_norm(model: Path) -> None:
    file = open_gguf(model)
    rng = np.random.default_rng(0)
    curvature = Curvature.empty(1, (2, 5), WIDTH)
    for place, count in enumerate((WIDTH // 4, WIDTH // 4 - 1)):
        rows = rng.normal(size=(count, WIDTH)).astype(np.float32)
        curvature.sums[place], curvature.counts[place] = rows.T @ rows, count
    curvature.weight = 2.0 * WIDTH
    columns: list[np.ndarray] = []
    found = solve(curvature, file, LEFT, columns.append)
    assert found.alone.tolist() == [False, True]
    down = expert_weights(file, file.by_name["blk.1.ffn_down_exps.weight"], 5)
    energy = curvature.sums[1].diagonal() * (down**2).sum(axis=0)
    assert found.neurons[1].tolist() == sorted(np.argsort(-energy)[:LEFT])
    assert np.array_equal(columns[1], down[:, found.neurons[1]])
    gone = np.setdiff1d(np.arange(WIDTH), found.neurons[1])
    lost = np.trace(down[:, gone] @ curvature.sums[1][np.ix_(gone, gone)] @ down[:, gone].T)
    assert found.losses[1, -1] == pytest.approx(lost / curvature.weight, rel=1e-4)


@pytest.mark.native
def test_experts_with_too_few_tokens_are_named(
    model: Path, plan: PruningPlan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    np.save(tmp_path / "few.npy", np.arange(16, dtype=np.int32)[None])
    found = run(model, plan, tmp_path / "few.npy", tmp_path / "work")
    block, solved = next((block, each) for block, each in found.solved.items() if each.alone.any())
    row = int(solved.alone.nonzero()[0][0])
    assert f"block {block}: too few tokens (fewer than 0.25 for each of {WIDTH} neurons) for expert" in caplog.text
    assert f"{plan.keep[block][row]} ({solved.counts[row]})" in caplog.text


# Fewer neurons in one loaded model.


@pytest.mark.native
def test_all_neurons_are_the_masked_model(model: Path, plan: PruningPlan) -> None:
    file, tokens = open_gguf(model), np.arange(64, dtype=np.int32)
    everything = np.tile(np.arange(WIDTH), (6, 1))
    narrowed = {
        block: FewerNeurons(
            kept,
            everything,
            np.stack([expert_weights(file, file.by_name[f"blk.{block}.ffn_down_exps.weight"], e) for e in kept]),
        )
        for block, kept in plan.keep.items()
    }
    with session(model) as engine:
        np.testing.assert_allclose(
            narrowed_logits(engine, tokens, narrowed), engine.logits(tokens, plan.keep), rtol=1e-3, atol=1e-4
        )


@pytest.mark.native
def test_narrowed_experts_compute_what_columns_of_zeros_would(
    model: Path, plan: PruningPlan, ids: Path, tmp_path: Path
) -> None:
    found, tokens = run(model, plan, ids, tmp_path / "work"), np.arange(64, dtype=np.int32)
    narrowing = found.narrowing

    def write_columns(tiny: tiny_gguf.Model) -> None:
        for block, kept in plan.keep.items():
            name = f"blk.{block}.ffn_down_exps.weight"
            downs, kind = tiny.tensors[name]
            downs = downs.copy()
            for place, expert in enumerate(kept):
                downs[expert] = 0.0
                downs[expert][:, narrowing.neurons[block][place]] = narrowing.downs[block][place]
            tiny.tensors[name] = downs, kind

    sizes = {"n_block": 3, "n_expert": 8, "n_used": 2, "n_embd": N_EMBD, "n_ff": WIDTH}
    changed = tiny_gguf.qwen3moe(tmp_path / "changed.gguf", changes=[write_columns], **sizes)
    narrowed = {
        block: FewerNeurons(kept, narrowing.neurons[block], narrowing.downs[block]) for block, kept in plan.keep.items()
    }
    with session(model) as engine, session(changed) as other:
        expected = other.logits(tokens, plan.keep, 10)
        np.testing.assert_allclose(narrowed_logits(engine, tokens, narrowed, 10), expected, rtol=1e-3, atol=1e-4)
        assert np.abs(engine.logits(tokens, plan.keep, 10) - expected).max() > 1e-3


# In portions, and after a kill.


def assert_same(one: Solution, other: Solution) -> None:
    """Bit by bit."""
    for block, found in one.solved.items():
        assert np.array_equal(found.losses, other.solved[block].losses)
        assert np.array_equal(one.narrowing.neurons[block], other.narrowing.neurons[block])
        assert np.array_equal(one.narrowing.downs[block], other.narrowing.downs[block])


@pytest.mark.native
def test_portions_do_not_matter(
    model: Path, plan: PruningPlan, ids: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    whole = run(model, plan, ids, tmp_path / "whole")
    assert "from 32 to 24 neurons: 384 tokens in chunks of 64, 1 pass, with" in caplog.text
    caplog.clear()
    nbytes = curvature_nbytes(6, WIDTH, 64, 2)
    assert_same(whole, run(model, plan, ids, tmp_path / "two", memory=2 * nbytes + 1))
    assert "2 passes, each over some blocks, with 4.31 MB of memory" in caplog.text
    assert_same(whole, run_apart(model, plan, ids, tmp_path / "apart"))
    caplog.clear()
    assert_same(whole, run(model, plan, ids, tmp_path / "whole"))
    assert "using the narrowed blocks" in caplog.text


@pytest.mark.native
def test_blocks_of_another_task_are_refused(model: Path, plan: PruningPlan, ids: Path, tmp_path: Path) -> None:
    run(model, plan, ids, tmp_path / "work")
    with pytest.raises(MismatchError, match=r"work holds blocks that were narrowed for another .* or --force"):
        run(model, plan, ids, tmp_path / "work", width=16)
    with writing(force=True):
        assert run(model, plan, ids, tmp_path / "work", width=16).narrowing.width == 16


@pytest.mark.native
def test_memory_that_holds_no_block_is_refused(model: Path, plan: PruningPlan, ids: Path, tmp_path: Path) -> None:
    # 6 experts of 32 x 32 sums, and the activations in 2 experts each of 64 tokens and 4096 that wait, held twice while
    # they are added, in 4 bytes.
    assert curvature_nbytes(6, WIDTH, 64, 2) == 4 * (6 * 1024 + 2 * (64 + 4096) * 2 * 32)
    with pytest.raises(InputError, match=r"needs 2.15 MB of memory to be narrowed and 10.0 kB are allowed; allow more"):
        run(model, plan, ids, tmp_path / "work", memory=10_000)


@pytest.mark.native
def test_blocks_that_no_text_reaches_are_narrowed_by_their_norms(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tiny_native.build("qwen35moe", tmp_path / "m.gguf", mtp=True)
    file = open_gguf(path)
    plan = verbs.plan(path, Target(method="random", keep=12))
    block = next(each.index for each in bind(file).blocks if each.mtp)
    np.save(tmp_path / "ids.npy", np.random.default_rng(0).integers(0, 128, (40, 64)).astype(np.int32))
    found = run(path, plan, tmp_path / "ids.npy", tmp_path / "work", width=32)
    record = file.by_name[f"blk.{block}.ffn_down_exps.weight"]
    for place, expert in enumerate(plan.keep[block]):
        down = expert_weights(file, record, expert)
        neurons = found.narrowing.neurons[block][place]
        assert neurons.tolist() == sorted(np.argsort(-(down**2).sum(axis=0), kind="stable")[:32])
        assert np.array_equal(found.narrowing.downs[block][place], down[:, neurons])
    assert f"block {block}: no text reaches it; neurons were chosen by norm" in caplog.text


# Block by block, each making up for those before it.


def missing(path: Path, solution: Solution, keep: Mapping[int, tuple[int, ...]], chunks: np.ndarray) -> float:
    """‖logits of the original - logits of the narrowed‖² over the text."""
    narrowed = {
        block: FewerNeurons(kept, solution.narrowing.neurons[block], solution.narrowing.downs[block])
        for block, kept in keep.items()
    }
    with session(path) as engine:
        return sum(float(((engine.logits(c) - narrowed_logits(engine, c, narrowed)) ** 2).sum()) for c in chunks)


@pytest.mark.native
def test_later_blocks_make_up_for_earlier_ones(model: Path, plan: PruningPlan, tmp_path: Path) -> None:
    chunks = np.random.default_rng(3).integers(0, 320, (40, 64)).astype(np.int32)
    np.save(tmp_path / "ids.npy", chunks)
    plain = run(model, plan, tmp_path / "ids.npy", tmp_path / "plain")
    found = run_sequentially(model, plan, tmp_path / "ids.npy", tmp_path / "work")
    losses = [missing(model, each, plan.keep, chunks[:10]) for each in (plain, found)]
    assert losses[1] < 0.95 * losses[0]
    assert {path.suffix for path in (tmp_path / "work").iterdir()} == {".npz", ".npy"}
    assert_same(found, run_sequentially(model, plan, tmp_path / "ids.npy", tmp_path / "work"))


# Killed.

AT = {
    run: (
        ("ggufreap.narrowing.workplace:solve", 2),
        ("ggufreap.narrowing.workplace:np.savez", 2),
        ("ggufreap.narrowing.collecting:Curvature.fold", 20),
        ("ggufreap.narrowing.collecting:spill_path", 1),
    ),
    run_sequentially: (
        ("ggufreap.narrowing.sequential:Curvature.fold", 20),
        ("ggufreap.narrowing.sequential:_fold", 20),
        ("ggufreap.narrowing.workplace:np.savez", 2),
        ("ggufreap.narrowing.sequential:spill_path", 3),
    ),
}
AT[run_apart] = AT[run]


@pytest.mark.native
@pytest.mark.parametrize(("run", "function", "number"), [(run, *each) for run, places in AT.items() for each in places])
def test_a_killed_run_goes_on(
    run: Run, function: str, number: int, model: Path, plan: PruningPlan, ids: Path, tmp_path: Path
) -> None:
    whole = run(model, plan, ids, tmp_path / "whole")
    folder, saved = tmp_path / "work", tmp_path / "plan.json"
    saved.write_text(plan.to_json())
    killed(NARROWING, function, number, run.__name__, model, saved, ids, folder)
    left = {path: path.stat().st_mtime_ns for path in folder.glob("*.npz")}
    assert_same(whole, run(model, plan, ids, folder))
    assert all(path.stat().st_mtime_ns == time for path, time in left.items())  # what was solved stays
    there = {path.name for path in folder.iterdir() if not path.name.startswith(".ggufreap-")}  # the dead one's locks
    assert there == {f"{block}.{end}" for block in range(3) for end in ("npz", "downs.npy")}


@pytest.mark.native
def test_a_sequence_is_refused_where_the_stream_is_not_what_experts_add_to(tmp_path: Path, ids: Path) -> None:
    path = tiny_native.build("gemma4", tmp_path / "m.gguf")  # a norm behind the experts
    np.save(tmp_path / "ids.npy", np.random.default_rng(0).integers(0, 128, (20, 64)).astype(np.int32))
    plan = verbs.plan(path, Target(method="random", keep=12))
    with pytest.raises(
        UnsupportedModel, match=r"is changed before it joins the residual stream.*leave out --sequential"
    ):
        run_sequentially(path, plan, tmp_path / "ids.npy", tmp_path / "work")
