"""Where the weights go: from the settings to llama.cpp, and what is said of it."""

import ctypes
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_gguf
import tiny_native
from gguf import GGMLQuantizationType

from ggufreap.architecture.layout import bind
from ggufreap.container import open_gguf
from ggufreap.engine import devices, log, native, placement
from ggufreap.engine.machine import Machine, offloading
from ggufreap.engine.session import LlamaSession
from ggufreap.errors import EngineError, InputError
from ggufreap.options.engine import EngineSettings

pytestmark = pytest.mark.native

N_CTX = 64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.qwen3moe(tmp_path_factory.mktemp("placement") / "m.gguf")


@pytest.fixture(autouse=True)
def nothing_said() -> None:
    log.once.cache_clear()


def session(path: Path, **values: object) -> LlamaSession:
    file = open_gguf(path)
    settings = EngineSettings(**{"n_ctx": N_CTX, "n_ubatch": N_CTX, "n_threads": 1, **values})  # type: ignore[arg-type]
    return LlamaSession(file.path, bind(file).nodes, settings)


def placed(**values: object) -> tuple[SimpleNamespace, list[object]]:
    parameters = SimpleNamespace(split_mode=1, main_gpu=0)
    kept = placement.place(parameters, EngineSettings(**values), repack=False)  # type: ignore[arg-type]
    return parameters, kept


def test_the_defaults_are_llama_cpps_own() -> None:
    ours, theirs = (native.bindings().llama_model_default_params() for _ in range(2))
    assert placement.place(ours, EngineSettings(), repack=True) == []
    for name, _ in theirs._fields_:
        if name not in ("n_gpu_layers", "progress_callback", "kv_overrides", "tensor_split"):
            assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.n_gpu_layers < 0
    assert theirs.n_gpu_layers < 0
    assert not ours.tensor_split


def test_experts_of_the_cpu_are_named_as_llama_cpp_names_them() -> None:
    parameters, kept = placed(override_tensor="attn_k=CPU", cpu_moe=True, n_cpu_moe=2)
    table = ctypes.cast(parameters.tensor_buft_overrides, ctypes.POINTER(placement._Override))
    patterns = [table[row].pattern for row in range(4)]
    regex = rb"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
    assert patterns == [b"attn_k", regex, rb"blk\.0" + regex, rb"blk\.1" + regex]
    assert len({table[row].buffer_type for row in range(4)}) == 1
    assert table[4].pattern is None
    assert table[4].buffer_type is None
    assert kept


def test_shares_fill_all_that_llama_cpp_reads() -> None:
    parameters, _ = placed(tensor_split="3,1")
    most = native.bindings().llama_max_devices()
    assert list(parameters.tensor_split) == [3.0, 1.0, *[0.0] * (most - 2)]
    with pytest.raises(EngineError, match=r"proportions, but llama\.cpp knows at most"):
        placed(tensor_split=",".join(["1"] * (most + 1)))


@pytest.mark.parametrize(
    ("values", "mode"),
    [
        ({}, "AUTO"),
        ({"mmap": True}, "MMAP"),
        ({"mmap": False}, "NONE"),
        ({"mlock": True}, "MMAP_MLOCK"),
        ({"mmap": True, "mlock": True}, "MMAP_MLOCK"),
        ({"mmap": False, "mlock": True}, "MLOCK"),
    ],
)
def test_the_file_is_mapped_as_asked(values: dict[str, bool], mode: str) -> None:
    assert placed(**values)[0].load_mode == getattr(native.bindings(), f"LLAMA_LOAD_MODE_{mode}")


def test_tables_hold_llama_cpps_numbers() -> None:
    from ggufreap.options.engine import CACHE_TYPES, FLASH_ATTENTION, SPLIT_MODES

    llama = native.bindings()
    for name, number in CACHE_TYPES.items():
        assert number == GGMLQuantizationType[name.upper()]
    for name, number in SPLIT_MODES.items():
        assert number == getattr(llama, f"LLAMA_SPLIT_MODE_{name.upper()}")
    words = {"auto": "AUTO", "off": "DISABLED", "on": "ENABLED"}
    for name, number in FLASH_ATTENTION.items():
        assert number == getattr(llama, f"LLAMA_FLASH_ATTN_TYPE_{words[name]}")


def test_no_device_but_the_cpu() -> None:
    parameters, kept = placed(device="none")
    assert list(kept[0]) == [None]  # type: ignore[call-overload]
    assert parameters.devices.value
    assert [device.name for device in devices.devices().values() if device.kind == "CPU"] == ["CPU"]


def test_unknown_devices_and_buffers_are_refused_with_those_there_are(model: Path) -> None:
    with pytest.raises(EngineError, match=r"-dev GPU9: there is no device GPU9; this build of llama\.cpp has"):
        session(model, device="GPU9")
    with pytest.raises(EngineError, match="-ot exps=GPU9: there is no such buffer; choose from CPU"):
        session(model, override_tensor="exps=GPU9")


