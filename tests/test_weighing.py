"""Prospects of all kinds of architectures: what is told of all from a few questions is what llama.cpp says of each."""

from pathlib import Path

import numpy as np
import pytest
from test_fitting import making_of
from test_outline import ARCHS

from ggufreap.fitting import Pool, Prospect
from ggufreap.fitting.pool import NEVER
from ggufreap.model import Model
from ggufreap.sizing import Sizer
from ggufreap.verbs.prospects import Making
from ggufreap.verbs.widths import widths_of

pytestmark = pytest.mark.native


def some(pool: Pool, n: int) -> list[Prospect]:
    """Prospects drawn at random, of all kinds alike."""
    rng = np.random.default_rng(0)
    kinds = [((pool.nbytes < NEVER) & kind).ravel().nonzero()[0] for kind in pool.kinds.values()]
    return [pool.prospect(int(place)) for places in kinds if len(places) for place in rng.permutation(places)[:n]]


def check(making: Making, prospects: list[Prospect]) -> None:
    for width in {each.width if each.narrowed else 0 for each in prospects}:
        with Sizer(making.model.file, making.scripts(width)) as sizer:
            for each in prospects:
                if (each.width if each.narrowed else 0) == width and each.mix.type is not None:
                    n_keep = each.n_keep if each.pruned else None
                    asked = making.ask(n_keep, each.mix, width)
                    said = sizer.quantised(n_keep, asked, imatrix_later=sizer.source.by_name)
                    assert each.nbytes == said.nbytes, each.label


@pytest.mark.parametrize(
    ("arch", "mtp"), [*((arch, "mirror") for arch in ARCHS), ("glm4moe", "drop"), ("qwen35moe", "drop")]
)
def test_prospects_are_as_large_as_llama_cpp_says(shared: Path, arch: str, mtp: str) -> None:
    model = Model.open(shared / "archs" / f"{arch}.gguf")
    making = making_of(model, mtp)
    pool = making.pool(widths_of(model, True))
    check(making, some(pool, 4))
