"""Importance matrices: llama.cpp's own files byte for byte, hand-made ones, and what slicing and merging must keep."""

import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny_gguf
from gguf import GGMLQuantizationType as Kind
from hypothesis import given
from hypothesis import strategies as st
from tiny_layouts import fused, with_mtp

from ggufreap.architecture.layout import MoeLayout, bind
from ggufreap.container import GgufFile, open_gguf
from ggufreap.errors import FormatError, GgufReapError, InfeasiblePlan, InputError, MismatchError, OutputError
from ggufreap.imatrix import (
    Filled,
    Imatrix,
    ImatrixEntry,
    check,
    describe,
    expert_statistics,
    filled,
    in_tokens,
    load,
    load_for,
    means,
    merged,
    save,
    sliced,
)
from ggufreap.verbs import gap_note

GATE, DOWN, DENSE = "blk.0.ffn_gate_exps.weight", "blk.0.ffn_down_exps.weight", "blk.0.attn_q.weight"


def entry(counts: Any, n_in: int = 3, seed: int = 0) -> ImatrixEntry:
    """Random sums for rows with a count, zeros for the others."""
    counts = np.array(counts, np.int64)
    sums = np.random.default_rng(seed).random((len(counts), n_in), np.float32) * counts[:, None]
    return ImatrixEntry.of(sums, counts)


def small(seed: int = 0) -> Imatrix:
    entries = {
        DENSE: entry([512], 4, seed),
        GATE: entry([300, 0, 212, 512], 4, seed + 1),
        DOWN: entry([300, 0, 212, 512], 2, seed + 2),
    }
    return Imatrix(entries, ("one.txt", "two.txt"), 2, 256)


def same(a: Imatrix, b: Imatrix) -> bool:
    entries = a.entries.keys() == b.entries.keys() and all(
        np.array_equal(a.entries[name].in_sum2, b.entries[name].in_sum2)
        and np.array_equal(a.entries[name].counts, b.entries[name].counts)
        for name in a.entries
    )
    return entries and replace(a, entries={}) == replace(b, entries={})


# Files.


def test_llama_imatrix_files_come_back_byte_for_byte(shared: Path, tmp_path: Path) -> None:
    reference = shared / "reference"
    for name, legacy in (("imatrix.gguf", False), ("imatrix.dat", True)):
        save(tmp_path / name, load(reference / name), legacy)
        assert (tmp_path / name).read_bytes() == (reference / name).read_bytes()


def test_the_dat_of_a_gguf_is_llama_imatrix_own(shared: Path, tmp_path: Path) -> None:
    save(tmp_path / "i.dat", load(shared / "reference/imatrix.gguf"), legacy=True)
    assert (tmp_path / "i.dat").read_bytes() == (shared / "reference/imatrix.dat").read_bytes()


def test_both_reference_files_say_the_same(shared: Path) -> None:
    new, old = (load(shared / "reference" / name) for name in ("imatrix.gguf", "imatrix.dat"))
    assert (new.chunk_count, new.chunk_size, new.datasets) == (120, 256, ("text/mixed.calib.txt",))
    assert (old.chunk_count, old.datasets, old.per_chunk) == (120, new.datasets, True)
    assert new.entries[DENSE].counts.tolist() == [120 * 256]
    for name in new.entries:
        np.testing.assert_allclose(means(old.entries[name]), means(new.entries[name]), rtol=3e-7)


