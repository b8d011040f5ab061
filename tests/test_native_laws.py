"""The laws in llama.cpp itself, on a tiny random model of every architecture that it can route.

Masking: the pruned file computes what the original computes with the dropped experts masked. Permutation: the order of
the experts does not matter. Both break if one per-expert tensor is forgotten.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
import tiny_llama
import tiny_native
from gguf import GGMLQuantizationType as Kind

from ggufreap.architecture.catalog import ARCHITECTURES
from ggufreap.architecture.layout import MoeLayout, bind
from ggufreap.container import GgufFile, open_gguf
from ggufreap.engine.protocol import Keep
from ggufreap.engine.session import LlamaSession
from ggufreap.errors import UnsupportedModel
from ggufreap.model import Model
from ggufreap.observation import ExpertStatistics, observables
from ggufreap.options.engine import EngineSettings
from ggufreap.planning import ModelIdentity, PruningPlan, make_plan
from ggufreap.rewriting import execute, lower
from ggufreap.saliency import METHODS

pytestmark = pytest.mark.native

NAMES = [name for name in (*tiny_native.NATIVE, *tiny_native.VARIANTS) if name not in tiny_native.REFUSED]
TOKENS = np.random.default_rng(5).integers(0, tiny_native.N_VOCAB, 64).astype(np.int32)
# One thread and no half precision in attention: what is left is the last bit of a sum.
SETTINGS = EngineSettings(n_ctx=64, n_ubatch=64, n_threads=1, n_gpu_layers=0, exact=True)
# GELU is looked up in a half-precision table, which turns the last bit of its input into 1e-3 of its output.
ROUGH = {"nomic-bert-moe": 1e-8, "gemma4": 1e-7, "gemma4-ple": 1e-7}

Build = Callable[..., GgufFile]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def make(name: str, **options: object) -> GgufFile:
        return open_gguf(tiny_native.build(name, tmp_path / f"{name}.gguf", **options))

    return make


def logits(file: GgufFile, keep: Keep | None = None) -> np.ndarray:
    with LlamaSession(file.path, bind(file).nodes, SETTINGS) as session:
        return session.logits(TOKENS, keep).astype(np.float64)


def squared_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(((found - expected) ** 2).sum() / (expected**2).sum())


def calibrated(file: GgufFile, layout: MoeLayout) -> ExpertStatistics:
    used = [block.n_used for block in layout.trunk]
    statistics = ExpertStatistics.empty([block.index for block in layout.trunk], used, layout.n_expert)
    with LlamaSession(file.path, layout.nodes, replace(SETTINGS, n_ubatch=24)) as session:
        statistics = statistics.observe(session.route(TOKENS, observables=observables()), len(TOKENS))
    statistics.check()
    return statistics


def reap_plan(file: GgufFile, layout: MoeLayout, **target: object) -> PruningPlan:
    identity = ModelIdentity(file.fingerprint, layout.architecture.name, "toy")
    scores = METHODS["reap"].score(calibrated(file, layout))
    return make_plan(layout, identity, scores, method="reap", **{"ratio": "0.25", **target})


def pruned(file: GgufFile, plan: PruningPlan) -> GgufFile:
    out = file.path.with_name(f"pruned-{plan.sha256[:12]}.gguf")
    execute(lower(Model(file, bind(file)), plan, out))
    return open_gguf(out)


def check_masking(file: GgufFile, plan: PruningPlan, tolerance: float = 1e-9) -> None:
    masked = logits(file, {block.index: plan.keep[block.index] for block in bind(file).trunk})
    after = logits(pruned(file, plan))
    assert np.isfinite(after).all()
    assert squared_error(after, masked) <= tolerance
    assert squared_error(masked, logits(file)) > 1e-5, "the plan must matter, or nothing was shown"


@pytest.mark.parametrize("name", NAMES)
def test_masking_and_permutation(build: Build, name: str) -> None:
    file = build(name)
    layout = bind(file)
    plan = reap_plan(file, layout)
    check_masking(file, plan, ROUGH.get(name, 1e-9))
    everything = reap_plan(file, layout, ratio=None, n_keep=layout.n_expert)
    order = np.random.default_rng(1).permuted(np.arange(layout.n_expert).reshape(layout.n_group, -1), axis=1).ravel()
    turned = replace(everything, keep=dict.fromkeys(everything.keep, tuple(order.tolist())))
    assert squared_error(logits(pruned(file, turned)), logits(file)) <= ROUGH.get(name, 1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_the_tables_name_every_tensor_that_llama_cpp_sizes_by_experts(build: Build, name: str, tmp_path: Path) -> None:
    assert set(bind(build(name)).per_expert) == tiny_native.expert_tensors(name, tmp_path / "header.gguf")


@pytest.mark.parametrize("name", tiny_native.FUSABLE)
def test_fused_gate_and_up(build: Build, name: str) -> None:
    file = build(name, fused=True)
    assert any("ffn_gate_up_exps" in tensor for tensor in bind(file).per_expert)
    check_masking(file, reap_plan(file, bind(file)), ROUGH.get(name, 1e-9))


@pytest.mark.parametrize("name", ["deepseek2", "minimax-m2", "glm4moe", "dots1"])
@pytest.mark.parametrize("gating", [1, 2])
def test_a_selection_bias_with_either_gating(build: Build, name: str, gating: int) -> None:
    file = build(name, overrides={"expert_gating_func": gating})
    check_masking(file, reap_plan(file, bind(file)))


@pytest.mark.parametrize("name", tiny_native.GROUPED)
def test_groups(build: Build, name: str) -> None:
    file = build(name, groups=4, groups_used=2)
    layout = bind(file)
    plan = reap_plan(file, layout)
    assert [sum(expert // 4 == group for expert in plan.keep[layout.trunk[0].index]) for group in range(4)] == [3] * 4
    check_masking(file, plan)


@pytest.mark.parametrize("name", tiny_native.MTP)
def test_mtp_blocks_are_mirrored_or_dropped(build: Build, name: str) -> None:
    file = build(name, mtp=True)
    layout = bind(file)
    assert any(block.mtp for block in layout.blocks)
    plan = reap_plan(file, layout)
    check_masking(file, plan)
    mirrored = pruned(file, plan)
    assert np.isfinite(tiny_llama.outputs(mirrored.path, TOKENS[:16].tolist(), load_mtp=True)).all()
    expected = logits(mirrored)
    if layout.architecture.mtp_drop_refuse:
        with pytest.raises(UnsupportedModel, match="use --mtp mirror"):
            pruned(file, reap_plan(file, layout, mtp="drop"))
    else:
        assert squared_error(logits(pruned(file, reap_plan(file, layout, mtp="drop"))), expected) == 0


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.Q8_0, Kind.Q4_K, Kind.IQ4_XS, Kind.MXFP4])
def test_every_type_of_weights(tmp_path: Path, kind: Kind) -> None:
    file = open_gguf(tiny_gguf.qwen3moe(tmp_path / "m.gguf", types=kind))
    # Products with quantised weights round their inputs to 8 bits, and now and then the other way.
    check_masking(file, reap_plan(file, bind(file)), 1e-9 if kind is Kind.F32 else 1e-5)


@pytest.mark.parametrize("name", sorted(tiny_native.REFUSED))
def test_what_cannot_be_pruned_is_refused_with_a_reason(build: Build, name: str) -> None:
    with pytest.raises(UnsupportedModel, match=name.removesuffix("-hash")) as caught:
        bind(build(name))
    assert len(str(caught.value)) > 100


def test_every_architecture_of_the_tables_is_built_here_or_cannot_be() -> None:
    built = {tiny_native.VARIANTS.get(name, (name,))[0] for name in (*NAMES, *tiny_native.REFUSED)}
    assert built | set(tiny_native.NOT_BUILDABLE) == set(ARCHITECTURES)
