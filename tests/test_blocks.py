"""Block by block on equal inputs: right files hold and wrong ones are named, in every architecture, at real depth."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
import tiny_layouts
import tiny_native
from gguf import GGMLQuantizationType as Kind

from ggufreap import verbs
from ggufreap.architecture.layout import bind
from ggufreap.container import open_gguf
from ggufreap.engine.block_tap import Recorded
from ggufreap.engine.session import EngineSettings, LlamaSession
from ggufreap.errors import EngineError
from ggufreap.planning import PruningPlan
from ggufreap.verification.blocks import BlockComparison, compare_blocks, tolerance
from ggufreap.verification.proof import tolerances

SETTINGS = EngineSettings(n_ctx=64, n_ubatch=64, n_threads=1, n_gpu_layers=0, exact=True)
REFUSED = {"grovemoe", "dflash", "deepseek4-hash"}
NAMES = [name for name in (*tiny_native.NATIVE, *tiny_native.VARIANTS) if name not in REFUSED]
DEEP = 40
KINDS = (Kind.F32, Kind.F16, Kind.Q8_0, Kind.Q4_K, Kind.IQ4_XS)


def tokens(n_vocab: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, n_vocab, 64).astype(np.int32)


def masked(path: Path, plan: PruningPlan, ids: np.ndarray) -> Recorded:
    layout = bind(open_gguf(path))
    with LlamaSession(path, layout.nodes, SETTINGS) as session:
        return session.blocks(ids, {block.index: plan.keep[block.index] for block in layout.trunk})[1]


def compared(source: Path, pruned: Path, expected: Recorded, ids: np.ndarray) -> BlockComparison:
    file, layout = open_gguf(source), bind(open_gguf(pruned))
    with LlamaSession(pruned, layout.nodes, SETTINGS) as session:
        found = session.blocks(ids, None, expected)[1]
    assert set(found) == set(expected)
    return compare_blocks(layout, expected, found, tolerances(file))


@pytest.mark.native
@pytest.mark.parametrize("name", NAMES)
def test_every_architecture_holds_and_a_neighbour_s_router_row_does_not(name: str, tmp_path: Path) -> None:
    source, pruned = tiny_native.build(name, tmp_path / "m.gguf"), tmp_path / "pruned.gguf"
    plan, ids = verbs.plan(source, method="random", keep=12), tokens(tiny_native.N_VOCAB)
    verbs.apply(source, plan, pruned)
    expected = masked(source, plan, ids)
    right = compared(source, pruned, expected, ids)
    assert right.differences == ()
    assert right.worst < 1e-5
    block = bind(open_gguf(source)).trunk[-1].index
    copy_row(pruned, f"blk.{block}.ffn_gate_inp.weight", 3, 4)
    assert {difference.block for difference in compared(source, pruned, expected, ids).differences} == {block}


# Forty blocks.


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Kind], Path]:
    folder, made = tmp_path_factory.mktemp("deep"), dict[Kind, Path]()

    def model(kind: Kind) -> Path:
        if kind not in made:
            changes = [tiny_layouts.biased, tiny_layouts.selection_biased]
            made[kind] = tiny_gguf.qwen3moe(folder / f"{kind.name}.gguf", n_block=DEEP, types=kind)
        return made[kind]

    return model