def test_the_reference_covers_its_model(shared: Path) -> None:
    file = open_gguf(shared / "models/six-domain-moe-f16.gguf")
    layout = bind(file)
    for name in ("imatrix.gguf", "imatrix.dat"):
        coverage = check(load(shared / "reference" / name), file, layout)
        assert (coverage.n_matched, coverage.missing, coverage.unknown) == (32, (), ())
    sums = expert_statistics(load(shared / "reference/imatrix.gguf"), layout)
    assert (sums.counts.sum(axis=1) == 120 * 256 * np.array([block.n_used for block in layout.trunk])).all()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_gives_back_every_bit(tmp_path: Path, legacy: bool) -> None:
    save(tmp_path / "a", small(), legacy)
    first = load(tmp_path / "a")
    assert legacy or same(first, replace(small(), entries=dict(sorted(small().entries.items()))))
    save(tmp_path / "b", first, legacy)
    assert same(load(tmp_path / "b"), first)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_another_reader_finds_names_types_and_shapes(tmp_path: Path) -> None:
    save(tmp_path / "i.gguf", small())
    reader = gguf.GGUFReader(tmp_path / "i.gguf")
    found = [(tensor.name, tensor.tensor_type, tensor.shape.tolist()) for tensor in reader.tensors]
    assert found == [
        (f"{DENSE}.in_sum2", Kind.F32, [4]),
        (f"{DENSE}.counts", Kind.F32, [1]),
        (f"{DOWN}.in_sum2", Kind.F32, [2, 4]),
        (f"{DOWN}.counts", Kind.F32, [1, 4]),
        (f"{GATE}.in_sum2", Kind.F32, [4, 4]),
        (f"{GATE}.counts", Kind.F32, [1, 4]),
    ]
    assert reader.tensors[3].data.ravel().tolist() == [300, 0, 212, 512]
    assert reader.get_field("imatrix.datasets").contents() == ["one.txt", "two.txt"]
    assert reader.get_field("general.type").contents() == "imatrix"


def test_a_dat_made_by_hand(tmp_path: Path) -> None:
    """One dense weight, four experts of which one is without data, one weight without any: by the rules of the C++."""
    dense = ImatrixEntry.of(np.float32([512, 1024]), [512])
    experts = ImatrixEntry.of(np.float32([300, 600, 0, 0, 106, 53, 1, 3]), [300, 0, 212, 1])
    nothing = ImatrixEntry.of(np.zeros(2, np.float32), [0])
    save(tmp_path / "i.dat", Imatrix({"b": experts, "a": dense, "c": nothing}, ("x", "y"), 2, 256), legacy=True)
    assert (tmp_path / "i.dat").read_bytes() == b"".join(
        [
            struct.pack("<ii1sii2f", 2, 1, b"a", 2, 2, 2, 4),
            struct.pack("<i1sii8f", 1, b"b", 2, 8, 2, 4, 2, 2, 1, 0.5, 2, 6),
            struct.pack("<ii1s", 2, 1, b"y"),
        ]
    )
    assert means(load(tmp_path / "i.dat").entries["b"]).tolist() == [1, 2, 1, 1, 0.5, 0.25, 1, 3]


