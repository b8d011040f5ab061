"""Outlines: one script tells what those of all counts would."""

from pathlib import Path

import pytest
import tiny_gguf
from gguf import GGMLQuantizationType as Kind

from ggufreap import saliency
from ggufreap.architecture.width import expert_width
from ggufreap.errors import UnsupportedModel
from ggufreap.fitting import widths_to_try
from ggufreap.model import Model
from ggufreap.options.output import Output
from ggufreap.planning import make_plan
from ggufreap.planning.counts import feasible_counts
from ggufreap.quantization import QuantRequest, imatrix_metadata
from ggufreap.rewriting import Narrow, execute
from ggufreap.sizing import Outline, Sizer, rows_of
from ggufreap.verbs.apply import scripts_of
from ggufreap.verbs.narrowing import any_narrowing

ARCHS = ("qwen3moe", "deepseek2-groups4", "gpt-oss", "glm4moe", "lfm2moe", "llama4", "qwen35moe")
REQUEST = QuantRequest("Q4_K_M", allow_requantize=True, metadata=imatrix_metadata("m.gguf", 7, 3, "text"))


def check_outlines(model: Model, mtp: str) -> int:
    """That all counts of a few widths are told from one script; how many widths there were."""
    layout = model.layout
    scores = saliency.random_scores(len(layout.trunk), layout.n_expert, 0)
    plan = make_plan(layout, model.identity, scores, method="random", n_keep=layout.n_expert, mtp=mtp)
    whole, *fewer = feasible_counts(layout)
    try:
        widths = widths_to_try(expert_width(model.file, layout), 0.75)
    except UnsupportedModel:
        widths = []
    for width in (0, *widths[:2]):
        narrow = Narrow(any_narrowing(model, plan, width)) if width else None
        scripts = scripts_of(model, plan, Path("out.gguf"), Output(), narrow)
        outline = Outline.of(model, plan, scripts(fewer[-1]), narrow)
        sizer = Sizer(model.file, scripts)
        for n_keep in (*([whole] if width else []), *fewer):
            assert outline.exact(n_keep) == sizer.script(n_keep).nbytes, (width, n_keep)
            assert outline.header(n_keep, REQUEST) == sizer.header(n_keep, REQUEST), (width, n_keep)
    return len(widths)


@pytest.mark.parametrize(
    ("arch", "mtp"), [*((arch, "mirror") for arch in ARCHS), ("glm4moe", "drop"), ("qwen35moe", "drop")]
)
def test_one_script_tells_of_all_counts(shared: Path, arch: str, mtp: str) -> None:
    check_outlines(Model.open(shared / "archs" / f"{arch}.gguf"), mtp)


def test_narrower_ones_too_whatever_the_header_says(tmp_path: Path) -> None:
    sizes = {"n_expert": 16, "n_embd": 64, "n_ff": 160}
    path = tiny_gguf.qwen3moe(tmp_path / "Toy-F16.gguf", types=Kind.F16, **sizes)
    assert check_outlines(Model.open(path), "mirror") > 1


def test_shards_become_one_file(tmp_path: Path) -> None:
    path = tiny_gguf.qwen3moe(tmp_path / "Toy-F16.gguf", types=Kind.F16, n_expert=16, n_embd=64, n_ff=160)
    model = Model.open(path)
    scores = saliency.random_scores(len(model.layout.trunk), 16, 0)
    plan = make_plan(model.layout, model.identity, scores, method="random", n_keep=14)
    script = scripts_of(model, plan, tmp_path / "S.gguf", Output(split_max_size="1M"))(14)
    execute(script)
    assert len(script.files) > 1
    assert check_outlines(Model.open(script.files[0].path), "mirror") == 3


def test_rows_differ_by_the_blocks_that_they_fill() -> None:
    def told(width: int) -> object:
        return rows_of({"down": (8, 64, width), "norm": (width,)})

    assert told(512) == told(256) != told(224) == told(32) != told(48)
