"""Plans and narrowings that are drawn, for files of any layout."""

from dataclasses import replace

import numpy as np

from ggufreap.architecture.layout import MoeLayout
from ggufreap.container import GgufFile
from ggufreap.engine.neuron_mask import Fewer
from ggufreap.engine.protocol import Tokens
from ggufreap.engine.session import LlamaSession
from ggufreap.narrowing import Narrowing
from ggufreap.planning import ModelIdentity, PruningPlan, make_plan


def identity(file: GgufFile) -> ModelIdentity:
    return ModelIdentity(file.fingerprint, file.get("general.architecture"), "toy", file.structure, file.types)


def narrowed_logits(engine: LlamaSession, tokens: Tokens, fewer: Fewer, scored_from: int = 0) -> np.ndarray:
    """Of the experts in `fewer` alone."""
    return engine.logits(tokens, {block: each.experts for block, each in fewer.items()}, scored_from, fewer)


def random_plan(file: GgufFile, layout: MoeLayout, keep: int, seed: int = 0, mtp: str = "mirror") -> PruningPlan:
    scores = np.random.default_rng(seed).random((len(layout.trunk), layout.n_expert))
    return make_plan(layout, identity(file), scores, method="random", n_keep=keep, mtp=mtp)


def random_narrowing(file: GgufFile, layout: MoeLayout, plan: PruningPlan, width: int, seed: int = 0) -> Narrowing:
    """Any `width` neurons of every expert."""
    rng = np.random.default_rng(seed)
    before = file.by_name[f"blk.{layout.blocks[0].index}.ffn_down_exps.weight"].shape[-1]
    neurons = {}
    for block in plan.keep:
        drawn = rng.permuted(np.tile(np.arange(before), (plan.n_keep, 1)), axis=1)[:, :width]
        neurons[block] = np.sort(drawn, axis=1).astype(np.int32)
    return Narrowing(before, width, neurons, method="random")


def with_columns(file: GgufFile, plan: PruningPlan, narrowing: Narrowing) -> Narrowing:
    """The same with columns of down of its own in all blocks but the first, which keeps the model's."""
    rng, downs = np.random.default_rng(3), {}
    for block in list(plan.keep)[1:]:
        n_embd = file.by_name[f"blk.{block}.ffn_down_exps.weight"].shape[1]
        shape = (plan.n_keep, n_embd, narrowing.width)
        downs[block] = rng.standard_normal(shape, dtype=np.float32) / np.float32(narrowing.width) ** 0.5
    return replace(narrowing, downs=downs)
