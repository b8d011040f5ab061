"""What the taps see where weights lie on several devices: buffers that must be copied, and inputs that are copies.

No device is needed: the reader is told that no buffer is the host's, and every input is shown as the scheduler shows
it on another device, as a tensor of its own called `CUDA0#name#0` (ggml-backend.cpp, ggml_backend_sched_split_graph).
"""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_gguf
import tiny_native

from ggufreap.architecture.layout import bind
from ggufreap.container import open_gguf
from ggufreap.engine import importance_tap, native, taps
from ggufreap.engine.importance import ImportanceSums, Sums
from ggufreap.engine.native import GgmlTensor, TensorReader
from ggufreap.engine.observables import OBSERVABLES
from ggufreap.engine.protocol import RoutedBatch
from ggufreap.engine.session import LlamaSession
from ggufreap.options.engine import EngineSettings

pytestmark = pytest.mark.native

NAMES = ["qwen3moe", "deepseek2", "gpt-oss", "llama4", "qwen35moe", "gemma4", "nemotron_h_moe", "cohere2moe"]
TOKENS = np.random.default_rng(3).integers(0, tiny_native.N_VOCAB, (2, 64)).astype(np.int32)
Found = tuple[list[RoutedBatch], ImportanceSums, np.ndarray]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """No buffer is the host's."""
    monkeypatch.setattr(TensorReader, "_is_host", lambda _self, _tensor: False)


