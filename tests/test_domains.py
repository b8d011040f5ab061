"""Statistics per domain and half: additive, maskable, mergeable from shards, and readable from older files."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_engine import FakeEngine
from hypothesis import given
from hypothesis import strategies as st
from synthetic import quick

from ggufreap.corpus import SourceRecord
from ggufreap.engine.importance import ImportanceSums, Sums
from ggufreap.engine.protocol import RoutedBatch
from ggufreap.errors import InputError, MismatchError
from ggufreap.observation import (
    STATISTICS,
    DomainStatistics,
    ExpertStatistics,
    Importance,
    Provenance,
    Stored,
    load,
    merge,
    observables,
    per_expert,
    save,
)

ENGINE = FakeEngine()
N_CTX = 16
SOURCE = SourceRecord("owner/set", "code", revision="abc", split="train", samples=12, tokens=96, sha256="0" * 64)
PROVENANCE = Provenance("model", "corpus", N_CTX, N_CTX, "test", "0", (SOURCE,))
# A stream of chunks: the domain of each, and its number within the domain.
STREAM = [("code", 0), ("prose", 0), ("code", 1), ("code", 2), ("prose", 1), ("math", 0), ("code", 3), ("math", 1)]
CHUNKS = np.random.default_rng(3).integers(0, 128, (len(STREAM), N_CTX)).astype(np.int32)


def empty(domains: tuple[str, ...] = ("code", "prose", "math")) -> DomainStatistics:
    return DomainStatistics.empty([0, 1], [2, 2], 8, domains)


def routed(tokens: np.ndarray) -> list[RoutedBatch]:
    return ENGINE.route(tokens, observables=observables())


def observed(which: list[int]) -> DomainStatistics:
    """The chunks of the stream that `which` names."""
    statistics = empty()
    for index in which:
        statistics = statistics.observe(*STREAM[index], routed(CHUNKS[index]), N_CTX)
    return statistics


def close(a: ExpertStatistics, b: ExpertStatistics, rtol: float = 1e-13) -> bool:
    assert (a.n_tokens, a.n_chunks) == (b.n_tokens, b.n_chunks)
    return all(np.allclose(a.values[name], b.values[name], rtol=rtol, atol=0) for name in STATISTICS)


def equal(a: DomainStatistics, b: DomainStatistics, rtol: float = 1e-13) -> bool:
    pairs = [(a.halves[domain][half], b.halves[domain][half]) for domain in a.halves for half in (0, 1)]
    return a.domains == b.domains and all(close(x, y, rtol) for x, y in pairs)


def same_sums(a: ImportanceSums, b: ImportanceSums) -> bool:
    arrays = [sums.to_arrays() for sums in (a, b)]
    return arrays[0].keys() == arrays[1].keys() and all(
        np.array_equal(arrays[1][name], array) for name, array in arrays[0].items()
    )


WHOLE = observed(list(range(len(STREAM))))


@quick
@given(st.lists(st.integers(0, 2), min_size=len(STREAM), max_size=len(STREAM)))
def test_any_split_adds_up_to_the_whole(part_of: list[int]) -> None:
    parts = [observed([index for index, part in enumerate(part_of) if part == wanted]) for wanted in range(3)]
    assert equal(parts[0] + parts[1] + parts[2], WHOLE)


def test_halves_are_the_even_and_the_odd_chunks_of_a_domain() -> None:
    even = [index for index, (domain, number) in enumerate(STREAM) if domain == "code" and number % 2 == 0]
    alone = ExpertStatistics.empty([0, 1], [2, 2], 8)
    for index in even:
        alone = alone.observe(routed(CHUNKS[index]), N_CTX)
    assert close(WHOLE.halves["code"][0], alone, 0)
    assert [half.n_chunks for half in WHOLE.halves["code"]] == [2, 2]
    assert [half.n_chunks for half in WHOLE.halves["math"]] == [1, 1]
    assert close(WHOLE.half(0).of("code"), alone, 0)
    assert equal(WHOLE.half(0) + WHOLE.half(1), WHOLE, 0)


def test_a_domain_is_the_sum_of_its_halves_and_the_total_that_of_all() -> None:
    total = ExpertStatistics.empty([0, 1], [2, 2], 8)
    for domain, (even, odd) in WHOLE.halves.items():
        assert close(WHOLE.of(domain), even + odd, 0)
        total = total + even + odd
    assert close(WHOLE.total, total)
    assert (WHOLE.n_tokens, WHOLE.n_chunks) == (total.n_tokens, total.n_chunks) == (8 * N_CTX, 8)
    assert empty().total.n_tokens == 0


def test_domains_add_as_a_union_in_order() -> None:
    left, right = observed([0, 2]), observed([5])
    left = replace(left, halves={"code": left.halves["code"]})
    right = replace(right, halves={"math": right.halves["math"]})
    assert (left + right).domains == ("code", "math")
    assert (right + left).domains == ("math", "code")
    assert close((left + right).of("math"), right.of("math"), 0)
    with pytest.raises(InputError, match="no statistics of 'prose', only of code, math"):
        (left + right).of("prose")


def test_a_new_chunk_shares_all_other_domains() -> None:
    more = WHOLE.observe("code", 4, routed(CHUNKS[0]), N_CTX)
    assert more.halves["prose"] is WHOLE.halves["prose"]
    assert more.halves["code"][1] is WHOLE.halves["code"][1]
    assert WHOLE.of("code").n_chunks == 4, "a value never changes"


def test_statistics_of_different_models_do_not_add() -> None:
    with pytest.raises(MismatchError, match="different models"):
        empty() + DomainStatistics.empty([0], [2], 8)


def in_micro_batches(batches: list[RoutedBatch], size: int) -> list[RoutedBatch]:
    """As an engine gives them: all blocks of a micro-batch, then the next."""
    place = np.arange(N_CTX) // size
    return [whole.only(place == number) for number in range(place[-1] + 1) for whole in batches]


@quick
@given(st.lists(st.booleans(), min_size=N_CTX, max_size=N_CTX), st.sampled_from([1, 3, 7, N_CTX]))
def test_only_counted_tokens_are_folded(flags: list[bool], n_ubatch: int) -> None:
    counted = np.array(flags)
    batches = in_micro_batches(routed(CHUNKS[0]), n_ubatch)
    masked = empty().observe("code", 0, batches, N_CTX, counted)
    alone = empty().observe("code", 0, routed(CHUNKS[0][counted]), int(counted.sum()))
    assert equal(masked, alone)
    assert masked.n_tokens == sum(flags)
    masked.check()


def test_a_chunk_with_other_tokens_than_its_mask_is_noticed() -> None:
    batches = routed(CHUNKS[0])
    with pytest.raises(MismatchError, match="routed 16 tokens or more of a chunk of 15"):
        empty().observe("code", 0, batches, N_CTX - 1, np.ones(N_CTX - 1, bool))
    with pytest.raises(MismatchError, match="counted 30 routed tokens"):
        empty().observe("code", 0, routed(CHUNKS[0][1:]), N_CTX, np.ones(N_CTX, bool)).check()


def test_a_file_gives_back_every_bit(tmp_path: Path) -> None:
    sums = ImportanceSums()
    ENGINE.route(CHUNKS[0], sums)
    save(tmp_path / "s.npz", WHOLE, PROVENANCE, sums, "digest")
    again, provenance = load(tmp_path / "s.npz")
    assert provenance == PROVENANCE
    assert equal(again, WHOLE, 0)
    assert replace(again, halves={}) == replace(WHOLE, halves={})
    stored = Stored.open(tmp_path / "s.npz")
    assert (stored.importance, stored.digest, stored.n_chunks) == (Importance(output=False), "digest", 8)
    assert same_sums(stored.importance_sums(), sums)
    assert [path.name for path in tmp_path.iterdir()] == ["s.npz"]
    with np.load(tmp_path / "s.npz") as archive:
        assert archive["sum_gf"].shape == (3, 2, 2, 8)


def test_statistics_of_nothing_are_a_file_too(tmp_path: Path) -> None:
    save(tmp_path / "s.npz", empty(()), PROVENANCE)
    assert load(tmp_path / "s.npz")[0].domains == ()


def test_a_file_of_the_first_schema_is_one_domain(tmp_path: Path) -> None:
    total = WHOLE.total
    header = {
        "schema": "ggufreap.statistics/1",
        "provenance": {
            "model": "m",
            "corpus": "c",
            "n_ctx": 16,
            "n_ubatch": 16,
            "source": "text.txt",
            "version": "0.1.0",
        },
        "blocks": [0, 1],
        "n_used": [2, 2],
        "n_expert": 8,
        "n_tokens": total.n_tokens,
        "n_chunks": total.n_chunks,
    }
    np.savez(tmp_path / "old.npz", header=np.array(json.dumps(header)), **total.values)
    statistics, provenance = load(tmp_path / "old.npz")
    assert statistics.domains == ("text",)
    assert close(statistics.halves["text"][0], total, 0)
    assert statistics.halves["text"][1].n_tokens == 0
    assert provenance == Provenance("m", "c", 16, 16, "text.txt", "0.1.0", (), "1/1", "all")
    statistics.check()


def test_a_file_of_another_schema_or_shape_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    save(path, WHOLE, PROVENANCE)
    with np.load(path) as archive:
        arrays = dict(archive)
    header = json.loads(str(arrays["header"]))
    np.savez(path, **arrays | {"header": np.array(json.dumps(header | {"schema": "ggufreap.statistics/9"}))})
    with pytest.raises(InputError, match=r"schema 'ggufreap\.statistics/9', this version reads"):
        load(path)
    np.savez(path, **arrays | {"max_f": arrays["max_f"][:2]})
    with pytest.raises(InputError, match=r"max_f has shape \(2, 2, 2, 8\), the rest says \(3, 2, 2, 8\)"):
        load(path)


@pytest.mark.parametrize("name", ["model", "corpus", "shard", "n_ctx", "n_ubatch", "count"])
def test_what_makes_other_sums_is_a_difference(name: str) -> None:
    assert PROVENANCE.differences(replace(PROVENANCE, **{name: "other"})) == [name]


def test_what_only_informs_is_no_difference() -> None:
    assert PROVENANCE.differences(replace(PROVENANCE, source="other", version="9", sources=())) == []


def saved(folder: Path, name: str, which: list[int], **provenance: object) -> Path:
    save(folder / name, observed(which), replace(PROVENANCE, **provenance))
    return folder / name


def shards(folder: Path, n_shards: int) -> list[Path]:
    """Chunk k of the stream belongs to shard k % n."""
    return [
        saved(folder, f"{i}.npz", list(range(i, len(STREAM), n_shards)), shard=f"{i + 1}/{n_shards}")
        for i in range(n_shards)
    ]


@pytest.mark.parametrize("n_shards", [1, 2, 3, 8])
def test_merged_shards_are_the_single_run(tmp_path: Path, n_shards: int) -> None:
    merged, provenance, _ = merge(shards(tmp_path, n_shards)[::-1])[:3]
    assert equal(merged, WHOLE)
    merged.check()
    assert provenance.shard == "+".join(str(i + 1) for i in range(n_shards)) + f"/{n_shards}"
    assert provenance.corpus == "corpus"
    assert provenance.sources == (SOURCE,)


def test_merging_goes_on_with_what_was_merged(tmp_path: Path) -> None:
    one, two, three = shards(tmp_path, 3)
    save(tmp_path / "two.npz", *merge([one, three]))
    assert load(tmp_path / "two.npz")[1].missing == "2 of 3 shards of its text alone; merge it with the others"
    assert merge([one, two, three])[1].missing == ""
    merged, provenance, _ = merge([tmp_path / "two.npz", two])[:3]
    assert equal(merged, WHOLE)
    assert provenance.shard == "1+2+3/3"
    with pytest.raises(MismatchError, match="both hold shard 3/3"):
        merge([tmp_path / "two.npz", three])


def test_texts_merge_and_all_sources_are_named(tmp_path: Path) -> None:
    other = replace(SOURCE, name="more", domain="prose")
    first = saved(tmp_path, "a.npz", [0, 2])
    second = saved(tmp_path, "b.npz", [1, 4], corpus="other", source="more", sources=(other,), shard="2/4", version="1")
    merged, provenance, _ = merge([first, second])[:3]
    assert equal(merged, observed([0, 1, 2, 4]))
    assert (provenance.corpus, provenance.shard) == ("corpus,other", "1/1,2/4")
    assert (provenance.source, provenance.version) == ("test + more", "0 + 1")
    assert provenance.sources == (SOURCE, other)
    save(tmp_path / "both.npz", merged, provenance)
    with pytest.raises(MismatchError, match="both hold shard 2/4"):
        merge([tmp_path / "both.npz", second])


def test_the_same_shard_twice_is_refused(tmp_path: Path) -> None:
    one, _ = shards(tmp_path, 2)
    with pytest.raises(MismatchError, match="both hold shard 1/2 of the same corpus"):
        merge([one, one])


def test_other_cuts_of_one_corpus_are_refused(tmp_path: Path) -> None:
    whole = saved(tmp_path, "whole.npz", list(range(len(STREAM))))
    with pytest.raises(MismatchError, match=r"holds a shard of 2, .*whole\.npz one of 1 of one corpus"):
        merge([whole, *shards(tmp_path, 2)])


@pytest.mark.parametrize(("name", "value"), [("model", "m"), ("n_ctx", 8), ("n_ubatch", 8), ("count", "assistant")])
def test_sums_of_another_kind_are_refused(tmp_path: Path, name: str, value: object) -> None:
    one = saved(tmp_path, "a.npz", [0], shard="1/2")
    two = saved(tmp_path, "b.npz", [1], shard="2/2", **{name: value})
    with pytest.raises(MismatchError, match=rf"b\.npz has another {name} than .*a\.npz"):
        merge([one, two])


def test_nothing_to_merge_is_said() -> None:
    with pytest.raises(InputError, match="nothing to merge"):
        merge([])


# --- some blocks of a model ------------------------------------------------------------------------------------------


def of_blocks(blocks: list[int], which: list[int]) -> DomainStatistics:
    """What one pass that watches some blocks records of the chunks that `which` names."""
    engine = FakeEngine(blocks)
    statistics = DomainStatistics.empty(blocks, [2] * len(blocks), 8, ("code", "prose", "math"))
    for index in which:
        batches = engine.route(CHUNKS[index], observables=observables())
        statistics = statistics.observe(*STREAM[index], batches, N_CTX)
    return statistics


def sums_of(*weights: str) -> ImportanceSums:
    sums = ImportanceSums()
    for weight in weights:
        value = Sums(np.array([[len(weight)]], np.float32), np.array([1]))
        sums.add(ImportanceSums({weight: value}, {weight: weight}))
    return sums


ALL = list(range(len(STREAM)))


def saved_blocks(folder: Path, blocks: list[int], which: list[int] = ALL, **options: object) -> Path:
    path = folder / f"{'-'.join(map(str, blocks))}-{len(list(folder.iterdir()))}.npz"
    sums = sums_of(*(f"blk.{block}.ffn_up_exps.weight" for block in blocks))
    save(path, of_blocks(blocks, which), replace(PROVENANCE, **options), sums)
    return path


def test_blocks_that_were_observed_apart_make_the_whole(tmp_path: Path) -> None:
    paths = [saved_blocks(tmp_path, [1, 4]), saved_blocks(tmp_path, [0]), saved_blocks(tmp_path, [2, 3])]
    merged, provenance, sums = merge(paths)[:3]
    assert merged.blocks == (0, 1, 2, 3, 4)
    assert equal(merged, of_blocks([0, 1, 2, 3, 4], ALL), 0)
    merged.check()
    assert provenance == PROVENANCE
    assert sums
    assert set(sums.named()) == {f"blk.{block}.ffn_up_exps.weight" for block in range(5)}
    save(tmp_path / "all.npz", merged, provenance, sums)
    assert equal(load(tmp_path / "all.npz")[0], merged, 0)


def test_shards_and_blocks_merge_at_once(tmp_path: Path) -> None:
    paths = [
        saved_blocks(tmp_path, blocks, ALL[part::2], shard=f"{part + 1}/2")
        for blocks in ([0, 1], [2])
        for part in (0, 1)
    ]
    merged, provenance, sums = merge([paths[index] for index in (3, 0, 2, 1)])[:3]
    assert equal(merged, of_blocks([0, 1, 2], ALL))
    assert provenance.shard == "1+2/2"
    assert sums
    assert {name: found.counts.tolist() for name, found in sums.named().items()} == {
        f"blk.{block}.ffn_up_exps.weight": [2] for block in range(3)
    }


def test_blocks_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    first = saved_blocks(tmp_path, [0, 1])
    with pytest.raises(MismatchError, match=r"both hold block 1, beside different others; it would count twice"):
        merge([first, saved_blocks(tmp_path, [1, 2])])
    with pytest.raises(MismatchError, match=r"both hold shard 1/1 of the same corpus"):
        merge([first, saved_blocks(tmp_path, [2]), saved_blocks(tmp_path, [0, 1])])
    with pytest.raises(MismatchError, match=r"blocks 0, 1 saw shard 1/1, blocks 2 1/1 or another corpus"):
        merge([first, saved_blocks(tmp_path, [2], corpus="other")])
    with pytest.raises(MismatchError, match=r"blocks 0, 1 saw shard 1/1, blocks 2 1/2"):
        merge([first, saved_blocks(tmp_path, [2], ALL[::2], shard="1/2")])
    with pytest.raises(MismatchError, match=r"blocks 0, 1 were observed on 8 chunks, blocks 2 on 7 others"):
        merge([first, saved_blocks(tmp_path, [2], ALL[:-1])])
    again = tmp_path / "again.npz"
    save(again, of_blocks([2], ALL), PROVENANCE, sums_of("blk.0.ffn_up_exps.weight"))
    with pytest.raises(MismatchError, match=r"sums of blk.0.ffn_up_exps.weight were collected with either blocks"):
        merge([first, again])


def test_files_that_hold_other_statistics_are_not_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older = saved_blocks(tmp_path, [0], ALL[::2], shard="1/2")
    monkeypatch.setitem(STATISTICS, "sum_g2", per_expert(lambda batch: batch.weights**2, "sum of g²"))
    newer = saved_blocks(tmp_path, [0], ALL[1::2], shard="2/2")
    with pytest.raises(MismatchError, match=r"sum_g2: .* do not both hold that, in one version; calibrate again"):
        merge([older, newer])


def test_sums_that_not_every_file_holds_are_left_out_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with_sums = saved_blocks(tmp_path, [0], ALL[::2], shard="1/2")
    without = tmp_path / "without.npz"
    save(without, of_blocks([0], ALL[1::2]), replace(PROVENANCE, shard="2/2"))
    assert merge([with_sums, without]).sums is None
    assert f"no importance matrix is merged: {without} holds no importance sums" in caplog.text
    head = sums_of("blk.0.ffn_up_exps.weight", "output.weight")
    head.output = True
    save(without, of_blocks([0], ALL[1::2]), replace(PROVENANCE, shard="2/2"), head, own=True)
    merged = merge([with_sums, without]).sums
    assert merged
    assert set(merged.named()) == {"blk.0.ffn_up_exps.weight"}
    assert f"{without}: the sums of the output head are left out" in caplog.text


def test_a_checkpoint_of_the_second_schema_goes_on(tmp_path: Path) -> None:
    """Header without statistics, importance and digest; sums by their bare names, the digest as an array."""
    path, sums = tmp_path / "s.npz", sums_of("blk.0.ffn_up_exps.weight")
    save(path, WHOLE, PROVENANCE)
    with np.load(path) as archive:
        arrays = dict(archive)
    header = json.loads(str(arrays["header"])) | {"schema": "ggufreap.statistics/2"}
    for added in ("statistics", "importance", "digest"):
        del header[added]
    more = {**sums.to_arrays(), "chunks sha256": np.array("digest")}
    np.savez(path, **arrays | more | {"header": np.array(json.dumps(header))})
    stored = Stored.open(path)
    assert (stored.digest, stored.importance, stored.lacking) == ("digest", Importance(), [])
    assert same_sums(stored.importance_sums(), sums)
    assert equal(stored.domain_statistics(), WHOLE, 0)
    del arrays["sum_f"]
    np.savez(path, **arrays | {"header": np.array(json.dumps(header))})
    older, _ = load(path)
    assert older.total.values["sum_gf"].any()
    with pytest.raises(InputError, match=r"hold no sum_f, only count, sum_g, .*, gram; calibrate again"):
        older.total.values["sum_f"]
    with pytest.raises(InputError, match="holds no importance sums; calibrate again without --no-imatrix"):
        Stored.open(path).importance_sums()
