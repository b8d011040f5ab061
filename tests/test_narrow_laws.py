"""The law of narrowing in llama.cpp itself, on a tiny random model of every architecture whose experts can be narrower.

A file of narrower experts, whose other columns of down stay as they are, computes what the original computes with the
missing neurons masked: zero where down reads them. So does one in which other experts are gone as well, and one from
which only neurons are gone that put out nothing computes what the original does.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
import tiny_llama
import tiny_native
from gguf import GGMLQuantizationType as Kind
from test_native_laws import ROUGH, SETTINGS, TOKENS, squared_error
from test_width import REFUSED
from tiny_narrow import narrowed_logits, random_narrowing, random_plan, with_columns

from ggufreap.architecture.layout import MoeLayout, bind
from ggufreap.architecture.width import expert_width
from ggufreap.container import GgufFile, open_gguf
from ggufreap.engine.neuron_tap import FewerNeurons
from ggufreap.engine.session import LlamaSession
from ggufreap.model import Model
from ggufreap.narrowing import Narrowing
from ggufreap.planning import PruningPlan
from ggufreap.rewriting import Narrow, execute, lower

pytestmark = pytest.mark.native

NAMES = [
    name
    for name in (*tiny_native.NATIVE, *tiny_native.VARIANTS)
    if name not in tiny_native.REFUSED and name not in REFUSED
]
WIDTH = 24  # of 32: shared experts are filled up to another multiple

Build = Callable[..., GgufFile]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def make(name: str, **options: object) -> GgufFile:
        return open_gguf(tiny_native.build(name, tmp_path / f"{name}.gguf", **options))

    return make


def logits(file: GgufFile, plan: PruningPlan | None = None, narrowing: Narrowing | None = None) -> np.ndarray:
    """Of the file as it is, or with the experts outside `plan` and the neurons outside `narrowing` masked."""
    layout = bind(file)
    keep = {block.index: plan.keep[block.index] for block in layout.trunk} if plan else None
    with LlamaSession(file.path, layout.nodes, SETTINGS) as session:
        if narrowing is None or keep is None:
            return session.logits(TOKENS, keep).astype(np.float64)
        fewer = {
            block: FewerNeurons(kept, narrowing.neurons[block], narrowing.downs.get(block))
            for block, kept in keep.items()
        }
        return narrowed_logits(session, TOKENS, fewer).astype(np.float64)


def narrowed(file: GgufFile, plan: PruningPlan, narrowing: Narrowing) -> GgufFile:
    out = file.path.with_name(f"narrow-{narrowing.sha256[:12]}.gguf")
    script = lower(Model(file, bind(file)), plan, out, narrow=Narrow(narrowing))
    execute(script)
    assert script.nbytes == out.stat().st_size, "prediction"
    return open_gguf(out)


def check_law(file: GgufFile, plan: PruningPlan, narrowing: Narrowing, tolerance: float = 1e-9) -> None:
    masked = logits(file, plan, narrowing)
    after = logits(narrowed(file, plan, narrowing))
    assert np.isfinite(after).all()
    assert squared_error(after, masked) <= tolerance
    assert squared_error(masked, logits(file, plan)) > 1e-5, "the neurons must matter, or nothing was shown"


def both(
    file: GgufFile, n_keep: int, width: int = WIDTH, **options: object
) -> tuple[MoeLayout, PruningPlan, Narrowing]:
    layout = bind(file)
    plan = random_plan(file, layout, n_keep, **options)
    return layout, plan, random_narrowing(file, layout, plan, width)


@pytest.mark.parametrize("name", NAMES)
def test_masking(build: Build, name: str) -> None:
    file = build(name)
    _, plan, narrowing = both(file, 16)
    check_law(file, plan, narrowing, ROUGH.get(name, 1e-9))


@pytest.mark.parametrize("name", NAMES)
def test_masking_of_experts_and_neurons(build: Build, name: str) -> None:
    file = build(name)
    _, plan, narrowing = both(file, 12)
    check_law(file, plan, narrowing, ROUGH.get(name, 1e-9))


@pytest.mark.parametrize("name", tiny_native.FUSABLE)
def test_fused_gate_and_up(build: Build, name: str) -> None:
    file = build(name, fused=True)
    _, plan, narrowing = both(file, 12)
    check_law(file, plan, narrowing, ROUGH.get(name, 1e-9))


@pytest.mark.parametrize("name", [name for name in tiny_native.MTP if name not in REFUSED])
def test_mtp_blocks(build: Build, name: str) -> None:
    file = build(name, mtp=True)
    _, plan, narrowing = both(file, 12)
    check_law(file, plan, narrowing)
    mirrored = narrowed(file, plan, narrowing)
    assert np.isfinite(tiny_llama.outputs(mirrored.path, TOKENS[:16].tolist(), load_mtp=True)).all()
    if not bind(file).architecture.mtp_drop_refuse:
        _, plan, narrowing = both(file, 12, mtp="drop")
        check_law(file, plan, narrowing)


@pytest.mark.parametrize("name", ["deepseek2", "qwen3moe"])
def test_groups(build: Build, name: str) -> None:
    file = build(name, groups=4, groups_used=2)
    _, plan, narrowing = both(file, 12)
    check_law(file, plan, narrowing)


# Encoding down a second time rounds its weights once more: squared, and relative to them.
TYPES = {
    Kind.F32: 1e-9,
    Kind.F16: 1e-5,
    Kind.BF16: 1e-4,
    Kind.Q8_0: 1e-3,
    Kind.Q4_K: 0.05,
    Kind.IQ4_XS: 0.05,
    Kind.MXFP4: 0.05,
}


@pytest.mark.parametrize("width", [256, 192])
@pytest.mark.parametrize("kind", TYPES)
def test_every_type_of_weights(tmp_path: Path, kind: Kind, width: int) -> None:
    file = open_gguf(tiny_gguf.qwen3moe(tmp_path / "m.gguf", types=kind, n_ff=512, n_expert=8, n_used=2))
    _, plan, narrowing = both(file, 6, width)
    check_law(file, plan, narrowing, TYPES[kind])


@pytest.mark.parametrize("name", ["qwen3moe", "gpt-oss", "deepseek2", "nemotron_h_moe-latent", "grok"])
def test_other_columns_of_down_are_what_the_file_computes_with(build: Build, name: str) -> None:
    file = build(name)
    _, plan, narrowing = both(file, 12)
    check_law(file, plan, with_columns(file, plan, narrowing), 1e-8)


def dead_neurons(model: tiny_gguf.Model) -> None:
    """Neurons 3 to 10 of every expert put out nothing."""
    for name, (array, kind) in model.tensors.items():
        if "ffn_gate_exps" in name or "ffn_up_exps" in name:
            array[:, 3:11] = 0
            model.tensors[name] = (array, kind)


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16])
def test_without_dead_neurons_nothing_changes(tmp_path: Path, kind: Kind) -> None:
    path = tiny_gguf.qwen3moe(tmp_path / "m.gguf", n_embd=64, n_ff=32, types=kind, changes=[dead_neurons])
    file = open_gguf(path)
    layout, plan, _ = both(file, 16)
    ids = np.delete(np.arange(32, dtype=np.int32), slice(3, 11))
    narrowing = Narrowing(32, 24, {block.index: np.tile(ids, (16, 1)) for block in layout.blocks})
    found, expected = logits(narrowed(file, plan, narrowing)), logits(file)
    assert squared_error(found, expected) <= 1e-12
    alive = Narrowing(32, 24, {block.index: np.tile(np.arange(24, dtype=np.int32), (16, 1)) for block in layout.blocks})
    assert squared_error(logits(narrowed(file, plan, alive)), expected) > 1e-5


REFERENCE = """
arctic cohere2moe deepseek2 deepseek2-groups4 glm4moe gpt-oss granitemoe grok lfm2moe llama minimax-m2 olmoe qwen35moe
qwen3moe smallthinker
"""


@pytest.mark.parametrize("name", REFERENCE.split())
def test_the_reference_models(shared: Path, name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.gguf"
    path.symlink_to(shared / "archs" / path.name)
    file = open_gguf(path)
    layout = bind(file)
    width = expert_width(file, layout)
    plan = random_plan(file, layout, layout.n_expert * 3 // 4)
    check_law(file, plan, random_narrowing(file, layout, plan, width * 3 // 4), 5e-3)  # in Q8_0