def test_a_dat_keeps_values_that_division_would_round(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random(64, np.float32)
    assert (values / np.float32(7) * np.float32(7) != values).any()
    data = struct.pack("<ii1sii", 1, 1, b"a", 7, 64) + values.tobytes() + struct.pack("<ii", 7, 0)
    (tmp_path / "i.dat").write_bytes(data)
    save(tmp_path / "again.dat", load(tmp_path / "i.dat"), legacy=True)
    assert (tmp_path / "again.dat").read_bytes() == data


def test_a_dense_weight_of_several_matrices_has_one_count(tmp_path: Path) -> None:
    """blk.N.attn_k_b of MLA: llama-imatrix keeps its sums in one row, and so does the file."""
    mla = ImatrixEntry.of(np.arange(6, dtype=np.float32).reshape(2, 3), [4])
    assert mla.in_sum2.shape == (1, 6)
    save(tmp_path / "i.gguf", Imatrix({"m": mla}))
    assert open_gguf(tmp_path / "i.gguf").by_name["m.in_sum2"].shape == (6,)
    assert means(load(tmp_path / "i.gguf").entries["m"]).tolist() == [0, 0.25, 0.5, 0.75, 1, 1.25]


def test_a_dat_becomes_a_gguf_as_llama_imatrix_makes_it_one(tmp_path: Path) -> None:
    save(tmp_path / "i.dat", small(), legacy=True)
    old = load(tmp_path / "i.dat")
    save(tmp_path / "i.gguf", old)
    new = load(tmp_path / "i.gguf")
    assert (new.chunk_size, new.per_chunk) == (512, False)
    assert new.entries[GATE].counts.tolist() == [2 * 512]
    for name in old.entries:
        assert np.array_equal(means(new.entries[name]), means(old.entries[name]))


def write_gguf(path: Path, tensors: Mapping[str, Any], kind: Kind = Kind.F32, **metadata: Any) -> Path:
    arrays = {name: (np.array(values, np.float32), kind) for name, values in tensors.items()}
    keys = {f"imatrix.{key}": value for key, value in metadata.items()}
    return tiny_gguf.write(path, "imatrix", keys, arrays)[0]


def test_an_older_gguf_without_keys_is_read(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "i.gguf", {"w.in_sum2": [[1, 2], [3, 4]], "w.counts": [[1], [2.6]], "stray": [0]})
    found = load(path)
    assert same(found, Imatrix({"w": ImatrixEntry.of(np.float32([1, 2, 3, 4]), [1, 3])}))
    save(tmp_path / "again.gguf", found)
    assert same(load(tmp_path / "again.gguf"), found)


def test_a_dat_without_trailer_is_read(tmp_path: Path) -> None:
    body = struct.pack("<ii1sii2f", 1, 1, b"a", 0, 2, 3, 5)
    for trailer, chunks, datasets in (
        (b"", 0, ()),
        (struct.pack("<i", 7), 7, ()),
        (struct.pack("<ii", 7, 0), 7, ()),
        (struct.pack("<ii5s", 7, 5, b"caf\xe9\0"), 7, ("caf\udce9",)),
    ):
        (tmp_path / "i.dat").write_bytes(body + trailer)
        found = load(tmp_path / "i.dat")
        assert (found.chunk_count, found.datasets) == (chunks, datasets)
        assert means(found.entries["a"]).tolist() == [3, 5]  # no chunk at all: the values are the means
        for legacy in (False, True):
            save(tmp_path / "again", found, legacy, own=True)
            assert load(tmp_path / "again").chunk_count == chunks


# Damage.


@pytest.mark.parametrize("legacy", [False, True])
def test_every_truncation_is_one_clear_error(tmp_path: Path, legacy: bool) -> None:
    save(tmp_path / "whole", small(), legacy)
    data = (tmp_path / "whole").read_bytes()
    # The padding at the end holds nothing; a .dat may end before its trailer, or after the first number of it.
    whole = {len(data) - 15, len(data) - 11} if legacy else set(range(len(data) - 16, len(data)))
    for length in set(range(len(data))) - whole:
        (tmp_path / "cut").write_bytes(data[:length])
        with pytest.raises(InputError) as failure:
            load(tmp_path / "cut")
        assert "cut" in str(failure.value)
        assert "\n" not in str(failure.value)


@given(st.booleans(), st.integers(0, 10_000), st.binary(min_size=1, max_size=8))
def test_no_damage_is_worse_than_an_error(tmp_path_factory: Any, legacy: bool, at: int, damage: bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    save(folder / "whole", small(), legacy, own=True)
    data = bytearray((folder / "whole").read_bytes())
    at %= len(data)
    data[at : at + len(damage)] = damage
    (folder / "damaged").write_bytes(data)
    with suppress(GgufReapError):
        found = load(folder / "damaged")
        describe(merged([found, found]))
        save(folder / "again", filled(found)[0], own=True)


HOSTILE = 2**31 - 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is no importance matrix"),
        (b"GG", "is no importance matrix"),
        (b"GGUF", "is not a GGUF file"),
        (b"not an importance matrix at all", "is no importance matrix"),
        (struct.pack("<i20x", 0), "is nothing but zeros"),
        (struct.pack("<i20x", HOSTILE), "would hold 2147483647 entries"),
        (struct.pack("<ii20x", 1, HOSTILE), "entry 1's name takes 2147483647 bytes, 20 are left"),
        (struct.pack("<ii20x", 1, -1), "entry 1's name takes -1 bytes"),
        (struct.pack("<ii2sii20x", 1, 2, b"\xff\xfe", 1, 1), "not UTF-8"),
        (struct.pack("<ii1sii20x", 1, 1, b"a", 1, HOSTILE), "a takes 8589934588 bytes, 20 are left"),
        (struct.pack("<ii1sii20x", 1, 1, b"a", 1, 0), "'a' has 0 values of 1 chunks"),
        (struct.pack("<ii1sii20x", 1, 1, b"a", -1, 1), "'a' has 1 values of -1 chunks"),
        (struct.pack("<ii1siif", 1, 1, b"a", 1, 1, float("nan")), "a holds nan"),
        (struct.pack("<ii1siif", 1, 1, b"a", 1, 1, -1), "a holds -1"),
        (struct.pack("<ii1siif", 1, 1, b"a", 1, 1, 1e38), "a holds"),
        (struct.pack("<i", 2) + 2 * struct.pack("<i1siif", 1, b"a", 1, 1, 1), "a stands twice"),
        (struct.pack("<ii1siifii", 1, 1, b"a", 1, 1, 1, 1, HOSTILE), "data set's name takes 2147483647"),
        (struct.pack("<ii1siifiii", 1, 1, b"a", 1, 1, 1, 1, 0, 0), "4 bytes after its end"),
        (struct.pack("<ii1siifi", 1, 1, b"a", 1, 1, 1, -1), "-1 chunks"),
    ],
)
def test_hostile_dats(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "i.dat").write_bytes(data)
    with pytest.raises(FormatError, match=message):
        load(tmp_path / "i.dat")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"token_embd.weight": [1]}, "none of them named"),
        ({"w.in_sum2": [1]}, "w has no .counts"),
        ({"w.counts": [1]}, "w has no .in_sum2"),
        ({"w.in_sum2": [1, 2, 3], "w.counts": [1, 1]}, "w has 3 sums and 2 counts"),
        ({"w.in_sum2": [np.inf], "w.counts": [1]}, "w holds inf"),
        ({"w.in_sum2": [1], "w.counts": [np.nan]}, "w.counts holds nan"),
        ({"w.in_sum2": [1], "w.counts": [-1]}, "w.counts holds -1"),
        ({"w.in_sum2": [1], "w.counts": [1e18]}, "w counts 1e"),
    ],
)
def test_damaged_ggufs(tmp_path: Path, tensors: Mapping[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(write_gguf(tmp_path / "i.gguf", tensors))


def test_ggufs_of_other_types(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"w\.in_sum2 is F16"):
        load(write_gguf(tmp_path / "i.gguf", {"w.in_sum2": [1], "w.counts": [1]}, Kind.F16))
    for value in ("many", np.int32(-1), np.uint64(2**31), 0.5):
        with pytest.raises(FormatError, match=r"imatrix\.chunk_count is"):
            load(write_gguf(tmp_path / "i.gguf", {"w.in_sum2": [1], "w.counts": [1]}, chunk_count=value))


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="cannot read"):
            load(path)
    for imatrix, legacy, message in (
        (Imatrix({}), False, "without entries"),
        (Imatrix({"w": entry([0])}), True, "no weight has any data"),
        (Imatrix({"w" * 60: entry([1])}), False, "longer than the 63 bytes"),
        (replace(small(), chunk_count=2**32), False, "beyond 32 bits"),
        (replace(small(), chunk_count=2**32), True, "beyond 32 bits"),
    ):
        with pytest.raises(OutputError, match=message):
            save(tmp_path / "i", imatrix, legacy)
    assert not list(tmp_path.iterdir())


# Values.


def test_means_are_those_of_llama_quantize() -> None:
    found = means(ImatrixEntry.of(np.float32([[2, 4], [0, 0], [1, 1]]), [2, 0, 3]))
    assert found.dtype == np.float32
    assert found.tolist() == [1, 2, 1, 1, np.float32(1) / np.float32(3), np.float32(1) / np.float32(3)]


def test_merging_adds_up() -> None:
    a, b, c = small(1), small(2), replace(small(3), entries={"other": entry([7])}, datasets=("c",))
    whole = merged([a, b, c])
    assert (whole.chunk_count, whole.chunk_size) == (6, 256)
    assert whole.datasets == ("one.txt", "two.txt", "one.txt", "two.txt", "c")
    assert np.array_equal(whole.entries[GATE].in_sum2, a.entries[GATE].in_sum2 + b.entries[GATE].in_sum2)
    assert whole.entries[GATE].counts.tolist() == [600, 0, 424, 1024]
    assert same(Imatrix({"other": whole.entries["other"]}), Imatrix(c.entries))
    assert same(merged([merged([a, b]), c]), whole)
    assert same(merged([a]), a)


def test_merging_a_slice_is_slicing_the_merger(model: tuple[GgufFile, MoeLayout]) -> None:
    layout = model[1]
    parts = [of_model(*model, seed=seed) for seed in (1, 2)]
    keep = {0: (1, 3, 8), 1: (0, 2, 4)}
    assert same(merged([sliced(part, layout, keep) for part in parts]), sliced(merged(parts), layout, keep))


def test_merging_chunks_of_two_sizes_counts_tokens() -> None:
    assert merged([small(), replace(small(), chunk_size=512)]).chunk_count == 2 + 4


def test_merging_a_dat_takes_its_chunks_for_the_others_size(tmp_path: Path) -> None:
    save(tmp_path / "i.dat", small(1), legacy=True)
    old, new = load(tmp_path / "i.dat"), small(2)
    for parts in ([old, new], [new, old]):
        both = merged(parts)
        assert (both.chunk_count, both.chunk_size, both.per_chunk) == (4, 256, False)
        assert both.entries[DENSE].counts.tolist() == [1024]
        assert both.entries[GATE].counts.tolist() == [812, 512, 724, 1024]  # its one count stands for every expert
        expected = in_tokens(old, 256).entries[GATE].in_sum2.reshape(4, 4) + new.entries[GATE].in_sum2
        assert np.array_equal(both.entries[GATE].in_sum2, expected)
    twice = merged([old, old])
    assert (twice.chunk_count, twice.per_chunk) == (4, True)
    assert np.array_equal(means(twice.entries[GATE]), means(old.entries[GATE]))


def test_different_models_do_not_merge() -> None:
    for other in (entry([1, 2, 3]), entry([1, 2], 8)):
        with pytest.raises(MismatchError, match="different models"):
            merged([small(), Imatrix({GATE: other})])
    with pytest.raises(InputError, match="no importance matrix"):
        merged([])


def test_experts_without_data_get_the_mean_of_the_blocks_input() -> None:
    before = small()
    after, report = filled(before)
    assert report == (Filled(GATE, (1,), 3), Filled(DOWN, (1,), 0))
    rows, counts = before.entries[GATE].in_sum2.astype(np.float64), before.entries[GATE].counts
    np.testing.assert_allclose(means(after.entries[GATE]).reshape(4, 4)[1], rows.sum(axis=0) / counts.sum(), rtol=1e-6)
    assert np.array_equal(np.delete(after.entries[GATE].in_sum2, 1, 0), np.delete(before.entries[GATE].in_sum2, 1, 0))
    assert after.entries[GATE].counts.tolist() == [300, 1, 212, 512]
    assert same(Imatrix({DOWN: after.entries[DOWN]}), Imatrix({DOWN: before.entries[DOWN]}))
    assert filled(after)[1] == report[1:]


def test_nothing_is_made_up_where_nobody_has_data() -> None:
    before = Imatrix({GATE: entry([0, 0]), DENSE: entry([0])})
    after, report = filled(before)
    assert same(after, before)
    assert report == (Filled(GATE, (0, 1), 0), Filled(DENSE, (0,), 0))
    assert means(after.entries[GATE]).tolist() == [1] * 6


def test_an_importance_of_zero_is_no_leave_to_write_zeros() -> None:
    """Of a whole expert, of single inputs, and of a weight without experts."""
    before = small()
    entries = {name: ImatrixEntry(part.in_sum2.copy(), part.counts) for name, part in before.entries.items()}
    entries[DOWN].in_sum2[3] = entries[GATE].in_sum2[2] = 0  # routed, and yet nothing
    entries[GATE].in_sum2[0, 1:3] = entries[DENSE].in_sum2[0, 0] = 0
    after, report = filled(Imatrix(entries))
    assert report == (Filled(DENSE, (), 0, 1), Filled(GATE, (1, 2), 2, 2), Filled(DOWN, (1, 3), 0))
    assert all((means(part) > 0).all() for part in after.entries.values())
    gate = after.entries[GATE].in_sum2
    assert gate[0, 1] == gate[0, 2] == entries[GATE].in_sum2[0, [0, 3]].min()
    assert np.array_equal(gate[3], entries[GATE].in_sum2[3]), "what has data stays"
    assert "inputs that were zero for the whole text: 2; they got the least" in gap_note(report[1])


def test_the_mean_of_the_others_is_the_mean_of_the_whole_input() -> None:
    """Every token to two of four experts, none to the last: the rule gives the mean over tokens, exactly."""
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 8, (100, 5)).astype(np.float32)
    sums, counts = np.zeros((4, 5), np.float32), np.zeros(4, np.int64)
    for row in inputs:
        chosen = rng.choice(3, 2, replace=False)
        sums[chosen] += row**2
        counts[chosen] += 1
    result, _ = filled(Imatrix({GATE: ImatrixEntry(sums, counts)}))
    np.testing.assert_array_equal(
        result.entries[GATE].in_sum2[3], (inputs**2).mean(axis=0, dtype=np.float64).astype("f4")
    )


