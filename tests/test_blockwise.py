"""Block by block: the very same statistics as chunk by chunk, in every architecture, whatever stops the run."""

import logging
import os
import re
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
import tiny_native
from dying import killed

from ggufreap import calibrate, verbs
from ggufreap.architecture.layout import bind
from ggufreap.architecture.nodes import STREAM
from ggufreap.container import open_gguf
from ggufreap.engine import fitting
from ggufreap.engine.graph import Graph, Node, Piece
from ggufreap.engine.hollow import Weights, hollow
from ggufreap.engine.piecewise import Piecewise
from ggufreap.engine.session import LlamaSession
from ggufreap.errors import EngineError, InputError, MismatchError, OutputError
from ggufreap.files import kept_folder
from ggufreap.memory import Memory
from ggufreap.observation import checkpoint_path, hidden_path, load
from ggufreap.options.engine import ALL_BLOCKS, FITTING_BLOCKS, EngineSettings
from ggufreap.options.judgement import HeldOut, Judgement
from ggufreap.options.output import Output
from ggufreap.options.target import Target
from ggufreap.verbs.blockwise import into_pieces

REFUSED = {"grovemoe", "dflash", "deepseek4-hash"}
NAMES = [name for name in (*tiny_native.NATIVE, *tiny_native.VARIANTS) if name not in REFUSED]
# Two micro-batches per chunk, and weights where the file has them: repacked ones round otherwise.
CHUNKWISE = EngineSettings(
    n_ctx=64, n_ubatch=32, n_threads=1, n_gpu_layers=0, repack=False, blockwise=ALL_BLOCKS, n_together=1
)
BLOCKWISE = replace(CHUNKWISE, blockwise=1)
# For `killed`, with a model, ids and where statistics go.
CALIBRATING = """
from ggufreap import calibrate
from test_blockwise import BLOCKWISE
model, ids, out = sys.argv[1:]
calibrate(model, out, ids, imatrix_out=out + ".gguf", settings=BLOCKWISE)
"""


def ids_in(folder: Path, n_vocab: int, n_chunks: int = 3) -> Path:
    tokens = np.random.default_rng(3).integers(0, n_vocab, (n_chunks, 64)).astype(np.int32)
    np.save(folder / "ids.npy", tokens)
    return folder / "ids.npy"


def run(model: Path, out: Path, ids: Path, settings: EngineSettings, head: bool = False) -> Path:
    calibrate(model, out, ids, imatrix_out=f"{out}.gguf", process_output=head, settings=settings)
    assert not checkpoint_path(out).exists()
    assert not hidden_path(out).exists()
    return out


def assert_same(one: Path, other: Path) -> None:
    """Bit by bit, the header and the importance matrix included."""
    with np.load(one) as found, np.load(other) as expected:
        assert sorted(found.files) == sorted(expected.files)
        for name in found.files:
            assert np.array_equal(found[name], expected[name]), name
    assert Path(f"{one}.gguf").read_bytes() == Path(f"{other}.gguf").read_bytes()


def pieces_told(caplog: pytest.LogCaptureFixture) -> int:
    told = re.search(r"in (\d+) pieces of the model", caplog.text)
    assert told
    return int(told[1])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_gguf.qwen3moe(tmp_path / "m.gguf", n_block=4)


# The same as chunk by chunk.