def test_what_was_given_has_an_effect_or_is_said(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    if native.bindings().llama_supports_gpu_offload():
        pytest.skip("this llama.cpp has a GPU")
    caplog.set_level(logging.INFO, "ggufreap.engine")
    for _ in range(2):
        session(model, n_gpu_layers=5, tensor_split="1,1", main_gpu=0, override_tensor="_exps=CPU,nobody=CPU").close()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert warnings[0].startswith("-ngl, -ts, -mg: no effect")
    assert warnings[1] == f"-ot nobody=CPU: no effect on {model.name}, no tensor's name matches"


def test_nothing_is_said_where_nothing_was_asked(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ggufreap.engine")
    for settings in ({}, {"n_gpu_layers": 0}, {"device": "none"}):
        session(model, **settings).close()
    assert [record.levelno for record in caplog.records] == [logging.INFO]


def test_where_the_weights_went_is_said_once_per_file_and_placement(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ggufreap.engine")
    for mmap in (True, True, False, True):
        session(model, mmap=mmap).close()
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    size = model.stat().st_size / 2**20
    for line, buffer in zip(said, ("CPU_Mapped", "CPU"), strict=True):
        name, told = line.removeprefix("weights of ").split(": ")
        assert name == model.name
        mib, _, where = told.split(" ", 2)
        assert where == f"in {buffer}"
        assert abs(float(mib) - size) < 0.1 * size


def test_the_buffers_of_shards_are_added_up(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ggufreap.engine")
    lines = [
        "load_tensors:   CPU_Mapped model buffer size =   100.25 MiB",
        "load_tensors:        CUDA0 model buffer size =  2000.50 MiB",
        "load_tensors:   CPU_Mapped model buffer size =    10.00 MiB",
        "warning: failed to mlock 100-byte buffer (after previously locking 0 bytes): Cannot allocate memory",
    ]
    placement.tell(Path("x.gguf"), EngineSettings(mlock=True), lines)
    assert [record.getMessage() for record in caplog.records] == [
        "weights of x.gguf: 116 MB in CPU_Mapped, 2.10 GB in CUDA0",
        "--mlock: the system does not lock so much memory; raise its limit (ulimit -l)",
    ]


def test_several_graphs_per_call_compute_the_same_and_are_not_watched(model: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 320, N_CTX).astype(np.int32)
    with session(model, n_ubatch=16, exact=True) as single, session(model, n_ubatch=16, n_batch=64, exact=True) as many:
        assert (single.n_batch, many.n_batch) == (16, 64)
        for scored_from in (0, 40):
            expected = single.logits(ids, scored_from=scored_from)
            assert np.array_equal(many.logits(ids, scored_from=scored_from), expected)
        for tapped in (lambda: many.route(ids), lambda: many.logits(ids, {0: range(8)})):
            with pytest.raises(EngineError, match=r"-b 64 with -ub 16: .*; raise -ub, or leave out -b"):
                tapped()
        assert np.array_equal(many.logits(ids), single.logits(ids)), "the session goes on"


def test_a_model_that_looks_ahead_takes_its_chunk_at_once(tmp_path: Path) -> None:
    path = tiny_native.build("nomic-bert-moe", tmp_path / "m.gguf")
    with session(path, n_ubatch=16) as engine:
        assert engine.n_batch == N_CTX
    with pytest.raises(InputError, match="-b 16: this model looks ahead"):
        session(path, n_batch=16)


def test_attention_as_asked(model: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 320, N_CTX).astype(np.int32)

    def logits(**values: object) -> np.ndarray:
        with session(model, **values) as engine:
            return engine.logits(ids)

    usual = logits()
    for values in ({"cache_type_k": "q4_0"}, {"cache_type_v": "q4_0", "flash_attn": "on"}):
        assert not np.array_equal(logits(**values), usual), values
        assert np.array_equal(logits(**values, exact=True), logits(exact=True)), values
    with pytest.raises(EngineError, match="quantized V cache"):
        logits(cache_type_v="q8_0", flash_attn="off")


def test_devices_that_do_not_work_are_left_out_or_refused() -> None:
    works = Machine(True, True, devices=("Card",))
    broken = Machine(True, False, "died of SIGSEGV", devices=("Card",))
    asked = EngineSettings(n_gpu_layers=5)
    assert offloading(asked, works) is asked
    without = offloading(EngineSettings(), broken)
    assert (without.n_gpu_layers, without.device) == (0, "none")
    for values, flag in (({"n_gpu_layers": 5}, "-ngl"), ({"n_gpu_layers": -2}, "-ngl"), ({"device": "CUDA0"}, "-dev")):
        with pytest.raises(EngineError, match=f"{flag}: llama.cpp does not compute on Card: it died of SIGSEGV; use"):
            offloading(EngineSettings(**values), broken)