def test_a_summary_made_by_hand() -> None:
    experts = ImatrixEntry.of(np.float32([[2, 4], [0, 0], [3, 3]]), [2, 0, 3])
    summary = describe(Imatrix({GATE: experts, DENSE: entry([0])}, ("x",), 1, 2))
    assert (summary.datasets, summary.chunk_count, summary.chunk_size) == (("x",), 1, 2)
    dense, gate = summary.entries
    assert (gate.weight, gate.n_mat, gate.n_in, gate.most_rows, gate.n_empty, gate.energy) == (GATE, 3, 2, 3, 1, 5)
    assert gate.share == pytest.approx(2 / 3)
    assert (dense.energy, dense.share) == (0, 0)
    assert summary.share == pytest.approx(2 / 4)


# Models.


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[GgufFile, MoeLayout]:
    return opened(tmp_path_factory.mktemp("imatrix") / "m.gguf")


def opened(path: Path, **options: Any) -> tuple[GgufFile, MoeLayout]:
    file = open_gguf(tiny_gguf.qwen3moe(path, n_expert=9, n_embd=64, n_ff=32, **options))
    return file, bind(file)


def of_model(file: GgufFile, layout: MoeLayout, seed: int = 0) -> Imatrix:
    """What llama-imatrix would collect: every product with a weight of a block that is run."""
    entries, rng = {}, np.random.default_rng(seed)
    for record in file.tensors:
        if record.name.startswith("blk.") and len(record.shape) > 1:
            n_mat = record.shape[0] if len(record.shape) == 3 else 1
            counts = rng.integers(1, 256, n_mat) if n_mat > 1 else [512]
            entries[record.name] = entry(counts, record.shape[-1], seed)
    return Imatrix(entries, ("text",), 2, 256)


