"""Quantised files: equal to llama-quantize's, foretold to the byte, there whole or not at all."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_llama
from asked import plan
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize
from tiny_gguf import Model, qwen3moe
from tiny_layouts import with_mtp

from ggufreap import apply
from ggufreap.architecture.layout import bind
from ggufreap.container import GgufFile, OutputTensor, Piece, TensorRecord, lay_out, open_gguf, type_name, write
from ggufreap.engine.quantizer import Quantizer, QuantizerCall
from ggufreap.errors import EngineError, GgufReapError, InputError, MismatchError, OutputError
from ggufreap.files import writing
from ggufreap.imatrix import Imatrix, ImatrixEntry, filled, load, means, reached
from ggufreap.progress import silent
from ggufreap.quantization import (
    QuantRequest,
    file_type_name,
    imatrix_metadata,
    parse_tensor_type,
    quantize_file,
)
from ggufreap.quantization.checks import check_reach
from ggufreap.quantization.request import FILE_TYPES, TENSOR_TYPES

pytestmark = pytest.mark.native

Arrays = dict[str, np.ndarray]


def importance_of(file: GgufFile, seed: int = 0) -> Arrays:
    """Means for every weight in the blocks, as llama-imatrix would have them."""
    rng = np.random.default_rng(seed)
    return {
        record.name: rng.random(n_mat(record) * record.shape[-1], np.float32) + np.float32(0.1)
        for record in file.tensors
        if record.name.startswith("blk.") and len(record.shape) > 1 and "ffn_gate_inp" not in record.name
    }


def n_mat(record: TensorRecord) -> int:
    return record.shape[-3] if len(record.shape) > 2 else 1


def types_of(file: GgufFile) -> dict[str, str]:
    return {record.name: type_name(record.type) for record in file.tensors}


def data_of(file: GgufFile) -> dict[str, bytes]:
    return {record.name: file.map(record).tobytes() for record in file.tensors}


def check_foretold(
    source: GgufFile, out: Path, request: QuantRequest, imatrix: Mapping[str, np.ndarray] | None = None
) -> GgufFile:
    """Quantise, and hold what was written against what a dry run said before."""
    said = quantize_file(source, out, request, imatrix=imatrix, dry_run=True)
    assert not any(path.exists() for path in said.paths)
    made = quantize_file(source, out, request, imatrix=imatrix)
    assert made == said
    file = open_gguf(made.paths[0])
    assert types_of(file) == made.types
    assert file.paths == list(made.paths)
    assert file.nbytes == made.nbytes
    assert [path.stat().st_size for path in file.paths] == list(made.file_nbytes)
    assert sum(made.type_nbytes.values()) == sum(record.nbytes for record in file.tensors)
    assert not list(out.parent.glob(".ggufreap-*"))
    return file


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> GgufFile:
    return open_gguf(qwen3moe(tmp_path_factory.mktemp("tiny") / "tiny.gguf", n_expert=4, n_used=2))


# --- against llama-quantize -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(shared: Path) -> GgufFile:
    return open_gguf(shared / "models" / "six-domain-moe-f16.gguf")


@pytest.fixture(scope="module")
def reference(shared: Path) -> dict[str, dict[str, list[str]]]:
    table: dict[str, dict[str, list[str]]] = json.loads((shared / "reference" / "quantized.json").read_text())
    return table


@pytest.fixture(scope="module")
def trained_importance(shared: Path) -> Arrays:
    imatrix = load(shared / "reference" / "imatrix.gguf")
    return {name: means(entry) for name, entry in imatrix.entries.items()}


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K_M", "IQ4_XS", "Q5_K_M", "Q4_K_M-noim", "IQ3_XXS", "IQ2_XS"])
def test_the_types_are_those_of_llama_quantize(
    trained: GgufFile, reference: dict[str, Any], trained_importance: Arrays, tmp_path: Path, name: str
) -> None:
    imatrix = None if name.endswith("-noim") else trained_importance
    request = QuantRequest(name.removesuffix("-noim"))
    made = quantize_file(trained, tmp_path / "out.gguf", request, imatrix=imatrix, dry_run=True)
    assert made.types == {tensor: kind for tensor, (kind, _) in reference[name].items()}
    assert made.warnings == made.fallbacks == made.pinned == ()


# The other two take twenty seconds each, on the same path.
@pytest.mark.parametrize("name", ["Q8_0", "Q4_K_M", "IQ4_XS", "Q5_K_M", "Q4_K_M-noim"])
def test_the_bytes_are_those_of_llama_quantize(
    trained: GgufFile, reference: dict[str, Any], trained_importance: Arrays, tmp_path: Path, name: str
) -> None:
    imatrix = None if name.endswith("-noim") else trained_importance
    made = quantize_file(trained, tmp_path / "out.gguf", QuantRequest(name.removesuffix("-noim")), imatrix=imatrix)
    data = data_of(open_gguf(made.paths[0]))
    differing = [
        tensor for tensor, (_, sha256) in reference[name].items() if hashlib.sha256(data[tensor]).hexdigest() != sha256
    ]
    if differing and name != "Q4_K_M":
        pytest.skip(f"this build of llama.cpp rounds differently in {len(differing)} tensors")


def test_the_file_is_that_of_llama_quantize(
    shared: Path, trained: GgufFile, trained_importance: Arrays, tmp_path: Path
) -> None:
    known = open_gguf(shared / "reference" / "six-domain-moe-Q4_K_M.gguf")
    imatrix = load(shared / "reference" / "imatrix.gguf")
    metadata = imatrix_metadata(
        "reference/imatrix.gguf", len(imatrix.entries), imatrix.chunk_count, imatrix.datasets[0]
    )
    request = QuantRequest("q4_k_m", metadata=metadata)
    made = quantize_file(trained, tmp_path / "out.gguf", request, imatrix=trained_importance)
    file = open_gguf(made.paths[0])
    assert made.nbytes == known.nbytes
    assert [entry.raw for entry in file.metadata.values()] == [entry.raw for entry in known.metadata.values()]
    if data_of(file) == data_of(known):
        assert made.paths[0].read_bytes() == known.path.read_bytes()
    for record in known.tensors:
        mine, theirs = (dequantize(opened.map(record), Kind(record.type)) for opened in (file, known))
        assert np.sqrt(np.mean((mine - theirs) ** 2)) <= 1e-3 * np.sqrt(np.mean(theirs**2))


# --- what is foretold is what is written ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smallest(tmp_path_factory: pytest.TempPathFactory) -> GgufFile:
    return open_gguf(qwen3moe(tmp_path_factory.mktemp("smallest") / "in.gguf", n_block=1, n_expert=2, n_used=1))


# llama.cpp builds tables for seconds before it can write these; their sizes come from the same few lines.
SLOW = {"IQ1_S", "IQ1_M", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS"}


@pytest.mark.parametrize("name", [name for name in FILE_TYPES if name not in SLOW])
def test_every_type_is_foretold_to_the_byte(smallest: GgufFile, tmp_path: Path, name: str) -> None:
    file = check_foretold(smallest, tmp_path / "out.gguf", QuantRequest(name.lower()), importance_of(smallest))
    assert file.get("general.file_type") == FILE_TYPES[name]
    assert file.get("tiny.u64") == 2**63


def test_llama_cpp_loads_it(tiny: GgufFile, tmp_path: Path) -> None:
    made = quantize_file(tiny, tmp_path / "out.gguf", QuantRequest("Q8_0"))
    logits, exact = (tiny_llama.outputs(path, range(20)) for path in (made.paths[0], tiny.path))
    assert np.corrcoef(logits.ravel(), exact.ravel())[0, 1] > 0.99


def test_a_foreign_alignment_becomes_the_one_llama_cpp_writes(tmp_path: Path) -> None:
    source = open_gguf(qwen3moe(tmp_path / "in.gguf", n_expert=4, n_used=2, alignment=256))
    file = check_foretold(source, tmp_path / "out.gguf", QuantRequest("q4_k_m"))
    assert file.alignment == file.get("general.alignment") == 32


def test_strings_that_llama_cpp_cuts_are_told_of(tmp_path: Path) -> None:
    metadata = {"tiny.nul": "before\0after", "tiny.nuls": ["a\0", "b", "\0c"]}
    source = open_gguf(qwen3moe(tmp_path / "in.gguf", n_expert=4, n_used=2, metadata=metadata))
    file = check_foretold(source, tmp_path / "out.gguf", QuantRequest("q8_0"))
    assert (file.get("tiny.nul"), file.get("tiny.nuls")) == ("before", ["a", "b", ""])
    made = quantize_file(source, tmp_path / "out.gguf", QuantRequest("q8_0"), dry_run=True)
    assert [line.split(";")[0] for line in made.warnings] == [
        "strings of metadata tiny.nul with a NUL byte: 1",
        "strings of metadata tiny.nuls with a NUL byte: 2",
    ]


def test_a_split_set_becomes_one_file_or_a_split_set(tmp_path: Path) -> None:
    source = open_gguf(qwen3moe(tmp_path / "in.gguf", n_expert=4, n_used=2, per_shard=9))
    assert len(source.paths) == 3
    whole = check_foretold(source, tmp_path / "whole.gguf", QuantRequest("q4_k_m"))
    split = check_foretold(source, tmp_path / "split.gguf", QuantRequest("q4_k_m", keep_split=True))
    assert [path.name for path in split.paths] == [f"split-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    assert [len(header.tensors) for header in split.headers] == [len(header.tensors) for header in source.headers]
    assert data_of(split) == data_of(whole)


def test_a_single_file_has_no_split_to_keep(tiny: GgufFile, tmp_path: Path) -> None:
    made = quantize_file(tiny, tmp_path / "out.gguf", QuantRequest("q8_0", keep_split=True))
    assert made.paths == (tmp_path / "out.gguf",)


def _shards(source: GgufFile, out: Path, sizes: tuple[int, ...]) -> GgufFile:
    """`source` as a split set with so many tensors in its shards."""
    tensors = iter(source.tensors)
    groups = [
        [
            OutputTensor(record.name, record.shape, record.type, (Piece(source.path, record.offset, record.nbytes),))
            for _, record in zip(range(size), tensors, strict=False)
        ]
        for size in sizes
    ]
    files = lay_out(out, list(source.metadata.values()), groups, 32)
    with silent("write", 0, "B") as bar:
        write(files, bar)
    return open_gguf(files[0].path)


def test_a_first_shard_without_tensors_is_kept(tiny: GgufFile, tmp_path: Path) -> None:
    source = _shards(tiny, tmp_path / "in.gguf", (0, 10, 100))
    split = check_foretold(source, tmp_path / "out.gguf", QuantRequest("q4_k_m", keep_split=True))
    assert [len(header.tensors) for header in split.headers] == [0, 10, len(tiny.tensors) - 10]


def test_another_shard_without_tensors_is_refused(tiny: GgufFile, tmp_path: Path) -> None:
    source = _shards(tiny, tmp_path / "in.gguf", (10, 0, 100))
    with pytest.raises(InputError, match=r"in-00002-of-00003\.gguf holds no tensors; llama\.cpp cannot keep"):
        quantize_file(source, tmp_path / "out.gguf", QuantRequest("q4_k_m", keep_split=True))
    check_foretold(source, tmp_path / "out.gguf", QuantRequest("q4_k_m"))


# --- the choice of types ----------------------------------------------------------------------------------------------


def test_the_first_pattern_that_matches_wins(tiny: GgufFile, tmp_path: Path) -> None:
    wishes = (("ffn_down", "q8_0"), ("blk\\.1\\.ffn", "IQ4_NL"), ("ffn_down", "q2_k"))
    request = QuantRequest("q4_k_m", wishes, token_embedding_type="q4_0", output_tensor_type="bf16")
    types = types_of(check_foretold(tiny, tmp_path / "out.gguf", request))
    assert {types[f"blk.{block}.ffn_down_exps.weight"] for block in (0, 1)} == {"Q8_0"}
    assert (types["blk.0.ffn_up_exps.weight"], types["blk.1.ffn_up_exps.weight"]) == ("Q4_K", "IQ4_NL")
    assert (types["token_embd.weight"], types["output.weight"]) == ("Q4_0", "BF16")


def test_a_pattern_that_matches_nothing_is_told_of(tiny: GgufFile, tmp_path: Path) -> None:
    request = QuantRequest("q4_k_m", (("ffn_dwon", "q8_0"),))
    made = quantize_file(tiny, tmp_path / "out.gguf", request, dry_run=True)
    assert made.warnings == ("tensor type ffn_dwon=q8_0 matches no tensor",)


def test_pure_mixes_no_types(tiny: GgufFile, tmp_path: Path) -> None:
    types = types_of(check_foretold(tiny, tmp_path / "out.gguf", QuantRequest("q4_k_m", pure=True)))
    wide = {record.name for record in tiny.tensors if len(record.shape) > 1 and record.shape[-1] == 256}
    assert {types[name] for name in wide if "gate_inp" not in name} == {"Q4_K"}


def test_rows_that_do_not_fit_fall_back_and_are_listed(tmp_path: Path) -> None:
    source = open_gguf(qwen3moe(tmp_path / "in.gguf", n_expert=4, n_used=2, n_ff=96))
    made = quantize_file(source, tmp_path / "out.gguf", QuantRequest("q4_k_s"))
    found = {(each.name, each.width, each.wanted, each.given) for each in made.fallbacks if "ffn" in each.name}
    assert found == {(f"blk.{block}.ffn_down_exps.weight", 96, "Q4_K", "Q5_0") for block in (0, 1)}
    assert types_of(open_gguf(made.paths[0]))["blk.0.ffn_down_exps.weight"] == "Q5_0"
    narrow = open_gguf(qwen3moe(tmp_path / "in.gguf", n_expert=4, n_used=2, n_embd=96))
    with pytest.raises(InputError, match=r"token_embd\.weight has rows of 96 weights, Q6_K packs 256 at a time"):
        quantize_file(narrow, tmp_path / "out.gguf", QuantRequest("q8_0", token_embedding_type="q6_k"))


@pytest.fixture(scope="module")
def ten_experts(tmp_path_factory: pytest.TempPathFactory) -> tuple[GgufFile, GgufFile]:
    """A model of ten experts, and the same pruned to the eight for which llama.cpp has rules of its own."""
    folder = tmp_path_factory.mktemp("ten")
    source = qwen3moe(folder / "ten.gguf", n_block=8, n_expert=10, n_used=2)
    apply(source, plan(source, keep=8, method="random"), folder / "eight.gguf")
    return open_gguf(source), open_gguf(folder / "eight.gguf")


# A type of every set of rules in src/llama-quant.cpp.
BY_EXPERTS = ["Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q6_K", "IQ1_M", "IQ2_S", "IQ3_XXS", "IQ3_M", "IQ4_XS", "TQ1_0"]
REGARDLESS = ["Q8_0", "MXFP4_MOE", "BF16", "F32"]


@pytest.mark.parametrize("name", [*BY_EXPERTS, *REGARDLESS])
def test_pruning_changes_no_type(ten_experts: tuple[GgufFile, GgufFile], tmp_path: Path, name: str) -> None:
    ten, eight = ten_experts
    out, request = tmp_path / "out.gguf", QuantRequest(name)
    before = quantize_file(ten, out, request, imatrix=importance_of(ten), dry_run=True)
    imatrix = importance_of(eight)
    alone = quantize_file(eight, out, request, imatrix=imatrix, dry_run=True)
    told = quantize_file(eight, out, replace(request, n_expert_before=10), imatrix=imatrix, dry_run=True)
    assert told.types == before.types
    assert set(told.pinned) == {tensor for tensor in told.types if alone.types[tensor] != told.types[tensor]}
    assert bool(told.pinned) == (name in BY_EXPERTS)


def test_pinned_types_are_written(ten_experts: tuple[GgufFile, GgufFile], tmp_path: Path) -> None:
    ten, eight = ten_experts
    request = QuantRequest("q4_k_m", (("blk.2.attn_v", "q5_0"),), n_expert_before=10)
    file = check_foretold(eight, tmp_path / "out.gguf", request)
    before = quantize_file(ten, tmp_path / "ten-out.gguf", request)
    assert types_of(file) == before.types
    assert file.get("qwen3moe.expert_count") == 8
    assert {before.types[f"blk.{block}.attn_v.weight"] for block in range(8)} == {"Q4_K", "Q5_0", "Q6_K"}
    untouched = [name for name in before.types if "exps" not in name and "gate_inp" not in name]
    mine, theirs = data_of(file), data_of(open_gguf(before.paths[0]))
    assert all(mine[name] == theirs[name] for name in untouched)


def test_fewer_than_four_experts_change_no_type_either(tmp_path: Path) -> None:
    four, three, one = (open_gguf(qwen3moe(tmp_path / f"{n}.gguf", n_block=8, n_expert=n, n_used=1)) for n in (4, 3, 1))
    for name in ("IQ2_XS", "IQ1_M", "IQ3_M", "Q4_K_M"):
        before = quantize_file(
            four, tmp_path / "out.gguf", QuantRequest(name), imatrix=importance_of(four), dry_run=True
        )
        for pruned in (three, one):
            request = QuantRequest(name, n_expert_before=4)
            made = quantize_file(pruned, tmp_path / "out.gguf", request, imatrix=importance_of(pruned), dry_run=True)
            assert made.types == before.types


# --- importance -------------------------------------------------------------------------------------------------------


def test_every_expert_gets_its_own_importance(tiny: GgufFile, tmp_path: Path) -> None:
    imatrix, name = importance_of(tiny), "blk.1.ffn_up_exps.weight"
    request = QuantRequest("q8_0", ((name, "iq4_xs"),))
    made = quantize_file(tiny, tmp_path / "out.gguf", request, imatrix=imatrix)
    file = open_gguf(made.paths[0])
    record, library = file.by_name[name], tiny_llama.ggml_base()
    assert made.types[name] == "IQ4_XS"
    weights = tiny.map(tiny.by_name[name]).view(np.float32).reshape(record.shape)
    for expert, slab in enumerate(np.split(file.map(record), 4)):
        row = np.ascontiguousarray(imatrix[name].reshape(4, -1)[expert])
        wanted = np.empty_like(slab)
        source = np.ascontiguousarray(weights[expert])
        library.ggml_quantize_chunk(
            record.type, source.ctypes.data, wanted.ctypes.data, 0, *source.shape, row.ctypes.data
        )
        assert np.array_equal(slab, wanted)


def test_buffers_and_threads_change_nothing(tiny: GgufFile, tmp_path: Path) -> None:
    imatrix = importance_of(tiny)
    made = [
        quantize_file(tiny, tmp_path / "out.gguf", request, imatrix=imatrix).paths[0].read_bytes()
        for request in (
            QuantRequest("iq4_xs"),
            QuantRequest("iq4_xs", n_threads=1),
            QuantRequest("iq4_xs", n_threads=3, max_buf_size=1 << 20),
        )
    ]
    assert made[0] == made[1] == made[2]


def _without(arrays: Arrays, name: str) -> Arrays:
    return {key: values for key, values in arrays.items() if key != name}


def test_importance_that_is_missing_is_found_before_hours_of_work(tiny: GgufFile, tmp_path: Path) -> None:
    out, imatrix, name = tmp_path / "out.gguf", importance_of(tiny), "blk.1.ffn_up_exps.weight"
    line = rf"{name} would become IQ2_XS, which takes an importance matrix, and none covers it; give one"
    with pytest.raises(InputError, match=line):
        quantize_file(tiny, out, QuantRequest("iq2_xs"), imatrix=_without(imatrix, name))
    with pytest.raises(InputError, match=r"blk\.0\.attn_q\.weight would become Q2_K, which takes an importance"):
        quantize_file(tiny, out, QuantRequest("q2_k_s"))
    # llama.cpp would abort: it exempts the embeddings from its own check.
    with pytest.raises(InputError, match=r"token_embd\.weight would become IQ2_XS"):
        quantize_file(tiny, out, QuantRequest("iq2_xs", pure=True), imatrix=imatrix)
    assert not list(tmp_path.iterdir())


def test_importance_that_is_not_needed_may_be_missing(tiny: GgufFile, tmp_path: Path) -> None:
    imatrix = _without(importance_of(tiny), "blk.1.ffn_up_exps.weight") | {"blk.9.x.weight": np.ones(4, np.float32)}
    made = quantize_file(tiny, tmp_path / "out.gguf", QuantRequest("q4_k_m"), imatrix=imatrix)
    assert made.warnings == (
        "blk.1.ffn_up_exps.weight is quantised without importance",
        "entries of the importance matrix that name no tensor: 1, first blk.9.x.weight",
    )


@pytest.mark.parametrize(
    ("spoil", "error", "line"),
    [
        (lambda values: values[:256], MismatchError, "has 256 values, the tensor takes 4 x 256; the matrix is of"),
        (lambda values: values * np.float32(np.nan), InputError, "holds NaN or infinite values; make the matrix again"),
    ],
)
def test_importance_that_does_not_fit_is_refused(
    tiny: GgufFile, tmp_path: Path, spoil: Any, error: type[GgufReapError], line: str
) -> None:
    name = "blk.0.ffn_down_exps.weight"
    imatrix = importance_of(tiny)
    with pytest.raises(error, match=f"the importance of {name} {line}"):
        quantize_file(
            tiny, tmp_path / "out.gguf", QuantRequest("q4_k_m"), imatrix=imatrix | {name: spoil(imatrix[name])}
        )


def test_metadata_is_written_as_llama_quantize_writes_it(tiny: GgufFile, tmp_path: Path) -> None:
    metadata = imatrix_metadata("ö" * 100, 12, 34, "text.txt")
    made = quantize_file(tiny, tmp_path / "out.gguf", QuantRequest("q8_0", metadata=metadata))
    file = open_gguf(made.paths[0])
    assert {key: entry.value for key, entry in file.metadata.items() if key.startswith("quantize.")} == {
        "quantize.imatrix.file": "ö" * 63,
        "quantize.imatrix.dataset": "text.txt",
        "quantize.imatrix.entries_count": 12,
        "quantize.imatrix.chunks_count": 34,
    }
    assert set(imatrix_metadata("a", 1)) == {"quantize.imatrix.file", "quantize.imatrix.entries_count"}


# --- weights that were quantised before -------------------------------------------------------------------------------


def _with_experts(tmp_path: Path, kind: Kind) -> GgufFile:
    return open_gguf(qwen3moe(tmp_path / "in.gguf", n_expert=4, n_used=2, types=kind))


def test_fp4_experts_are_not_quantised_again_unasked(tmp_path: Path) -> None:
    source, out = _with_experts(tmp_path, Kind.MXFP4), tmp_path / "out.gguf"
    for request in (QuantRequest("q4_k_m"), QuantRequest("q4_k_m", allow_requantize=True)):
        with pytest.raises(InputError, match=r"5 more are MXFP4, often the type .* such as _exps=mxfp4, or allow"):
            quantize_file(source, out, request)
    kept = check_foretold(source, out, QuantRequest("q4_k_m", (("_exps", "mxfp4"),)))
    assert data_of(kept)["blk.0.ffn_up_exps.weight"] == data_of(source)["blk.0.ffn_up_exps.weight"]
    made = quantize_file(source, tmp_path / "again.gguf", QuantRequest("q4_k_s", requantize_fp4=True))
    assert made.warnings == ("tensors quantised a second time, from MXFP4 to Q4_K: 6",)


def test_quantising_twice_must_be_allowed(tmp_path: Path) -> None:
    source, out = _with_experts(tmp_path, Kind.Q5_K), tmp_path / "out.gguf"
    with pytest.raises(InputError, match=r"5 more are Q5_K and would become Q4_K; quantising twice loses twice"):
        quantize_file(source, out, QuantRequest("q4_k_s"))
    made = quantize_file(source, out, QuantRequest("q4_k_s", allow_requantize=True))
    assert made.warnings == ("tensors quantised a second time, from Q5_K to Q4_K: 6",)


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0])
def test_nearly_exact_weights_need_no_leave(tmp_path: Path, kind: Kind) -> None:
    made = quantize_file(_with_experts(tmp_path, kind), tmp_path / "out.gguf", QuantRequest("q4_k_s"))
    assert made.warnings == ()


# --- requests that cannot be met --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "line"),
    [
        (QuantRequest("q4km"), r"quantisation 'q4km' is not known; did you mean Q4_K_M\? Known: Q4_0, "),
        (QuantRequest("7"), r"quantisation '7' is not known; choose one of Q4_0, "),
        (QuantRequest("q4_k_m", (("ffn", "q4_k_m"),)), r"tensor type 'q4_k_m' is not known; did you mean Q4_K\?"),
        (QuantRequest("q4_k_m", (("ffn", "i32"),)), r"tensor type 'i32' is not known"),
        (QuantRequest("q4_k_m", output_tensor_type="q7"), r"tensor type 'q7' is not known"),
        (QuantRequest("q4_k_m", (("", "q8_0"),)), r"has no pattern; write it as REGEX=TYPE"),
        (QuantRequest("q4_k_m", (("ffn(", "q8_0"),)), r"'ffn\(' is no regular expression: missing \)"),
        (QuantRequest("q4_k_m", (("(?i)ffn", "q8_0"),)), r"holds '\(\?i'; llama\.cpp's regular expressions are"),
        (QuantRequest("f16", (("ffn", "q8_0"),)), r"tensor types were given with f16; llama\.cpp heeds them for"),
        (QuantRequest("q4_k_m", n_threads=-1), r"-1 threads were asked for"),
        (QuantRequest("q4_k_m", max_buf_size=0), r"a buffer of 0 bytes was asked for; it takes a MiB"),
        (QuantRequest("q4_k_m", metadata={"a": "x" * 128}), r"metadata value 'xxx.* shorten it"),
        (QuantRequest("q4_k_m", metadata={"a": "x\0"}), r"must be UTF-8 without NUL"),
        (QuantRequest("q4_k_m", metadata={"a": "\ud800"}), r"must be UTF-8 without NUL"),
        (QuantRequest("q4_k_m", metadata={"": "x"}), r"metadata key '' *\.\.\. cannot be written"),
        (QuantRequest("q4_k_m", metadata={"a": -1}), r"metadata a is -1; llama\.cpp writes whole numbers"),
        (QuantRequest("q4_k_m", metadata={"general.alignment": 64}), r"must tell how the file is laid out"),
    ],
)
def test_a_request_that_cannot_be_met_is_one_line(
    tiny: GgufFile, tmp_path: Path, request_: QuantRequest, line: str
) -> None:
    with pytest.raises(InputError, match=line) as caught:
        quantize_file(tiny, tmp_path / "out.gguf", request_)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_names_are_read_as_llama_quantize_reads_them() -> None:
    assert file_type_name("q4_k") == "Q4_K_M"
    assert parse_tensor_type("a=b=q6_k") == ("a=b", "Q6_K")
    with pytest.raises(InputError, match="no pattern"):
        parse_tensor_type("q6_k")


def test_an_abort_of_llama_cpp_is_one_line(tiny: GgufFile, tmp_path: Path) -> None:
    request = QuantRequest("q8_0", metadata={"qwen3moe.expert_used_count": 9})
    line = r"does not quantise .*: it stopped: llama-model\.cpp:\d+: GGML_ASSERT\(n_expert_used"
    with pytest.raises(EngineError, match=line):
        quantize_file(tiny, tmp_path / "out.gguf", request)


def test_a_refusal_of_llama_cpp_is_one_line(tiny: GgufFile, tmp_path: Path) -> None:
    call = QuantizerCall(str(tiny.path), str(tmp_path / "out.gguf"), FILE_TYPES["Q4_K_M"], (("[[:x:]]", 8),))
    with Quantizer() as quantizer, pytest.raises(EngineError, match=r"does not quantise .*/tiny\.gguf: \S.*") as caught:
        quantizer.run(call, lambda line: None)
    assert "\n" not in str(caught.value)


def test_a_damaged_weight_is_one_line(tmp_path: Path) -> None:
    def damage(model: Model) -> None:
        model.tensors["blk.1.ffn_up_exps.weight"][0][0, 0, 0] = np.nan

    source = open_gguf(qwen3moe(tmp_path / "in.gguf", n_expert=4, n_used=2, changes=[damage]))
    with pytest.raises(InputError, match=r"tensor 'blk\.1\.ffn_up_exps\.weight' has invalid data: NaN, infinity or"):
        quantize_file(source, tmp_path / "out.gguf", QuantRequest("q8_0"))
    assert [path.name for path in tmp_path.iterdir()] == ["in.gguf"]


def test_outputs_that_cannot_be_are_refused_before(tiny: GgufFile, tmp_path: Path) -> None:
    for out, line in (
        (tmp_path, "is a directory"),
        (tmp_path / "no" / "x", "does not exist"),
        (tiny.path, "input itself"),
    ):
        with pytest.raises(OutputError, match=line):
            quantize_file(tiny, out, QuantRequest("q8_0"))


# --- whole or not at all ----------------------------------------------------------------------------------------------


def test_a_full_disk_is_seen_before(tiny: GgufFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = quantize_file(tiny, tmp_path / "out.gguf", QuantRequest("q8_0"), dry_run=True)
    usage = shutil.disk_usage(tmp_path)._replace(free=said.nbytes - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match=rf"needs {said.nbytes:,} bytes and .* has {said.nbytes - 1:,} free; free"):
        quantize_file(tiny, tmp_path / "out.gguf", QuantRequest("q8_0"))
    assert not list(tmp_path.iterdir())


def test_progress_counts_every_byte(tiny: GgufFile, tmp_path: Path) -> None:
    bar = Recorder()
    quantize_file(tiny, tmp_path / "out.gguf", QuantRequest("q4_k_m"), imatrix=importance_of(tiny), progress=bar)
    assert bar.opened == ("quantize", sum(record.nbytes for record in tiny.tensors), "B")
    assert len(bar.amounts) == len(tiny.tensors)
    assert sum(bar.amounts) == bar.opened[1]


class Recorder:
    """A bar that notes what it is told."""

    def __init__(self) -> None:
        self.amounts: list[int] = []
        self.opened: tuple[str, int, str] = ("", 0, "")

    def __call__(self, stage: str, total: int, unit: str, done: int = 0) -> "Recorder":
        self.opened = (stage, total, unit)
        return self

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, amount: int) -> None:
        self.amounts.append(amount)


class Spy(Quantizer):
    """Knows the last process that was started."""

    last: subprocess.Popen[str]

    def __enter__(self) -> "Spy":
        super().__enter__()
        Spy.last = self._process
        return self


@pytest.mark.parametrize(
    ("strike", "error", "line"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGINT), KeyboardInterrupt, None),
        (
            lambda: Spy.last.kill(),
            EngineError,
            "it died of SIGKILL, as systems do that run out of memory; give a smaller",
        ),
    ],
)
def test_an_interrupted_run_leaves_what_was_there(
    tiny: GgufFile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    strike: Any,
    error: type[BaseException],
    line: str | None,
) -> None:
    class Striking(Recorder):
        def update(self, amount: int) -> None:
            super().update(amount)
            if len(self.amounts) == 9:
                assert list(tmp_path.glob(".ggufreap-*/out.gguf"))
                strike()

    monkeypatch.setattr("ggufreap.quantization.job.Quantizer", Spy)
    (tmp_path / "out.gguf").write_text("of before")
    with writing(force=True), pytest.raises(error, match=line):
        quantize_file(
            tiny, tmp_path / "out.gguf", QuantRequest("q6_k"), imatrix=importance_of(tiny), progress=Striking()
        )
    assert Spy.last.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]
    assert (tmp_path / "out.gguf").read_text() == "of before"


# Quantises and does `act` in the middle of it; the first line it prints is the number of the process that works.
SCRIPT = """
import os, resource, signal, sys
from pathlib import Path
import numpy as np
from ggufreap.container import open_gguf
from ggufreap.engine.quantizer import Quantizer
from ggufreap.errors import GgufReapError
from ggufreap.quantization import QuantRequest, quantize_file
from ggufreap.quantization import job