@pytest.mark.native
@pytest.mark.parametrize("name", NAMES)
def test_every_architecture_tells_the_same_bits(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path, ids = tiny_native.build(name, tmp_path / "m.gguf"), ids_in(tmp_path, tiny_native.N_VOCAB)
    found = run(path, tmp_path / "b.npz", ids, BLOCKWISE, head=True)
    assert pieces_told(caplog) >= 2
    assert re.search(
        r"\d [kM]B of weights at most and [\d.]+ [kM]B besides; hidden states take [\d.]+ [kM]B in", caplog.text
    )
    assert_same(found, run(path, tmp_path / "c.npz", ids, CHUNKWISE, head=True))


@pytest.mark.native
def test_the_trained_model_tells_the_same_bits(shared: Path, tmp_path: Path) -> None:
    path, ids = shared / "models" / "six-domain-moe-f16.gguf", ids_in(tmp_path, 4000)
    found = run(path, tmp_path / "b.npz", ids, BLOCKWISE)
    assert_same(found, run(path, tmp_path / "c.npz", ids, CHUNKWISE))


@pytest.mark.native
@pytest.mark.parametrize("n_blocks", [2, 3, FITTING_BLOCKS])
def test_any_number_of_blocks_at_a_time_and_a_split_model(n_blocks: int, tmp_path: Path) -> None:
    path = tiny_gguf.qwen3moe(tmp_path / "m.gguf", n_block=4, per_shard=9)
    ids = ids_in(tmp_path, 320)
    found = run(path, tmp_path / "b.npz", ids, replace(BLOCKWISE, blockwise=n_blocks))
    assert_same(found, run(path, tmp_path / "c.npz", ids, CHUNKWISE))


@pytest.mark.native
@pytest.mark.parametrize("shards", ["1/2", "2/2"])
def test_a_shard_of_the_corpus(model: Path, tmp_path: Path, shards: str) -> None:
    ids = ids_in(tmp_path, 320)
    for name, settings in (("b.npz", BLOCKWISE), ("c.npz", CHUNKWISE)):
        calibrate(model, tmp_path / name, ids, shard=shards, settings=settings)
    (found, where), (expected, _) = load(tmp_path / "b.npz"), load(tmp_path / "c.npz")
    assert where.shard == shards
    assert all(np.array_equal(found.total.values[name], expected.total.values[name]) for name in expected.names)


@pytest.mark.native
def test_finished_statistics_serve_both_orders(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    out = run(model, tmp_path / "s.npz", ids_in(tmp_path, 320), BLOCKWISE)
    caplog.clear()
    run(model, out, tmp_path / "ids.npy", CHUNKWISE)
    assert caplog.messages == [f"using the statistics in {out}"]


@pytest.mark.native
def test_blocks_that_share_memory_stay_together(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The last two blocks of this gemma4 read what the second one put into the KV cache."""
    caplog.set_level(logging.INFO)
    overrides = {"block_count": 4, "attention.shared_kv_layers": 2}
    path = tiny_native.build("gemma4", tmp_path / "m.gguf", overrides=overrides)
    ids = ids_in(tmp_path, tiny_native.N_VOCAB)
    found = run(path, tmp_path / "b.npz", ids, BLOCKWISE)
    assert pieces_told(caplog) < 4
    assert_same(found, run(path, tmp_path / "c.npz", ids, CHUNKWISE))


# Stopped.


@pytest.mark.native
@pytest.mark.parametrize(
    ("function", "number"),
    [
        ("ggufreap.engine.piecewise:Piecewise.route", 2),  # within the first piece
        ("ggufreap.engine.piecewise:Piecewise.route", 8),  # within the third
        ("ggufreap.observation.blockwise:save", 1),  # behind the first piece, whose hidden states are there
        ("ggufreap.observation.blockwise:save", 3),
        ("ggufreap.observation.blockwise:spill_path", 2),  # between saving and removing what was read
        ("ggufreap.observation.blockwise:save", 4),  # when all pieces are finished
    ],
)
def test_a_killed_run_goes_on_and_ends_with_the_same_bits(
    model: Path, tmp_path: Path, function: str, number: int
) -> None:
    ids, out = ids_in(tmp_path, 320), tmp_path / "b.npz"
    killed(CALIBRATING, function, number, model, ids, out)
    assert not out.exists()
    assert_same(run(model, out, ids, BLOCKWISE), run(model, tmp_path / "c.npz", ids, CHUNKWISE))


@pytest.fixture
def stopped(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a calibration was stopped in the third of four blocks."""
    out, ids, calls = tmp_path / "s.npz", ids_in(tmp_path, 320), []
    real = Piecewise.route

    def route(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Piecewise, "route", route)
        with pytest.raises(KeyboardInterrupt, match=r"^the same command goes on behind block 1; the blocks after it"):
            calibrate(model, out, ids, imatrix_out=f"{out}.gguf", settings=BLOCKWISE)
    assert checkpoint_path(out).exists()
    return out


@pytest.mark.native
def test_nothing_is_left_of_a_run_without_a_finished_block(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    ids = ids_in(tmp_path, 320)
    before = {*tmp_path.iterdir()}
    monkeypatch.setattr(Piecewise, "route", stop)
    with pytest.raises(KeyboardInterrupt, match="begins anew, since no piece of the model was finished"):
        calibrate(model, tmp_path / "s.npz", ids, settings=BLOCKWISE)
    assert {*tmp_path.iterdir()} == before


@pytest.mark.native
def test_finished_blocks_are_not_computed_again(
    stopped: Path, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    # Nobody says, and the unfinished run decides.
    found = run(model, stopped, tmp_path / "ids.npy", replace(BLOCKWISE, blockwise=0))
    assert pieces_told(caplog) == 1  # both blocks that were left fit into memory
    assert_same(found, run(model, tmp_path / "c.npz", tmp_path / "ids.npy", CHUNKWISE))


@pytest.mark.native
def test_a_folder_of_somebody_else_is_left_alone(model: Path, tmp_path: Path) -> None:
    ids, theirs = ids_in(tmp_path, 320), hidden_path(tmp_path / "s.npz")
    theirs.mkdir()
    (theirs / "0.hidden").write_bytes(b"precious")
    with pytest.raises(OutputError, match=r"s\.npz\.hidden is there already, and no run made it; move it away"):
        run(model, tmp_path / "s.npz", ids, BLOCKWISE)
    calibrate(model, tmp_path / "s.npz", ids, settings=CHUNKWISE)
    assert (theirs / "0.hidden").read_bytes() == b"precious"


@pytest.mark.native
def test_hidden_states_that_nobody_needs_any_more_are_removed(stopped: Path, model: Path, tmp_path: Path) -> None:
    """Of blocks before the last finished one, and of a run that was given up for one in the other order."""
    folder = hidden_path(stopped)
    assert sorted(path.name for path in folder.iterdir()) == ["1.hidden", "owner.json"]
    (folder / "0.hidden").write_bytes(b"left by a run that died before it removed them")
    with kept_folder(folder), pytest.raises(OutputError, match=rf"hidden is in use by process {os.getpid()} on"):
        run(model, stopped, tmp_path / "ids.npy", BLOCKWISE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Piecewise, "route", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(model, stopped, tmp_path / "ids.npy", BLOCKWISE)
    assert sorted(path.name for path in folder.iterdir()) == ["1.hidden", "owner.json"]
    calibrate(model, stopped, tmp_path / "ids.npy", settings=CHUNKWISE, force=True)
    assert not folder.exists()


@pytest.mark.native
def test_without_its_hidden_states_a_run_begins_anew(
    stopped: Path, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in hidden_path(stopped).iterdir():
        path.unlink()
    found = run(model, stopped, tmp_path / "ids.npy", BLOCKWISE)
    assert "its hidden states are gone" in caplog.text
    assert_same(found, run(model, tmp_path / "c.npz", tmp_path / "ids.npy", CHUNKWISE))


@pytest.mark.native
def test_hidden_states_that_were_cut_off_are_refused(stopped: Path, model: Path, tmp_path: Path) -> None:
    (spilled,) = hidden_path(stopped).glob("*.hidden")
    spilled.write_bytes(spilled.read_bytes()[:-4])
    with pytest.raises(EngineError, match=r"ends too early; delete it"):
        run(model, stopped, tmp_path / "ids.npy", BLOCKWISE)


@pytest.mark.native
def test_an_unfinished_run_goes_on_in_its_own_order(stopped: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match=r"went block by block; go on with --blockwise fit, or --force"):
        run(model, stopped, tmp_path / "ids.npy", CHUNKWISE)


def test_an_unfinished_run_does_not_move_its_weights(stopped: Path, model: Path, tmp_path: Path) -> None:
    told = r"the unfinished run in .*checkpoint.* computes on the CPU; leave out -ngl$"
    with pytest.raises(InputError, match=told):
        run(model, stopped, tmp_path / "ids.npy", EngineSettings(n_ctx=64, n_gpu_layers=3))


@pytest.mark.native
def test_other_text_is_refused(stopped: Path, model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "other.npy", np.zeros((3, 64), np.int32))
    with pytest.raises(MismatchError, match="another corpus"):
        run(model, stopped, tmp_path / "other.npy", BLOCKWISE)


# When, and what is said.


@pytest.mark.native
def test_a_model_that_does_not_fit_goes_block_by_block(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    size, ids = model.stat().st_size, ids_in(tmp_path, 320)
    monkeypatch.setattr(fitting, "memory", lambda: Memory(size, size, True))
    settings = replace(CHUNKWISE, blockwise=0)
    found = run(model, tmp_path / "b.npz", ids, settings)
    assert "m.gguf has 52.6 MB and 52.6 MB of memory are free: it is calibrated block by block" in caplog.text
    assert pieces_told(caplog) == 2  # half of the memory holds two of four blocks
    assert_same(found, run(model, tmp_path / "c.npz", ids, CHUNKWISE))
    caplog.clear()
    run(model, tmp_path / "d.npz", ids, replace(settings, mmap=True))  # as asked for
    assert "pieces" not in caplog.text


@pytest.mark.native
def test_what_reads_a_model_over_and_over_refuses_one_that_does_not_fit(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, text = model.stat().st_size, tmp_path / "t.txt"
    text.write_text("def f(x):\n    return x\n" * 40)
    plan = verbs.plan(model, Target(method="random", keep=12))
    verbs.apply(model, plan, tmp_path / "pruned.gguf")
    monkeypatch.setattr(fitting, "memory", lambda: Memory(size, size, True))
    with pytest.raises(EngineError, match=r"m\.gguf has 52\.6 MB, 52\.6 MB of memory are free.* say --mmap"):
        verbs.eval(model, HeldOut((str(text),)), settings=replace(CHUNKWISE, blockwise=0))
    assert verbs.eval(model, HeldOut((str(text),)), settings=replace(CHUNKWISE, mmap=True))
    # Few passes, and the last step of a long job.
    assert verbs.verify(model, tmp_path / "pruned.gguf", plan, settings=replace(CHUNKWISE, blockwise=0)).ok
    assert "m.gguf has 52.6 MB, more than fits into memory" in caplog.text


@pytest.mark.native
def test_the_whole_job_works_on_a_model_that_does_not_fit(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    size, ids, out = model.stat().st_size, ids_in(tmp_path, 320), tmp_path / "out.gguf"
    monkeypatch.setattr(fitting, "memory", lambda: Memory(size, size, True))
    settings = replace(CHUNKWISE, n_ctx=0, blockwise=0)
    job = {"target": Target(ratio="0.25"), "output": Output(out)}
    with pytest.raises(EngineError, match="say --mmap"):  # at once, not after hours of calibration
        verbs.prune(model, ids, **job, judgement=Judgement(("README.md",)), settings=settings)
    assert "calibrating" not in caplog.text
    verbs.prune(model, ids, **job, settings=settings)
    assert pieces_told(caplog) == 2
    assert out.exists()


@pytest.mark.parametrize(
    ("given", "flag"),
    [
        ({"mlock": True}, "--mlock"),
        ({"mmap": False}, "--no-mmap"),
        ({"n_gpu_layers": 3}, "-ngl"),
        ({"repack": True}, "--repack"),
    ],
)
def test_what_contradicts_it_is_refused(given: dict[str, object], flag: str, model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"computes on the CPU; leave out {flag}$"):
        calibrate(model, tmp_path / "s.npz", ids_in(tmp_path, 320), settings=replace(BLOCKWISE, **given))


@pytest.mark.native
def test_a_disk_that_is_full_is_seen_before_anything_is_computed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("ggufreap.files.folders.shutil.disk_usage", lambda _: usage(0, 0, 3 * 64 * 256 * 4))
    monkeypatch.setattr(Piecewise, "route", None)
    # What the second block reads and what it leaves: 3 chunks of 64 tokens, 256 floats each, twice.
    with pytest.raises(OutputError, match=r"needs 393,216 bytes and .* has 196,608 free"):
        run(model, tmp_path / "b.npz", ids_in(tmp_path, 320), BLOCKWISE)


# The parts.


def test_pieces_end_where_they_can() -> None:
    sizes = dict.fromkeys(range(6), 10)

    def cut(ends: list[int], n_blocks: int, budget: int, first: int = 0) -> list[tuple[int, int, bool]]:
        return [(p.first, p.last, p.ends) for p in into_pieces(first, ends, sizes, n_blocks, budget)]

    everywhere = [0, 1, 2, 3, 4, 5]
    assert cut(everywhere, FITTING_BLOCKS, 25) == [(0, 1, False), (2, 3, False), (4, 5, True)]
    assert cut(everywhere, 4, 0) == [(0, 3, False), (4, 5, True)]
    assert cut(everywhere, FITTING_BLOCKS, 60) == [(0, 5, True)]
    assert cut([0, 1, 5], 2, 0) == [(0, 1, False), (2, 5, True)]
    assert cut([4, 5], 1, 0, first=3) == [(3, 4, False), (5, 5, True)]


def node(name: str, *sources: int, weighted: bool = False, memory: tuple[int, ...] = (), writes: int = 0) -> Node:
    return Node(name, sources, memory, writes, weighted, 4)


def test_a_graph_is_cut_where_no_later_block_reads_the_memory_of_an_earlier_one() -> None:
    graph = Graph(
        [
            node("embd"),
            node("mask"),
            node("k-0", 0, weighted=True, memory=(1,), writes=1),
            node("l_out-0", 0, 1, 2, memory=(1,)),
            node("k-1", 3, weighted=True, memory=(2,), writes=2),
            node("index-1", 3, weighted=True),
            node("l_out-1", 1, 3, 4, 5, memory=(2,)),
            node("l_out-2", 1, 5, 6, memory=(2,), weighted=True),
            node("result_norm", 7),
        ],
        STREAM,
    )
    assert graph.ends() == [0, 2]
    last = graph.cut(Piece(1, 2, True), "result_norm")
    assert last.given == (3,)
    assert last.computed == {1, 4, 5, 6, 7}  # the mask again, the embedding not
    # Had block 2 a cache of its own, the index of block 1 would go along.
    assert graph.cut(Piece(1, 1, False), "").kept == (5, 6)


def test_a_graph_without_the_known_node_is_refused() -> None:
    with pytest.raises(EngineError, match=r"no node l_out at the end of every block.*use --blockwise off"):
        Graph([node("embd"), node("out-0", 0)], STREAM)


@pytest.mark.native
def test_weights_that_were_not_mapped_are_refused(model: Path, tmp_path: Path) -> None:
    source = open_gguf(model)
    settings = replace(CHUNKWISE, mmap=False)
    with hollow(source, tmp_path) as path, LlamaSession(path, bind(source).nodes, settings) as session:
        engine = Piecewise(session, bind(source).nodes, Weights(source, path))
        with pytest.raises(EngineError, match=r"did not map .*m\.gguf as it lies"):
            engine.ends(np.zeros(64, np.int32))