def test_a_slice_is_the_rows_in_order(model: tuple[GgufFile, MoeLayout]) -> None:
    whole, keep = of_model(*model), {0: (1, 3, 8), 1: (8, 0)}
    part = sliced(whole, model[1], keep)
    assert list(part.entries) == list(whole.entries)
    for name, before in whole.entries.items():
        rows = list(keep[model[1].per_expert[name]]) if name.endswith("_exps.weight") else slice(None)
        assert np.array_equal(part.entries[name].in_sum2, before.in_sum2[rows])
        assert np.array_equal(part.entries[name].counts, before.counts[rows])
    assert replace(part, entries={}) == replace(whole, entries={})
    assert part.entries["blk.0.ffn_gate_inp.weight"] is whole.entries["blk.0.ffn_gate_inp.weight"]


def test_a_slice_of_a_dat_has_the_same_means(model: tuple[GgufFile, MoeLayout], tmp_path: Path) -> None:
    whole, keep = of_model(*model), {0: (1, 3, 8), 1: (0, 2, 4)}
    save(tmp_path / "whole.dat", whole, legacy=True)
    old = sliced(load(tmp_path / "whole.dat"), model[1], keep)
    for name, new in sliced(whole, model[1], keep).entries.items():
        assert len(old.entries[name].counts) == 1
        np.testing.assert_allclose(means(old.entries[name]), means(new), rtol=3e-7)