class Telling(Quantizer):
    def __enter__(self):
        super().__enter__()
        print(self._process.pid, flush=True)
        return self

class Bar:
    def __call__(self, *_):
        return self
    __enter__ = lambda self: self
    __exit__ = lambda self, *_: None
    def update(self, amount):
        if act == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if act == "interrupt":  # as a terminal does it: all of the group at once
            os.killpg(0, signal.SIGINT)

source, out, act, keep_split = sys.argv[1:]
job.Quantizer = Telling
if act == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
try:
    request = QuantRequest("Q6_K", keep_split=bool(int(keep_split)))
    imatrix = {"blk.0.attn_q.weight": np.ones(256, np.float32)}
    quantize_file(open_gguf(source), Path(out), request, imatrix=imatrix, progress=Bar())
except GgufReapError as error:
    print(error)
"""


def run_script(source: Path, out: Path, act: str, keep_split: bool = False) -> tuple[int, int, str]:
    """The exit code, the number of the process that worked, and what was said; its temporary folder stays empty."""
    command = [sys.executable, "-c", SCRIPT, str(source), str(out), act, str(int(keep_split))]
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"TMPDIR": folder}
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=120, start_new_session=True, env=environment
        )
        assert not os.listdir(folder)
    number, _, rest = result.stdout.partition("\n")
    return result.returncode, int(number), rest + result.stderr


def lives(number: int) -> bool:
    """Whether a process still runs; one that nobody has buried does not."""
    if Path("/proc/self/stat").exists():
        stat = Path(f"/proc/{number}/stat")
        try:
            return stat.read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for_death(number: int) -> None:
    deadline = time.monotonic() + 10
    while lives(number) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not lives(number)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_in_a_terminal_leaves_nothing(tiny: GgufFile, tmp_path: Path) -> None:
    _, number, said = run_script(tiny.path, tmp_path / "out.gguf", "interrupt")
    wait_for_death(number)
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert said.count("Traceback") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("keep_split", [False, True])
def test_kill_9_leaves_nothing_under_the_final_name(tmp_path: Path, keep_split: bool) -> None:
    source = qwen3moe(tmp_path / "in.gguf", n_expert=32, per_shard=9 if keep_split else 0)
    code, number, _ = run_script(source, tmp_path / "out.gguf", "kill", keep_split)
    assert code == -signal.SIGKILL
    wait_for_death(number)
    left = {path.name for path in tmp_path.iterdir() if not path.name.startswith("in")}
    assert left
    assert all(name.startswith(".ggufreap-") for name in left)
    # The next run says so, and clears up.
    check_foretold(open_gguf(source), tmp_path / "out.gguf", QuantRequest("Q6_K", keep_split=keep_split))


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_disk_that_fills_is_one_line(tiny: GgufFile, tmp_path: Path) -> None:
    code, _, said = run_script(tiny.path, tmp_path / "out.gguf", "full")
    assert code == 0
    assert re.fullmatch(r"llama\.cpp could not write .*out\.gguf to the end, [\d,]+ bytes are free .*\n", said)
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_size_is_not_kept(tiny: GgufFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ggufreap.quantization.job.file_sizes", lambda *_: [1])
    with pytest.raises(EngineError, match=r"where 1 were expected, or other types; nothing was kept"):
        quantize_file(tiny, tmp_path / "out.gguf", QuantRequest("q8_0"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("n_block", [1, 3])
def test_a_model_that_changed_since_it_was_opened_is_refused(tmp_path: Path, n_block: int) -> None:
    source = open_gguf(qwen3moe(tmp_path / "in.gguf", n_expert=4, n_used=2))
    qwen3moe(tmp_path / "in.gguf", n_expert=4, n_used=2, n_block=n_block)
    with pytest.raises(EngineError, match="dry run names"):
        quantize_file(source, tmp_path / "out.gguf", QuantRequest("q8_0"))


def test_what_no_calibration_reaches_is_known_before_it(tmp_path: Path) -> None:
    """An MTP block, whose weights would need importance."""
    source = open_gguf(qwen3moe(tmp_path / "m.gguf", types=Kind.F16, changes=[with_mtp]))
    known = reached(source, bind(source))
    assert "blk.1.ffn_up_exps.weight" in known
    types = {
        record.name: TENSOR_TYPES["IQ2_XS"] if "_exps" in record.name else record.type for record in source.tensors
    }
    with pytest.raises(InputError, match=r"blk\.2\..* would become IQ2_XS, .* calibration never runs it"):
        check_reach(source, types, "IQ2_XS", known)
    check_reach(source, types, "IQ2_XS", set(source.by_name))


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*x", "((ab?)c){2,}", "(?:x*)+", "(a{1,9}){9}"])
def test_a_pattern_that_could_take_for_ever_is_refused(pattern: str) -> None:
    with pytest.raises(InputError, match="repeats a group that can match in several ways"):
        parse_tensor_type(f"{pattern}=q6_k")


@pytest.mark.parametrize(
    "pattern", [r"ffn_(gate|up|down)_exps", r"blk\.(\d|1\d)\.", "[(a+)+]", r"\(a+\)+", "(?!x+)y", "(ab)+"]
)
def test_patterns_that_people_write_are_not(pattern: str) -> None:
    assert parse_tensor_type(f"{pattern}=q6_k") == (pattern, "Q6_K")


@pytest.mark.parametrize("kind", ["q4_k", "iq4_xs", "q2_k", "q6_k"])
def test_inputs_that_were_zero_for_the_whole_text_cost_no_weights(tmp_path: Path, kind: str) -> None:
    """As it is, such a matrix lets the quantiser write zeros (an error of 1); completed, it costs what others do."""
    source = open_gguf(qwen3moe(tmp_path / "m.gguf", n_expert=4, n_used=2, n_embd=512, n_ff=256))
    name, zero = "blk.1.ffn_gate_exps.weight", slice(0, 256)
    record = source.by_name[name]
    sums = np.random.default_rng(0).random((4, 512), np.float32) + np.float32(0.1)
    sums[:, zero] = 0
    entry = ImatrixEntry(sums, np.full(4, 1))
    weights = source.map(record).view(np.float32).reshape(record.shape)

    def error(given: ImatrixEntry) -> float:
        """Of the weights behind those inputs, as a share of their squares."""
        whole = importance_of(source) | {name: means(given)}
        made = quantize_file(source, tmp_path / "out.gguf", QuantRequest("q8_0", ((name, kind),)), imatrix=whole)
        file = open_gguf(made.paths[0])
        found = dequantize(file.map(file.by_name[name]), Kind(file.by_name[name].type)).reshape(record.shape)
        made.paths[0].unlink()
        wanted = weights[..., zero]
        return float(np.square(found[..., zero] - wanted).sum() / np.square(wanted).sum())

    completed, _ = filled(Imatrix({name: entry}))
    as_others = error(ImatrixEntry(np.ones_like(sums), entry.counts))
    assert error(completed.entries[name]) < 1.01 * as_others < 0.1
    assert error(entry) > 0.99
