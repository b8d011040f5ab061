"""A proof is worth what it refuses: every way to spoil a pruned file, and the check that notices."""

import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import asked
import numpy as np
import pytest
import tiny_gguf
import tiny_layouts
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFValueType

from ggufreap import verbs
from ggufreap.cli import main
from ggufreap.container import GgufFile, MetadataEntry, OutputTensor, Piece, encode, lay_out, open_gguf, write
from ggufreap.engine import subprocess_probe
from ggufreap.engine.protocol import Tokens
from ggufreap.engine.subprocess_probe import Pass, Ran
from ggufreap.errors import EngineError, InputError, VerificationFailed
from ggufreap.model import Model
from ggufreap.options.engine import EngineSettings
from ggufreap.planning import PruningPlan, save_plan
from ggufreap.progress import silent
from ggufreap.rewriting import script as rewriting_script
from ggufreap.verification import N_TOKENS, Verification, verify_file

SMALL = {"n_embd": 64, "n_ff": 32, "types": Kind.Q8_0}
EXACT = EngineSettings(n_ctx=N_TOKENS, n_ubatch=N_TOKENS, n_threads=1, exact=True)
Entries = dict[str, MetadataEntry]
Run = Callable[[Path, Tokens, Sequence[Pass], Path], Sequence[Ran]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # As long as the model is deep: an array that a careless proof could take for one of the blocks'.
    metadata = {"qwen3moe.attention.sliding_window_pattern": [True, False]}
    return tiny_gguf.qwen3moe(tmp_path_factory.mktemp("source") / "m.gguf", **SMALL, metadata=metadata)


@pytest.fixture(scope="module")
def plan(source: Path) -> PruningPlan:
    return asked.plan(source, method="random", keep=12)


@pytest.fixture
def pruned(source: Path, plan: PruningPlan, tmp_path: Path) -> Path:
    out = tmp_path / "pruned.gguf"
    verbs.apply(source, plan, out)
    return out


def proof(source: Path, plan: PruningPlan, pruned: Path, run: Run | None = None) -> Verification:
    """All checks, or with no `run` those that need no llama.cpp."""
    return verify_file(Model.open(source), plan, pruned, run or nothing_differs, silent)


def nothing_differs(_path: Path, tokens: Tokens, passes: Sequence[Pass], folder: Path) -> list[Ran]:
    """Both files compute the same, as far as this tells."""
    rows, record = len(tokens), folder / "record.npz"
    routed = {"scores": np.ones((rows, 12)), "experts": np.tile(np.arange(4), (rows, 1))}
    routed |= {"logits": routed["scores"], "weights": np.ones((rows, 4)), "output": np.ones((rows, 8))}
    np.savez(
        record,
        **{
            f"{what}-{block}": array
            for what, array in {"l_out": np.ones((rows, 8)), **routed}.items()
            for block in (0, 1)
        },
    )
    return [Ran(np.ones((rows, 4), np.float32), record if each.record else None) for each in passes]


def native(path: Path, tokens: Tokens, passes: Sequence[Pass], folder: Path) -> list[Ran]:
    return subprocess_probe.run(path, tokens, EXACT, passes, folder)


def failing(found: Verification, name: str, detail: str) -> None:
    """`name` is the check that fails: those before it hold, those after it are left out."""
    order = ["header", "metadata", "bytes", "blocks", "logits"]
    assert [check.name for check in found.checks] == order[: order.index(name) + 1]
    assert [check.ok for check in found.checks] == [True] * order.index(name) + [False]
    assert detail in found.checks[-1].detail
    assert not found.ok
    with pytest.raises(VerificationFailed, match=f"verification failed at {name}: ") as caught:
        found.require()
    assert caught.value.exit_code == 3


# Bytes.


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_one_flipped_bit_in_any_tensor_is_noticed(source: Path, plan: PruningPlan, pruned: Path) -> None:
    for record in open_gguf(pruned).tensors:
        for offset in (record.offset, record.offset + record.nbytes - 1):
            flip(pruned, offset)
            failing(proof(source, plan, pruned), "bytes", f"{record.name} differs from ")
            flip(pruned, offset)
    assert [check.ok for check in proof(source, plan, pruned).checks[:3]] == [True] * 3


def test_what_stands_behind_the_last_tensor_is_noticed(source: Path, plan: PruningPlan, pruned: Path) -> None:
    with pruned.open("ab") as file:
        file.write(b"appended")
    failing(proof(source, plan, pruned), "bytes", f"8 bytes stand behind the last tensor of {pruned.name}")


def test_the_expert_that_differs_is_named(source: Path, plan: PruningPlan, pruned: Path) -> None:
    name = "blk.1.ffn_down_exps.weight"
    record = open_gguf(pruned).by_name[name]
    flip(pruned, record.offset + record.nbytes // 12 * 7)
    failing(proof(source, plan, pruned), "bytes", f"{name} differs from expert {plan.keep[1][7]} of the source")


@pytest.mark.parametrize("name", ["blk.0.ffn_up_exps.weight", "blk.1.ffn_gate_inp.weight"])
def test_two_experts_swapped_in_one_tensor_are_noticed(
    source: Path, plan: PruningPlan, pruned: Path, name: str
) -> None:
    swap(pruned, name)
    failing(proof(source, plan, pruned), "bytes", f"{name} differs from expert {plan.keep[int(name[4])][2]} ")


def swap(path: Path, name: str) -> None:
    record = open_gguf(path).by_name[name]
    rows = np.memmap(path, np.uint8, "r+", record.offset, (record.shape[0], record.nbytes // record.shape[0]))
    rows[[2, 5]] = rows[[5, 2]]
    rows.flush()


def rewritten(
    path: Path,
    out: Path,
    entries: Callable[[Entries], object] = lambda _: None,
    tensors: Callable[[dict[str, OutputTensor]], object] = lambda _: None,
) -> Path:
    """`path` once more, with changes."""
    file = open_gguf(path)
    metadata, data = dict(file.metadata), {record.name: copied(file, record.name) for record in file.tensors}
    entries(metadata)
    tensors(data)

    class Bar:
        def update(self, amount: int) -> None:
            pass

    write(lay_out(out, list(metadata.values()), [list(data.values())], file.alignment), Bar())
    return out


def copied(file: GgufFile, name: str) -> OutputTensor:
    record = file.by_name[name]
    return OutputTensor(name, record.shape, record.type, (Piece(file.path, record.offset, record.nbytes),))


Tensors = dict[str, OutputTensor]


def missing(tensors: Tensors) -> None:
    del tensors["blk.0.attn_q_norm.weight"]


def one_more(tensors: Tensors) -> None:
    tensors["rope_freqs.weight"] = replace(tensors["output_norm.weight"], name="rope_freqs.weight")


def turned(tensors: Tensors) -> None:
    tensors["blk.0.attn_q.weight"] = replace(tensors["blk.0.attn_q.weight"], shape=(64, 128))


def renamed_type(tensors: Tensors) -> None:
    tensors["output.weight"] = replace(tensors["output.weight"], type=int(Kind.I32))


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        (missing, "1 tensors missing or too many, first blk.0.attn_q_norm.weight"),
        (one_more, "1 tensors missing or too many, first rope_freqs.weight"),
        (turned, "blk.0.attn_q.weight has another type or shape than in the source"),
        (renamed_type, "output.weight has another type or shape than in the source"),
    ],
)
def test_tensors_are_those_of_the_source(
    source: Path, plan: PruningPlan, pruned: Path, tmp_path: Path, change: Callable[[Tensors], None], detail: str
) -> None:
    failing(proof(source, plan, rewritten(pruned, tmp_path / "changed.gguf", tensors=change)), "bytes", detail)


def test_the_order_of_tensors_proves_nothing(source: Path, plan: PruningPlan, pruned: Path, tmp_path: Path) -> None:
    def backwards(tensors: Tensors) -> None:
        items = list(tensors.items())[::-1]
        tensors.clear()
        tensors.update(items)

    assert proof(source, plan, rewritten(pruned, tmp_path / "changed.gguf", tensors=backwards)).checks[2].ok


# Metadata.


def put(entry: MetadataEntry, entries: Entries) -> None:
    entries[entry.key] = entry


def text(key: str, value: str) -> MetadataEntry:
    return encode(key, value, GGUFValueType.STRING)


CHANGED = {
    "chat template": text("tokenizer.chat_template", tiny_gguf.CHAT_TEMPLATE + " "),
    "vocabulary": encode("tokenizer.ggml.tokens", ["a"] * 320, GGUFValueType.STRING),
    "another type": encode("qwen3moe.context_length", 512, GGUFValueType.UINT64),
    "licence": text("general.license", "none"),
    "array over blocks": encode("qwen3moe.attention.sliding_window_pattern", [False, True], GGUFValueType.BOOL),
}


@pytest.mark.parametrize("case", CHANGED)
def test_a_changed_entry_is_noticed(source: Path, plan: PruningPlan, pruned: Path, tmp_path: Path, case: str) -> None:
    entry = CHANGED[case]
    changed = rewritten(pruned, tmp_path / "changed.gguf", partial(put, entry))
    failing(proof(source, plan, changed), "metadata", f"{entry.key} differs from the source")


def test_a_lost_entry_is_noticed(source: Path, plan: PruningPlan, pruned: Path, tmp_path: Path) -> None:
    changed = rewritten(pruned, tmp_path / "changed.gguf", lambda entries: entries.pop("qwen3moe.rope.freq_base"))
    failing(proof(source, plan, changed), "metadata", "qwen3moe.rope.freq_base is only in the source")


@pytest.mark.parametrize("key", ["tokenizer.ggml.add_space_prefix", "qwen3moe.rope.scaling.factor"])
def test_an_entry_out_of_nowhere_is_noticed(
    source: Path, plan: PruningPlan, pruned: Path, tmp_path: Path, key: str
) -> None:
    entry = encode(key, 1, GGUFValueType.UINT32)
    changed = rewritten(pruned, tmp_path / "changed.gguf", partial(put, entry))
    failing(proof(source, plan, changed), "metadata", f"{key} is only in the pruned file")


def test_what_a_pruned_file_says_of_itself_is_its_own(
    source: Path, plan: PruningPlan, pruned: Path, tmp_path: Path
) -> None:
    def rename(entries: Entries) -> None:
        entries |= {key: text(key, "mine") for key in ("general.name", "general.base_model.0.name", "ggufreap.note")}

    assert proof(source, plan, rewritten(pruned, tmp_path / "changed.gguf", rename)).checks[1].ok


@pytest.mark.parametrize("count", [11, 13, 16, 0])
def test_a_wrong_expert_count_is_noticed(
    source: Path, plan: PruningPlan, pruned: Path, tmp_path: Path, count: int
) -> None:
    entry = encode("qwen3moe.expert_count", count, GGUFValueType.UINT32)
    changed = rewritten(pruned, tmp_path / "changed.gguf", partial(put, entry))
    failing(proof(source, plan, changed), "header", f"should count {count} experts" if count else "a dense qwen3moe")


def test_the_original_is_not_its_own_pruned_file(source: Path, plan: PruningPlan) -> None:
    failing(proof(source, plan, source), "header", "16 experts in each of 2 MoE blocks, plan: 12 in 2")


@pytest.fixture
def with_mtp(tmp_path: Path) -> tuple[Path, PruningPlan, Path]:
    """A model with an MTP block and its pruned file without."""
    metadata = {"qwen3moe.expert_used_count": [4, 4, 4], "qwen3moe.attention.head_count": [4, 4, 4]}

    def of_blocks(model: tiny_gguf.Model) -> None:
        model.metadata |= metadata

    source = tiny_gguf.qwen3moe(tmp_path / "mtp.gguf", **SMALL, changes=[tiny_layouts.with_mtp, of_blocks])
    plan = asked.plan(source, method="random", keep=12, mtp="drop")
    verbs.apply(source, plan, tmp_path / "dropped.gguf")
    return source, plan, tmp_path / "dropped.gguf"


def test_dropped_blocks_shorten_arrays_and_nothing_else(
    with_mtp: tuple[Path, PruningPlan, Path], tmp_path: Path
) -> None:
    source, plan, dropped = with_mtp
    assert open_gguf(dropped).get("qwen3moe.expert_used_count") == [4, 4]
    assert [check.ok for check in proof(source, plan, dropped).checks[:3]] == [True] * 3
    for heads in ([4, 2], [4]):
        entry = encode("qwen3moe.attention.head_count", heads, GGUFValueType.INT32)
        changed = rewritten(dropped, tmp_path / f"{len(heads)}.gguf", partial(put, entry))
        failing(proof(source, plan, changed), "metadata", "qwen3moe.attention.head_count differs from the source")


# Files that are none.


def test_a_damaged_file_fails_but_a_missing_one_is_bad_input(source: Path, plan: PruningPlan, pruned: Path) -> None:
    pruned.write_bytes(pruned.read_bytes()[:-100])
    failing(proof(source, plan, pruned), "header", "it is truncated")
    pruned.unlink()
    with pytest.raises(InputError, match=r"cannot read .*pruned\.gguf: No such file"):
        proof(source, plan, pruned)


# In llama.cpp. More of it in test_blocks.py.


def instead_of(pruned: Path, stand_in: Path) -> Run:
    """llama.cpp gets another file than was looked at before."""

    def run(path: Path, tokens: Tokens, passes: Sequence[Pass], folder: Path) -> list[Ran]:
        return native(stand_in if path == pruned else path, tokens, passes, folder)

    return run


@pytest.mark.native
def test_a_sound_file_holds_and_a_swapped_router_does_not(
    source: Path, plan: PruningPlan, pruned: Path, tmp_path: Path
) -> None:
    stand_in = tmp_path / "swapped.gguf"
    stand_in.write_bytes(pruned.read_bytes())
    swap(stand_in, "blk.0.ffn_gate_inp.weight")
    assert proof(source, plan, pruned, native).ok
    failing(proof(source, plan, pruned, instead_of(pruned, stand_in)), "blocks", "block 0: router logits of ")


@pytest.mark.native
def test_a_file_that_llama_cpp_dies_on_fails(source: Path, plan: PruningPlan, pruned: Path, tmp_path: Path) -> None:
    deadly = {"qwen3moe.rope.dimension_count": np.uint32(2**31)}
    stand_in = tiny_gguf.qwen3moe(tmp_path / "deadly.gguf", **SMALL, metadata=deadly)
    failing(proof(source, plan, pruned, instead_of(pruned, stand_in)), "blocks", "llama.cpp died on")
    deadly_plan = asked.plan(stand_in, method="random", keep=12)
    verbs.apply(stand_in, deadly_plan, tmp_path / "out.gguf")
    with pytest.raises(EngineError, match=r"llama.cpp died on .*deadly\.gguf"):
        verbs.verify(stand_in, tmp_path / "out.gguf", deadly_plan, settings=EXACT)


def test_logits_that_are_no_numbers_fail(source: Path, plan: PruningPlan, pruned: Path) -> None:
    def run(path: Path, tokens: Tokens, passes: Sequence[Pass], folder: Path) -> list[Ran]:
        ran = nothing_differs(path, tokens, passes, folder)
        return [*ran[:-1], replace(ran[-1], logits=ran[-1].logits * (np.nan if path == pruned else 1))]

    failing(proof(source, plan, pruned, run), "logits", "NaN or infinite logits")


# On the command line.


@pytest.fixture(autouse=True)
def process_as_it_was() -> Iterator[None]:
    logger, on_kill = logging.getLogger("ggufreap"), signal.getsignal(signal.SIGTERM)
    before = logger.handlers[:], logger.level
    yield
    logger.handlers[:], logger.level = before
    signal.signal(signal.SIGTERM, on_kill)


@pytest.mark.native
def test_exit_codes_of_verify(
    source: Path, plan: PruningPlan, pruned: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save_plan(tmp_path / "P.json", plan)
    command = ["verify", str(source), str(pruned), "--plan", str(tmp_path / "P.json"), "-t", "1"]
    assert main(command) == 0
    assert [line.split(":")[0] for line in capfd.readouterr().out.splitlines()] == [
        f"holds  {name}" for name in ("header", "metadata", "bytes", "blocks", "logits")
    ]
    flip(pruned, open_gguf(pruned).by_name["blk.0.attn_v.weight"].offset)
    assert main(command) == 3
    assert capfd.readouterr().out.splitlines()[-1] == "FAILS  bytes: blk.0.attn_v.weight differs from the source"
    pruned.unlink()
    assert main(command) == 1
    said = capfd.readouterr()
    assert (said.out, len(said.err.splitlines())) == ("", 1)


@pytest.mark.native
def test_prune_exits_with_3_if_the_rewriting_were_wrong(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    runs = rewriting_script._runs
    monkeypatch.setattr(rewriting_script, "_runs", lambda kept: runs(kept)[::-1])
    command = ["prune", str(source), "--keep", "12", "--method", "random", "-o", str(tmp_path), "-t", "1"]
    assert main(command) == 3
    assert "FAILS  bytes: blk.0.ffn_gate_inp.weight differs from expert " in capfd.readouterr().out
