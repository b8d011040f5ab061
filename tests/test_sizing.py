"""What candidates weigh: foretold to the byte, from one process, in microseconds where nothing is new."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from asked import prune
from gguf import GGMLQuantizationType as Kind
from tiny_gguf import qwen3moe

from ggufreap import Quantiser, quantize, saliency
from ggufreap.architecture.layout import MoeLayout
from ggufreap.container import open_gguf, type_name
from ggufreap.engine.quantizer import Quantizer
from ggufreap.errors import EngineError, InfeasiblePlan, InputError
from ggufreap.model import Model
from ggufreap.planning import PruningPlan, make_plan
from ggufreap.planning.counts import feasible_counts
from ggufreap.quantization import QuantRequest, quantize_file
from ggufreap.rewriting import execute
from ggufreap.sizing import TYPES, Sizer, nearest_type, rewriter
from ggufreap.sizing.classes import class_of
from ggufreap.sizing.nearest import bisect
from ggufreap.verbs import quantize_variants
from ggufreap.verbs.rival import make_rival

pytestmark = pytest.mark.native

# One of each kind: groups, biases per expert, a dense first block, shared experts, 8 bits of attention, MTP blocks.
ARCHS = ("qwen3moe", "deepseek2-groups4", "gpt-oss", "glm4moe", "lfm2moe", "llama4", "qwen35moe")


def planned(model: Path, n_keep: int, seed: int = 0, mtp: str = "mirror") -> tuple[Model, PruningPlan]:
    opened = Model.open(model)
    layout = opened.layout
    scores = saliency.random_scores(len(layout.trunk), layout.n_expert, seed)
    return opened, make_plan(layout, opened.identity, scores, method="random", n_keep=n_keep, mtp=mtp)


@contextmanager
def sizer_of(model: Path, mtp: str = "mirror", **cut: object) -> Iterator[tuple[Sizer, MoeLayout]]:
    opened, plan = planned(model, Model.open(model).layout.n_expert, mtp=mtp)
    with Sizer(opened.file, rewriter(opened, plan, Path("out.gguf"), **cut)) as sizer:
        yield sizer, opened.layout


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every quantiser process that a test starts."""
    found: list[str] = []
    enter = Quantizer.__enter__

    def counting(quantizer: Quantizer) -> Quantizer:
        found.append("started")
        return enter(quantizer)

    monkeypatch.setattr(Quantizer, "__enter__", counting)
    return found


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """llama.cpp's mix for 8 experts is one of its own."""
    return qwen3moe(tmp_path_factory.mktemp("eight") / "Eight-F16.gguf", types=Kind.F16, n_expert=8, n_used=2)


# --- prediction is what is written ------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHS)
def test_every_count_is_foretold_from_a_plan_of_another(shared: Path, tmp_path: Path, arch: str) -> None:
    model = shared / "archs" / f"{arch}.gguf"
    with sizer_of(model) as (sizer, layout):
        for n_keep in feasible_counts(layout)[1::3]:
            opened, plan = planned(model, n_keep, seed=n_keep)
            script = rewriter(opened, plan, tmp_path / "out.gguf")(n_keep)
            execute(script)
            pruned = open_gguf(tmp_path / "out.gguf")
            assert sizer.script(n_keep).nbytes == script.nbytes == pruned.nbytes
            assert sizer.script(n_keep).metadata  # and what was foretold once is not worked out again
            assert sizer.script(n_keep) is sizer.script(n_keep)
            for kind in ("Q8_0", "Q4_K_M"):
                request = QuantRequest(kind, allow_requantize=True)
                said = sizer.quantised(n_keep, request)
                made = quantize(pruned.path, tmp_path / "q.gguf", kind, Quantiser(allow_requantize=True))
                assert made.file_nbytes == said.file_nbytes == ((tmp_path / "q.gguf").stat().st_size,)
                assert (made.types, made.type_nbytes, made.pinned) == (said.types, said.type_nbytes, said.pinned)
                (tmp_path / "q.gguf").unlink()
            pruned.path.unlink()


def test_the_whole_model_is_foretold_too(eight: Path, tmp_path: Path) -> None:
    with Sizer(open_gguf(eight)) as sizer:
        for kind in ("Q6_K", "IQ4_XS"):
            said = sizer.quantised(None, QuantRequest(kind), tmp_path / "q.gguf")
            assert said == quantize(eight, tmp_path / "q.gguf", kind)
            assert said.file_nbytes == ((tmp_path / "q.gguf").stat().st_size,)
            (tmp_path / "q.gguf").unlink()