def test_a_slice_fits_the_pruned_model(model: tuple[GgufFile, MoeLayout], tmp_path: Path) -> None:
    whole = of_model(*model)
    pruned = open_gguf(tiny_gguf.qwen3moe(tmp_path / "p.gguf", n_expert=5, n_embd=64, n_ff=32))
    keep = dict.fromkeys((0, 1), (0, 2, 4, 6, 8))
    assert check(sliced(whole, model[1], keep), pruned, bind(pruned)).missing == ()
    with pytest.raises(MismatchError, match=r"6 of 16 entries .* has 9 x 64 sums, the weight takes 5 x 64"):
        check(whole, pruned, bind(pruned))


def test_dropped_blocks_leave(tmp_path: Path) -> None:
    file, layout = opened(tmp_path / "m.gguf", changes=[with_mtp])
    whole, trunk = of_model(file, layout), {0: (0, 1), 1: (2, 3)}
    dropped = sliced(whole, layout, trunk)
    assert set(whole.entries) - set(dropped.entries) == {name for name in whole.entries if name.startswith("blk.2.")}
    mirrored = sliced(whole, layout, trunk | {2: (4, 5)})
    assert len(mirrored.entries["blk.2.ffn_up_exps.weight"].counts) == 2
    assert set(mirrored.entries) == set(whole.entries)