class Copies:
    """Shows every input of a watched product as a copy, in the graphs for which `wanted` says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, wanted: Callable[[int], bool] = lambda _graph: True) -> None:
        self._wanted, self._graph, self._kept = wanted, -1, {}
        self._products = {native.op_code(name) for name in ("MUL", "MUL_MAT", "MUL_MAT_ID")}
        begin = taps.Together.begin

        def counted(together: taps.Together) -> None:
            self._graph += 1
            self._kept.clear()
            begin(together)

        monkeypatch.setattr(taps.Together, "begin", counted)
        for module in (taps, importance_tap):
            monkeypatch.setattr(module, "tensor_at", self._tensor_at)

    def _tensor_at(self, pointer: int) -> GgmlTensor:
        found = native.tensor_at(pointer)
        if pointer in self._kept or found.op not in self._products or not self._wanted(self._graph):
            return found
        node = GgmlTensor.from_buffer_copy(found)
        for index in range(3):
            if node.src[index]:
                node.src[index] = self._copy_of(node.src[index])
        return node

    def _copy_of(self, pointer: int) -> int:
        copy = GgmlTensor.from_buffer_copy(native.tensor_at(pointer))
        copy.name = b"CUDA0#" + copy.name + b"#0"
        address = ctypes.addressof(copy)
        self._kept[address] = copy
        return address


def session(path: Path, **values: Any) -> LlamaSession:
    file = open_gguf(path)
    settings = EngineSettings(**{"n_ctx": 64, "n_ubatch": 64, "n_threads": 1, "exact": True, **values})
    return LlamaSession(file.path, bind(file).nodes, settings)


def found(path: Path, **values: Any) -> Found:
    """What is routed, the importance matrix, and logits with half of the experts masked."""
    nodes, sums = bind(open_gguf(path)).nodes, ImportanceSums()
    with session(path, **values) as engine:
        batches = [batch for chunk in TOKENS for batch in engine.route(chunk, sums, OBSERVABLES)]
        keep = {block.index: range(0, nodes.n_expert, 2) for block in nodes.blocks}
        masked = engine.logits(TOKENS[0], keep)
    return batches, sums, masked


def assert_same(one: Found, other: Found) -> None:
    for mine, theirs in zip(one[0], other[0], strict=True):
        assert (mine.block, set(mine.observed)) == (theirs.block, set(OBSERVABLES))
        for name, values in {**mine.observed, "experts": mine.experts, "weights": mine.weights}.items():
            assert np.array_equal(values, {**theirs.observed, **vars(theirs)}[name]), name
    assert_same_sums(one[1], other[1])
    assert np.array_equal(one[2], other[2])


def assert_same_sums(one: ImportanceSums, other: ImportanceSums) -> None:
    mine, theirs = one.named(), other.named()
    assert mine.keys() == theirs.keys()
    for name, sums in mine.items():
        assert np.array_equal(sums.values, theirs[name].values), name
        assert np.array_equal(sums.counts, theirs[name].counts), name


@pytest.mark.parametrize("name", NAMES)
def test_another_device_tells_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_native.build(name, tmp_path / "m.gguf")
    host = found(path)
    assert (host[2] != 0).any()
    monkeypatch.setattr(TensorReader, "_is_host", lambda _self, _tensor: False)
    assert_same(host, found(path))
    Copies(monkeypatch)
    copied = found(path)
    assert_same(host, copied)
    assert all(weight == holder for weight, holder in copied[1].input_of.items()), "copies share nothing"


@pytest.mark.parametrize("shared_first", [True, False])
def test_graphs_laid_out_in_two_ways_lose_no_sums(
    shared_first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_native.build("qwen3moe", tmp_path / "m.gguf")
    expected = found(path, n_ubatch=32)
    Copies(monkeypatch, lambda graph: graph % 2 == shared_first)
    assert_same(expected, found(path, n_ubatch=32))


def test_runs_laid_out_in_two_ways_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_native.build("deepseek2", tmp_path / "m.gguf")

    def collected() -> list[ImportanceSums]:
        with session(path) as engine:
            sums = [ImportanceSums(), ImportanceSums()]
            for each, chunk in zip(sums, TOKENS, strict=True):
                engine.route(chunk, each)
        return sums

    together, apart = collected(), None
    with monkeypatch.context() as patch:
        Copies(patch)
        apart = collected()
    assert len(apart[0].sums) > len(together[0].sums)
    expected = ImportanceSums()
    for each in together:
        expected.add(each)
    for first, second in ((together[0], apart[1]), (apart[0], together[1]), (apart[0], apart[1])):
        resumed = ImportanceSums()
        for each in (first, second):
            resumed.add(ImportanceSums.from_arrays(each.to_arrays()))  # as a checkpoint keeps it
        assert_same_sums(expected, resumed)


def test_added_sums_are_shared_only_where_both_sides_share() -> None:
    def sums(value: float) -> Sums:
        return Sums(np.full((1, 2), value, np.float32), np.array([1]))

    mine = ImportanceSums({"a": sums(1)}, {"a": "a", "b": "a", "c": "a"})
    other = ImportanceSums({"a": sums(10), "b": sums(20), "d": sums(40)}, {"a": "a", "b": "b", "c": "b", "d": "d"})
    kept = other.sums["d"].values
    mine.add(other)
    assert {name: found.values[0, 0] for name, found in mine.named().items()} == {"a": 11, "b": 21, "c": 21, "d": 40}
    assert {name: found.counts[0] for name, found in mine.named().items()} == {"a": 2, "b": 2, "c": 2, "d": 1}
    mine.add(mine)
    assert mine.named()["d"].values[0, 0] == 80
    assert (kept == 40).all(), "the other side keeps its own"


def test_nothing_is_added_to_nothing() -> None:
    empty = ImportanceSums()
    empty.add(ImportanceSums())
    assert empty.named() == {}


def test_experts_in_a_buffer_of_their_own_compute_the_same(tmp_path: Path) -> None:
    for name in ("qwen3moe", "gpt-oss"):
        path = tiny_native.build(name, tmp_path / f"{name}.gguf")
        host = found(path)
        for values in ({"override_tensor": "exps=CPU"}, {"n_cpu_moe": 1}, {"cpu_moe": True, "mmap": False}):
            assert_same(host, found(path, **values))


@pytest.mark.usefixtures("device")
def test_one_buffer_serves_all_reads(tmp_path: Path) -> None:
    path = tiny_gguf.qwen3moe(tmp_path / "m.gguf")
    with session(path) as engine:
        engine.route(TOKENS[0], ImportanceSums())
        buffer = engine._reader._staging
        largest = buffer.nbytes
        engine.route(TOKENS[1], ImportanceSums())
        assert engine._reader._staging is buffer
    assert largest == 64 * 4 * 256 * 4  # tokens, experts per token, embedding, F32: the outputs of the experts


@pytest.mark.usefixtures("device")
def test_what_is_filled_reaches_the_device(tmp_path: Path) -> None:
    """All of the tensor, strides and all, and nothing but the columns changed."""
    with session(tiny_gguf.qwen3moe(tmp_path / "m.gguf")) as engine:
        seen = []

        class Filling:
            def begin(self) -> None:
                pass

            def handler_of(self, pointer: int) -> Callable[[int], bool] | None:
                return self.fill if native.name_at(pointer) == b"ffn_moe_logits-0" else None

            def fill(self, pointer: int) -> bool:
                before = engine._reader.read(pointer).copy()
                engine._reader.fill(pointer, [np.array([1, 5])], -np.inf)
                tensor = native.tensor_at(pointer)
                raw = ctypes.string_at(tensor.data, tensor.ne[0] * tensor.ne[1] * 4)
                seen.append((before[0, 0], np.frombuffer(raw, np.float32).reshape(before[0, 0].shape)))
                return True

        engine.decode(TOKENS[0], np.arange(64), 0, np.ones(64, bool), Filling())
    ((before, after),) = seen
    assert np.isneginf(after[:, [1, 5]]).all()
    others = np.setdiff1d(np.arange(before.shape[1]), [1, 5])
    assert np.array_equal(before[:, others], after[:, others])


class Once:
    """Does something at the first node and wants every other."""

    def __init__(self, do: Callable[[], bool]) -> None:
        self.do, self.seen = do, 0

    def begin(self) -> None:
        pass

    def handler_of(self, pointer: int) -> Callable[[int], bool]:
        return self.handle

    def handle(self, pointer: int) -> bool:
        self.seen += 1
        return self.do()


def test_further_splits_are_not_watched_once_a_tap_has_ended(tmp_path: Path) -> None:
    with session(tiny_gguf.qwen3moe(tmp_path / "m.gguf")) as engine:
        tap = Once(lambda: False)
        engine.decode(TOKENS[0], np.arange(64), 0, np.ones(64, bool), tap)
        assert tap.seen == 1
        engine._watch.begin(tap)
        assert [engine._watch.on_node(1, True, 0), engine._watch.on_node(1, False, 0)] == [True, False]
        assert [
            engine._watch.on_node(2, True, 0),
            engine._watch.on_node(3, True, 0),
            engine._watch.on_node(3, False, 0),
        ] == [
            False,
            False,
            True,
        ]
        assert tap.seen == 2


def test_a_failing_tap_aborts_the_graph_and_skips_none_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A split of the graph that runs on inputs never computed could read an expert's number from anywhere."""

    def fail() -> bool:
        raise ValueError("seen enough")

    with session(tiny_gguf.qwen3moe(tmp_path / "m.gguf")) as engine:
        expected = engine.logits(TOKENS[0])
        engine.memory()  # emptied
        statuses, decode = [], engine._llama.llama_decode
        monkeypatch.setattr(engine._llama, "llama_decode", lambda *args: statuses.append(decode(*args)) or statuses[-1])
        with pytest.raises(ValueError, match="seen enough"):
            engine.decode(TOKENS[0], np.arange(64), 0, np.ones(64, bool), Once(fail))
        assert statuses == [2]  # aborted (include/llama.h, llama_decode)
        assert np.array_equal(engine.logits(TOKENS[0]), expected)