@pytest.mark.parametrize("cut", [{"split_max_size": 900_000}, {"keep_split": True}])
def test_split_sets_are_foretold_shard_by_shard(tmp_path: Path, cut: dict[str, object]) -> None:
    model = qwen3moe(tmp_path / "in.gguf", n_expert=8, n_used=2, per_shard=9)
    opened, plan = planned(model, 6)
    rewrite = rewriter(opened, plan, tmp_path / "out.gguf", **cut)
    with Sizer(opened.file, rewrite) as sizer:
        script = sizer.script(6)
        execute(script)
        assert len(script.files) > 1
        assert [file.path.stat().st_size for file in script.files] == [file.nbytes for file in script.files]
        request = QuantRequest("Q8_0", keep_split=True)
        said = sizer.quantised(6, request, tmp_path / "q.gguf")
        made = quantize_file(open_gguf(script.files[0].path), tmp_path / "q.gguf", request)
    assert said == made
    assert [path.stat().st_size for path in made.paths] == list(said.file_nbytes)
    assert len(made.paths) == len(script.files)


def test_the_mix_of_eight_experts_stays_at_any_count(eight: Path, tmp_path: Path) -> None:
    with sizer_of(eight) as (sizer, _):
        whole = sizer.quantised(None, QuantRequest("Q4_K_M"))
        assert whole.types["blk.0.attn_v.weight"] == "Q8_0"
        for n_keep in (6, 4):
            said = sizer.quantised(n_keep, QuantRequest("Q4_K_M"))
            assert said.types == whole.types
            assert "blk.0.attn_v.weight" in said.pinned
        with pytest.raises(InfeasiblePlan, match="1 of 8 experts cannot be kept"):
            sizer.script(1)


def test_what_stands_against_a_request_is_raised_and_the_next_is_answered(eight: Path) -> None:
    with sizer_of(eight) as (sizer, _):
        with pytest.raises(InputError, match="which takes an importance matrix"):
            sizer.quantised(6, QuantRequest("IQ2_XS"))
        # An assertion of llama.cpp ends its process.
        with pytest.raises(EngineError, match=r"it stopped: llama-model\.cpp:\d+: GGML_ASSERT\(n_expert_used"):
            sizer.quantised(6, QuantRequest("Q8_0", metadata={"qwen3moe.expert_used_count": 9}))
        weighted = sizer.quantised(6, QuantRequest("IQ2_XS"), imatrix_later=sizer.source.by_name)
        assert weighted.types["blk.0.attn_q.weight"] == "IQ2_XS"


# --- one process ------------------------------------------------------------------------------------------------------