def test_a_slice_of_something_else_is_refused(model: tuple[GgufFile, MoeLayout]) -> None:
    whole, layout = of_model(*model), model[1]
    with pytest.raises(MismatchError, match="does not name MoE block 1"):
        sliced(whole, layout, {0: (0, 1)})
    for kept in ((), (0, 9), (-1, 2)):
        with pytest.raises(InfeasiblePlan, match=r"not experts of 0\.\.8"):
            sliced(whole, layout, {0: (0, 1), 1: kept})
    for wrong in (entry([1] * 8), entry([1], 32)):
        with pytest.raises(MismatchError, match="9 experts"):
            sliced(replace(whole, entries={GATE: wrong}), layout, {0: (0, 1), 1: (0, 1)})


def test_what_an_importance_matrix_lacks_is_a_value(tmp_path: Path) -> None:
    file, layout = opened(tmp_path / "m.gguf", changes=[with_mtp])
    whole = of_model(file, layout)
    entries = {name: row for name, row in whole.entries.items() if not name.startswith("blk.2.")}
    entries["blk.0.ffn_gate.3.weight"] = entries.pop(DENSE)
    coverage = check(replace(whole, entries=entries), file, layout)
    assert coverage.n_matched == 15
    assert coverage.missing == (DENSE,)
    assert coverage.unknown == ("blk.0.ffn_gate.3.weight",)
    assert "blk.2.ffn_down_exps.weight" in coverage.missing_mtp
    # The router and norms are never quantised.
    assert not any("gate_inp" in name or "norm" in name for name in coverage.missing_mtp)


