"""The laws of rewriting, over every layout of experts, without llama.cpp.

Identity, selection, composition and prediction; and what the file says of itself.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
import tiny_layouts
from gguf import GGMLQuantizationType as Kind

from ggufreap.architecture.layout import MoeLayout, bind
from ggufreap.container import GgufFile, open_gguf
from ggufreap.errors import InputError, OutputError, UnsupportedModel
from ggufreap.model import Model
from ggufreap.planning import ModelIdentity, PruningPlan, make_plan
from ggufreap.rewriting import execute, lower, parse_size
from ggufreap.rewriting.metadata import size_label

TYPES = [Kind.F32, Kind.F16, Kind.Q8_0, Kind.Q4_K, Kind.IQ4_XS, Kind.MXFP4]
LAYOUTS = {
    "plain": [],
    "fused": [tiny_layouts.fused],
    "scaled": [tiny_layouts.scaled],
    "router scaled": [tiny_layouts.router_scaled],
    "biased": [tiny_layouts.biased],
    "selection bias": [tiny_layouts.selection_biased],
    "all at once": [
        tiny_layouts.fused,
        tiny_layouts.router_scaled,
        tiny_layouts.selection_biased,
    ],
    "mtp": [tiny_layouts.with_mtp],
}
# What a pruned file says about itself; everything else is the source's.
PROVENANCE = ("general.name", "general.finetune", "general.tags", "general.base_model.", "ggufreap.")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, GgufFile]:
    folder = tmp_path_factory.mktemp("models")
    sizes = {"n_expert": 16, "n_used": 4, "n_embd": 256, "n_ff": 256}
    built = {kind.name: tiny_gguf.qwen3moe(folder / f"{kind.name}.gguf", types=kind, **sizes) for kind in TYPES}
    small = {**sizes, "n_embd": 64, "n_ff": 32, "types": Kind.Q8_0}
    for name, changes in LAYOUTS.items():
        built[name] = tiny_gguf.qwen3moe(folder / f"{name}.gguf", changes=changes, **small)
    built["split"] = tiny_gguf.qwen3moe(folder / "split.gguf", per_shard=9, **small)
    return {name: open_gguf(path) for name, path in built.items()}


ALL = [*(kind.name for kind in TYPES), *LAYOUTS, "split"]


def identity(file: GgufFile) -> ModelIdentity:
    return ModelIdentity(file.fingerprint, file.get("general.architecture"), "toy")


def random_plan(file: GgufFile, layout: MoeLayout, keep: int, seed: int = 0, mtp: str = "mirror") -> PruningPlan:
    scores = np.random.default_rng(seed).random((len(layout.trunk), layout.n_expert))
    return make_plan(layout, identity(file), scores, method="random", n_keep=keep, mtp=mtp)


def pruned(file: GgufFile, plan: PruningPlan, out: Path, **options: object) -> GgufFile:
    script = lower(Model(file, bind(file)), plan, out, **options)
    execute(script)
    assert script.nbytes == sum(written.path.stat().st_size for written in script.files), "prediction"
    return open_gguf(script.files[0].path)


def data(file: GgufFile, name: str) -> np.ndarray:
    record = file.by_name[name]
    return file.map(record).reshape(record.shape[0], -1)


@pytest.mark.parametrize("name", ALL)
def test_identity_keeping_all_changes_nothing(models: dict[str, GgufFile], name: str, tmp_path: Path) -> None:
    file = models[name]
    result = pruned(file, random_plan(file, bind(file), 16), tmp_path / "all.gguf")
    kept = {key: entry.raw for key, entry in file.metadata.items() if not key.startswith((*PROVENANCE, "split."))}
    found = {key: entry.raw for key, entry in result.metadata.items() if not key.startswith(PROVENANCE)}
    assert list(found) == list(kept)
    assert found == kept
    assert [tensor.name for tensor in result.tensors] == [tensor.name for tensor in file.tensors]
    for tensor in result.tensors:
        assert np.array_equal(data(result, tensor.name), data(file, tensor.name)), tensor.name


@pytest.mark.parametrize("name", ALL)
def test_selection_every_kept_slab_is_the_source_s(models: dict[str, GgufFile], name: str, tmp_path: Path) -> None:
    file = models[name]
    layout = bind(file)
    plan = random_plan(file, layout, 11)
    result = pruned(file, plan, tmp_path / "p.gguf")
    for tensor in result.tensors:
        block = layout.per_expert.get(tensor.name)
        before = data(file, tensor.name)
        expected = before if block is None else before[list(plan.keep[block])]
        assert np.array_equal(data(result, tensor.name), expected), tensor.name
    assert bind(result).n_expert == 11
    assert set(layout.per_expert) == set(bind(result).per_expert)


@pytest.mark.parametrize("name", ALL)
def test_composition_two_cuts_equal_one(models: dict[str, GgufFile], name: str, tmp_path: Path) -> None:
    file = models[name]
    layout = bind(file)
    first = random_plan(file, layout, 12, seed=1)
    middle = pruned(file, first, tmp_path / "first.gguf")
    second = random_plan(middle, bind(middle), 7, seed=2)
    twice = pruned(middle, second, tmp_path / "second.gguf")
    both = {block: tuple(first.keep[block][expert] for expert in kept) for block, kept in second.keep.items()}
    once = pruned(file, replace(second, model=identity(file), keep=both), tmp_path / "once.gguf")
    for tensor in once.tensors:
        assert np.array_equal(data(twice, tensor.name), data(once, tensor.name)), tensor.name


def test_an_order_is_written_as_the_plan_gives_it(models: dict[str, GgufFile], tmp_path: Path) -> None:
    file = models["biased"]
    plan = random_plan(file, bind(file), 16)
    turned = replace(plan, keep={block: tuple(reversed(kept)) for block, kept in plan.keep.items()})
    result = pruned(file, turned, tmp_path / "turned.gguf")
    for name in bind(file).per_expert:
        assert np.array_equal(data(result, name), data(file, name)[::-1]), name


def test_a_split_set_keeps_or_changes_its_shards(models: dict[str, GgufFile], tmp_path: Path) -> None:
    file = models["split"]
    plan = random_plan(file, bind(file), 8)
    one = pruned(file, plan, tmp_path / "one.gguf")
    same = pruned(file, plan, tmp_path / "same.gguf", keep_split=True)
    small = pruned(file, plan, tmp_path / "small.gguf", split_max_size=50_000)
    assert len(one.headers) == 1
    assert not any(key.startswith("split.") for key in one.metadata)
    assert [len(header.tensors) for header in same.headers] == [len(header.tensors) for header in file.headers]
    assert len(small.headers) > 2
    for header in small.headers:
        assert len(header.tensors) == 1 or sum(tensor.nbytes for tensor in header.tensors) <= 50_000
    for tensor in one.tensors:
        for other in (same, small):
            assert np.array_equal(data(one, tensor.name), data(other, tensor.name))


@pytest.mark.parametrize(("text", "nbytes"), [("300M", 300_000_000), ("2G", 2_000_000_000)])
def test_sizes_are_read_as_gguf_split_reads_them(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "2", "2T", "-1G", "0M", "1.5G"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="such as 2G"):
        parse_size(text)


def test_mtp_blocks_are_sliced_as_the_last_trunk_block(models: dict[str, GgufFile], tmp_path: Path) -> None:
    file = models["mtp"]
    plan = random_plan(file, bind(file), 8)
    result = pruned(file, plan, tmp_path / "p.gguf")
    last = bind(file).blocks[-1]
    assert last.mtp
    for name in last.per_expert:
        assert np.array_equal(data(result, name), data(file, name)[list(plan.keep[bind(file).trunk[-1].index])])


def test_mtp_blocks_can_be_left_out(models: dict[str, GgufFile], tmp_path: Path) -> None:
    file = models["mtp"]
    layout = bind(file)
    result = pruned(file, random_plan(file, layout, 8, mtp="drop"), tmp_path / "p.gguf")
    name = layout.architecture.name
    assert result.get(f"{name}.block_count") == layout.n_trunk == layout.n_block - 1
    assert result.get(f"{name}.nextn_predict_layers") == 0
    assert not any(tensor.name.startswith(f"blk.{layout.n_trunk}.") for tensor in result.tensors)
    assert [block.index for block in bind(result).blocks] == [block.index for block in layout.trunk]


# What the file says of itself.


def test_the_metadata_is_honest(models: dict[str, GgufFile], tmp_path: Path) -> None:
    file = models["plain"]
    plan = replace(random_plan(file, bind(file), 12), method="reap", corpus="c" * 64)
    result = pruned(file, plan, tmp_path / "p.gguf")
    old = file.get("general.name")
    assert result.get("qwen3moe.expert_count") == 12
    assert result.metadata["qwen3moe.expert_count"].type == file.metadata["qwen3moe.expert_count"].type
    assert result.get("general.name") == f"{old} REAP-0.25"
    assert result.get("general.finetune").endswith("REAP-0.25")
    assert result.get("general.size_label").startswith("12x")
    assert result.get("general.base_model.count") == 1
    assert result.get("general.base_model.0.name") == old
    assert {"pruned", "reap"} <= set(result.get("general.tags"))
    assert result.get("ggufreap.method") == "reap"
    assert result.get("ggufreap.ratio") == "0.25"
    assert result.get("ggufreap.plan.sha256") == plan.sha256
    assert result.get("ggufreap.corpus.sha256") == plan.corpus
    assert result.get("ggufreap.source.fingerprint") == file.fingerprint
    assert result.get("ggufreap.source.expert_count") == 16
    assert result.get("tokenizer.chat_template") == file.get("tokenizer.chat_template")


@pytest.mark.parametrize(
    ("old", "new"),
    [("16x1.8B", "12x1.8B"), ("30B-A3B", "23B-A3B"), ("30B", "23B"), ("8x22B", "23B"), ("A3B", "23B")],
)
def test_size_labels(old: str, new: str) -> None:
    assert size_label(old, 16, 12, 23_000_000_000) == new


def test_parameter_count_is_what_is_left(tmp_path: Path) -> None:
    path = tiny_gguf.qwen3moe(
        tmp_path / "m.gguf", n_embd=64, n_ff=32, metadata={"general.parameter_count": np.uint64(123)}
    )
    file = open_gguf(path)
    result = pruned(file, random_plan(file, bind(file), 8), tmp_path / "p.gguf")
    assert result.get("general.parameter_count") == sum(tensor.n_elements for tensor in result.tensors)
    assert result.metadata["general.parameter_count"].type == file.metadata["general.parameter_count"].type


def test_the_source_is_never_the_target(models: dict[str, GgufFile]) -> None:
    file = models["plain"]
    before = file.path.read_bytes()
    with pytest.raises(OutputError, match="is the input itself"):
        pruned(file, random_plan(file, bind(file), 8), file.path)
    assert file.path.read_bytes() == before


def test_an_array_that_may_count_blocks_stops_dropping_them(tmp_path: Path) -> None:
    path = tiny_gguf.qwen3moe(tmp_path / "m.gguf", n_embd=64, n_ff=32, changes=[tiny_layouts.with_mtp])
    name = open_gguf(path).get("general.architecture")
    unknown = {f"{name}.some_pattern": [1, 2, 3]}
    path = tiny_gguf.qwen3moe(
        tmp_path / "m.gguf", n_embd=64, n_ff=32, changes=[tiny_layouts.with_mtp], metadata=unknown
    )
    file = open_gguf(path)
    assert bind(file).n_block == 3
    with pytest.raises(UnsupportedModel, match="use --mtp mirror"):
        pruned(file, random_plan(file, bind(file), 8, mtp="drop"), tmp_path / "p.gguf")