def test_one_process_answers_all_and_is_asked_once(
    eight: Path, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    run = Quantizer.run
    monkeypatch.setattr(Quantizer, "run", lambda self, *call: (asked.append("asked"), run(self, *call))[1])
    with sizer_of(eight) as (sizer, _):
        sizer.script(5)
        assert not started
        for _ in range(3):
            for n_keep, kind in product((None, 6, 5), ("Q8_0", "Q4_K_M")):
                sizer.quantised(n_keep, QuantRequest(kind))
        assert started == ["started"]
        once = len(asked)
        sizer.quantised(6, QuantRequest("Q4_K_M"))
        assert len(asked) == once


def test_the_verbs_start_one_process_to_foresee(eight: Path, tmp_path: Path, started: list[str]) -> None:
    for foresee in (
        lambda: quantize(eight, tmp_path / "q.gguf", "Q4_K_M", dry_run=True),
        lambda: quantize_variants(eight, tmp_path / "out", "q4_k_m-q8_0-critical", dry_run=True),
        lambda: prune(eight, ratio="0.25", quant=["Q8_0", "Q4_K_M", "Q5_K_S"], out=tmp_path, dry_run=True),
    ):
        started.clear()
        foresee()
        assert started == ["started"]
    started.clear()
    prune(eight, ratio="0.25", quant=["keep"], out=tmp_path, dry_run=True)
    assert not started
    assert not list(tmp_path.iterdir())


def test_a_rival_is_found_with_one_process_and_made_with_another(
    eight: Path, tmp_path: Path, started: list[str]
) -> None:
    made = make_rival(eight, open_gguf(eight).nbytes // 2, tmp_path)
    assert started == ["started", "started"]
    assert made.path.stat().st_size == made.nbytes
    assert type_name(open_gguf(made.path).by_name["blk.0.ffn_up_exps.weight"].type).startswith(made.type[:2])


def test_nothing_stays_behind(eight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with sizer_of(eight) as (sizer, _):
        sizer.quantised(6, QuantRequest("Q8_0"))
        sizer.quantised(5, QuantRequest("Q8_0"))
        held = [path.stat() for path in tmp_path.rglob("*.gguf")]
        assert len(held) == 2
        # As large as the real ones, and nothing but a header on the disk.
        assert all(512 * stat.st_blocks < stat.st_size / 10 for stat in held)
    assert not list(tmp_path.iterdir())


# --- the nearest type -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", [*ARCHS, "arctic", "deepseek2", "smallthinker"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_nearest_type_is_the_nearest_of_all(shared: Path, arch: str, weighted: bool) -> None:
    with Sizer(open_gguf(shared / "archs" / f"{arch}.gguf")) as sizer:
        sizes, later = {}, sizer.source.by_name if weighted else None
        for kind in TYPES:
            request = QuantRequest(kind, allow_requantize=True)
            with suppress(InputError):  # a type that needs a matrix
                sizes[kind] = sizer.quantised(None, request, imatrix_later=later).nbytes
        assert ("IQ2_XS" in sizes) == weighted
        ends = (0, *sizes.values(), 2 * max(sizes.values()))
        targets = {nbytes + more for nbytes in ends for more in (-1, 0, 1)}
        targets |= {(one + other) // 2 for one, other in pairwise(sorted(ends))}
        for nbytes in sorted(targets):
            kind, there = nearest_type(sizer, nbytes, imatrix_later=later)
            assert there == sizes[kind]
            assert abs(there - nbytes) == min(abs(size - nbytes) for size in sizes.values())


@pytest.mark.parametrize("gone", [(), (0,), (17,), (5, 6, 7, 8, 9, 10, 11), tuple(range(18))])
def test_a_bisection_asks_little(gone: Sequence[int]) -> None:
    rng = np.random.default_rng(len(gone))
    for _ in range(200):
        order = sorted(rng.integers(1000, 10_000, len(TYPES)).tolist(), reverse=True)
        for place in rng.integers(0, len(order) - 1, 2):  # neighbours that changed places
            order[place : place + 2] = sorted(order[place : place + 2])
        sizes = {kind: None if place in gone else order[place] for place, kind in enumerate(TYPES)}
        there = [size for size in sizes.values() if size is not None]
        asked: list[str] = []

        def size(kind: str, sizes: dict[str, int | None] = sizes, asked: list[str] = asked) -> int | None:
            asked.append(kind)
            return sizes[kind]

        nbytes = int(rng.integers(500, 11_000))
        found = bisect(TYPES, size, nbytes)
        assert (found is None) == (not there)
        if found:
            assert sizes[found[0]] == found[1]
        assert len(asked) == len(set(asked)) <= 8 + len(gone)


def test_no_type_at_all_is_one_line(tmp_path: Path) -> None:
    fp4 = qwen3moe(tmp_path / "Toy-MXFP4.gguf", types=Kind.MXFP4)
    with Sizer(open_gguf(fp4)) as sizer, pytest.raises(InputError, match="can be quantised to no smaller type"):
        nearest_type(sizer, 1)


# --- classes ----------------------------------------------------------------------------------------------------------


def test_every_tensor_has_a_class() -> None:
    classes = {
        "blk.3.ffn_gate_exps.weight": "gate_up",
        "blk.3.ffn_up_exps.weight": "gate_up",
        "blk.30.ffn_gate_up_exps.weight": "gate_up",
        "blk.3.ffn_down_exps.weight": "down",
        "blk.3.ffn_down_exps.bias": "rest",
        "blk.3.ffn_gate_inp.weight": "rest",
        "blk.3.ffn_down_shexp.weight": "rest",
        "blk.0.ffn_down.weight": "rest",
        "output.weight": "rest",
    }
    assert {name: class_of(name) for name in classes} == classes