def test_another_models_matrix_is_refused(model: tuple[GgufFile, MoeLayout]) -> None:
    with pytest.raises(MismatchError, match="none of 1 entries"):
        check(Imatrix({"model.layers.0": entry([1])}), *model)
    whole = of_model(*model)
    flat = ImatrixEntry.of(whole.entries[GATE].in_sum2, [1, 1, 1])  # as many sums, other experts
    with pytest.raises(MismatchError, match=r"1 of 16 .* has 3 x 192 sums, the weight takes 9 x 64"):
        check(replace(whole, entries={**whole.entries, GATE: flat}), *model)


def test_statistics_of_every_expert(model: tuple[GgufFile, MoeLayout], tmp_path: Path) -> None:
    whole = of_model(*model)
    found = expert_statistics(whole, model[1])
    assert found.blocks == (0, 1)
    for row, block in enumerate(found.blocks):
        down, gate = (whole.entries[f"blk.{block}.ffn_{part}_exps.weight"] for part in ("down", "gate"))
        assert np.array_equal(found.counts[row], down.counts)
        np.testing.assert_allclose(found.down[row], down.in_sum2.astype(np.float64).sum(axis=1))
        np.testing.assert_allclose(found.gate[row], gate.in_sum2.astype(np.float64).sum(axis=1))
    save(tmp_path / "i.dat", whole, legacy=True)
    with pytest.raises(InputError, match="one count for all 9 experts"):
        expert_statistics(load(tmp_path / "i.dat"), model[1])
    with pytest.raises(MismatchError, match=r"has no blk\.0\.ffn_down_exps"):
        expert_statistics(Imatrix({}), model[1])
    with pytest.raises(MismatchError, match="9 experts"):
        expert_statistics(Imatrix({DOWN: entry([1, 2])}), model[1])


def test_statistics_of_fused_experts(tmp_path: Path) -> None:
    file, layout = opened(tmp_path / "m.gguf", changes=[fused])
    whole = of_model(file, layout)
    sums = whole.entries["blk.1.ffn_gate_up_exps.weight"].in_sum2
    np.testing.assert_allclose(expert_statistics(whole, layout).gate[1], sums.sum(axis=1, dtype=np.float64))


# Gate and up in one tensor or in two: the same inputs, the same sums.


@pytest.mark.parametrize("was_fused", [True, False])
def test_a_matrix_of_the_other_layout_serves_a_model(tmp_path: Path, was_fused: bool) -> None:
    apart = open_gguf(tiny_gguf.qwen3moe(tmp_path / "apart.gguf"))
    whole = open_gguf(tiny_gguf.qwen3moe(tmp_path / "whole.gguf", changes=[fused]))
    before, after = (whole, apart) if was_fused else (apart, whole)

    def matrix_of(file: GgufFile) -> Imatrix:
        entries = {}
        for record in file.tensors:
            if record.name.startswith("blk.") and len(record.shape) > 1:
                counts = [10] * (record.shape[0] if "_exps" in record.name else 1)
                seed = 1 if any(part in record.name for part in ("_gate_exps", "_up_exps", "_gate_up_exps")) else 2
                entries[record.name] = entry(counts, record.shape[-1], seed)
        return Imatrix(entries, ("a text",), 1, 512)

    save(tmp_path / "I.gguf", matrix_of(before))
    found = load_for(tmp_path / "I.gguf", after)
    assert same(found, matrix_of(after))
    coverage = check(found, after, bind(after))
    assert (coverage.missing, coverage.unknown) == ((), ())
    assert same(load_for(tmp_path / "I.gguf", before), load(tmp_path / "I.gguf"))
