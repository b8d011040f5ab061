"""The verbs eval and preview on models that llama.cpp runs."""

import logging
import math
import re
import shutil
import signal
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import asked
import numpy as np
import pytest
import tiny_gguf
import tiny_native

import ggufreap
from ggufreap import verbs
from ggufreap.architecture.layout import bind
from ggufreap.cli import main
from ggufreap.container import open_gguf
from ggufreap.corpus import Corpus
from ggufreap.engine.session import LlamaSession
from ggufreap.errors import InfeasiblePlan, InputError, MismatchError
from ggufreap.evaluation import METRICS, Meters, compare_with, of_engine
from ggufreap.judging import Candidate, open_engine
from ggufreap.model import Model
from ggufreap.options.engine import EngineSettings
from ggufreap.options.quantisation import Quantiser
from ggufreap.planning import ModelIdentity, make_plan
from ggufreap.rewriting import execute, lower
from ggufreap.verbs.preview import recommend

pytestmark = pytest.mark.native

SETTINGS = EngineSettings(n_ctx=64, n_ubatch=64, n_threads=1, n_gpu_layers=0)
FLAGS = ("-c", "64", "-ub", "64", "-t", "1")
TEXTS = {
    "fox": "the quick brown fox jumps over the lazy dog, and so it goes on and on.\n" * 10,
    "sum": "".join(f"{n} + {n} = {2 * n}; " for n in range(60)),
}


@pytest.fixture(autouse=True)
def process_as_it_was() -> Iterator[None]:
    logger, on_kill = logging.getLogger("ggufreap"), signal.getsignal(signal.SIGTERM)
    before = logger.handlers[:], logger.level
    yield
    logger.handlers[:], logger.level = before
    signal.signal(signal.SIGTERM, on_kill)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.qwen3moe(tmp_path_factory.mktemp("model") / "m.gguf", n_embd=64, n_ff=32, n_block=3)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("text")
    for name, text in TEXTS.items():
        (folder / f"{name}.txt").write_text(text)
    return [str(folder / f"{name}.txt") for name in TEXTS]


MEANS = ("kld", "top1", "esap", "ppl_ratio")


def close(found: Meters, expected: Meters, tolerance: float = 1e-6, names: Iterable[str] = METRICS) -> None:
    for name in names:
        assert found.figures[name] == pytest.approx(expected.figures[name], rel=tolerance, abs=tolerance), name


# eval.


def test_a_model_against_itself(model: Path, files: list[str]) -> None:
    found = asked.evaluate(model, reference=model, files=files, settings=SETTINGS)
    assert found.comparison is not None
    assert list(found.comparison.domains) == ["fox", "sum"]
    for meters in (*found.comparison.domains.values(), found.comparison.mean):
        assert (meters.kld, meters.kld_p99, meters.top1, meters.ppl_ratio) == (0, 0, 1, 1)
        assert meters.esap == pytest.approx(1, abs=1e-6)
    alone = asked.evaluate(model, files=files, settings=SETTINGS)
    assert alone.comparison is None
    assert alone.perplexity == found.perplexity


def test_a_base_file_stands_for_the_model(
    model: Path, files: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = tiny_gguf.qwen3moe(tmp_path / "other.gguf", n_embd=64, n_ff=32, n_block=3, seed=1)
    base = tmp_path / "fox.base"
    write = ["eval", str(model), "-f", files[0], "--kl-divergence-base", str(base), *FLAGS]
    assert main(write) == 0
    read = ["eval", str(other), "--kl-divergence-base", str(base), "--kl-divergence", *FLAGS]
    assert main([*read, "--fail-if", "kld>0"]) == 4
    assert re.search(r"FAILS  kld>0: [\d.]+ \(mean\)", capfd.readouterr().out)
    through = asked.evaluate(other, kl_divergence_base=base, kl_divergence=True, settings=SETTINGS).comparison
    exact = asked.evaluate(other, reference=model, files=files[:1], settings=SETTINGS).comparison
    assert through is not None
    assert exact is not None
    close(through.worst, exact.worst, tolerance=1e-3)
    assert exact.mean.kld > 0.01


def test_models_that_cannot_be_pruned_can_be_judged(files: list[str], tmp_path: Path) -> None:
    dense = tiny_gguf.qwen3moe(tmp_path / "dense.gguf", n_expert=0, n_embd=64, n_ff=32)
    quantised = tmp_path / "quantised.gguf"
    verbs.quantize(dense, quantised, "Q8_0", Quantiser(n_threads=1))
    found = asked.evaluate(quantised, reference=dense, files=files, settings=SETTINGS).comparison
    assert found is not None
    assert 0 < found.mean.kld < 0.1


def test_a_model_without_output_head_is_refused(files: list[str], tmp_path: Path) -> None:
    headless = tiny_native.build("nomic-bert-moe", tmp_path / "m.gguf")
    with pytest.raises(InputError, match="ends in hidden states"):
        asked.evaluate(headless, files=files, settings=SETTINGS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no held-out text was given"),
        ({"files": 0, "kl_divergence": True}, "leave out -f and --reference"),
        ({"kl_divergence": True}, "from --kl-divergence-base FILE"),
        ({"files": 0, "fail_if": ["kld>1"]}, "kld needs an original"),
        ({"files": 0, "fail_if": ["domain.code.ppl>1"]}, r"there is no domain 'code', only fox, sum"),
        ({"files": 2, "kl_divergence_base": "x"}, "holds one text, 2 were given"),
        ({"files": 1, "kl_divergence_base": "x", "reference": 0}, "leave out --reference"),
        ({"files": 3}, "two texts are called 'fox'; name them with -f NAME=FILE"),
        ({"files": 0, "settings": replace(SETTINGS, n_ctx=3)}, "-c 3: only chunks of 4 tokens"),
    ],
)
def test_what_does_not_go_together_is_refused(
    model: Path, files: list[str], arguments: dict[str, object], message: str
) -> None:
    given = {0: files, 1: files[:1], 2: files, 3: files[:1] * 2}
    arguments = {"settings": SETTINGS, **arguments}
    if "files" in arguments:
        arguments["files"] = given[arguments["files"]]
    if "reference" in arguments:
        arguments["reference"] = model
    with pytest.raises(InputError, match=message):
        asked.evaluate(model, **arguments)


def test_models_of_other_vocabularies_are_refused(model: Path, files: list[str], tmp_path: Path) -> None:
    other = tiny_gguf.qwen3moe(tmp_path / "m.gguf", n_embd=64, n_ff=32, n_vocab=330)
    with pytest.raises(MismatchError, match="do not read fox as the same tokens"):
        asked.evaluate(other, reference=model, files=files, settings=SETTINGS)
    base = tmp_path / "base"
    asked.evaluate(model, files=files[:1], kl_divergence_base=base, settings=SETTINGS)
    with pytest.raises(MismatchError, match=r"of a model with 320 tokens, .* has 330"):
        asked.evaluate(other, kl_divergence_base=base, kl_divergence=True, settings=SETTINGS)


def test_domains_take_names(model: Path, files: list[str], tmp_path: Path) -> None:
    odd = tmp_path / "a=b.txt"
    odd.write_text(TEXTS["fox"])
    found = asked.evaluate(model, files=[f"code={files[0]}", str(odd)], chunks=1, settings=SETTINGS)
    assert (list(found.perplexity), found.n_chunks) == (["code", "a=b"], 2)


# Rows that are not scored are not computed, and nothing else changes.


@pytest.mark.parametrize("name", ["qwen3moe", "qwen35moe", "gpt-oss", "nomic-bert-moe"])
@pytest.mark.parametrize("n_ubatch", [64, 24])
def test_scored_rows_alone_are_the_same_rows(tmp_path: Path, name: str, n_ubatch: int) -> None:
    file = open_gguf(tiny_native.build(name, tmp_path / "m.gguf"))
    tokens = np.random.default_rng(0).integers(0, tiny_native.N_VOCAB, 64).astype(np.int32)
    nodes = bind(file).nodes
    with LlamaSession(file.path, nodes, replace(SETTINGS, n_ubatch=n_ubatch)) as engine:
        for keep in (None, {block.index: range(12) for block in nodes.blocks}):
            whole = engine.logits(tokens, keep)
            for first in (0, 31, 63):
                np.testing.assert_allclose(engine.logits(tokens, keep, first), whole[first:], rtol=1e-5, atol=1e-5)


# preview.


def test_what_is_previewed_is_what_is_written(model: Path, files: list[str], tmp_path: Path) -> None:
    settings = replace(SETTINGS, exact=True)
    found = asked.preview(model, ratios=["0", "0.5", "0.25"], methods=["random"], files=files, settings=settings)
    nothing, *pruned = found.candidates
    assert [candidate.plan.n_keep for candidate in found.candidates] == [16, 12, 8]
    assert (nothing.comparison.mean.kld, nothing.comparison.mean.top1) == (0, 1)
    for candidate in pruned:
        out = tmp_path / f"{candidate.plan.ratio}.gguf"
        verbs.apply(model, candidate.plan, out)
        written = asked.evaluate(out, reference=model, files=files, settings=settings).comparison
        assert written is not None
        for name, meters in candidate.comparison.domains.items():
            close(meters, written.domains[name])
        assert candidate.comparison.mean.kld > 0.01
    named = tmp_path / "m-RANDOM-0.50.gguf"
    shutil.copyfile(model, tmp_path / "m.gguf")
    verbs.apply(tmp_path / "m.gguf", replace(pruned[-1].plan), named)
    assert named.stat().st_size == pruned[-1].nbytes


ARCHITECTURES = ("deepseek2", "glm4moe", "gpt-oss", "granitemoe", "llama4", "qwen35moe", "smallthinker")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_masked_and_written_cost_the_same(tmp_path: Path, name: str) -> None:
    file = open_gguf(tiny_native.build(name, tmp_path / "m.gguf"))
    layout = bind(file)
    scores = np.random.default_rng(1).random((len(layout.trunk), 16))
    identity = ModelIdentity(file.fingerprint, name, name)
    plan = make_plan(layout, identity, scores, method="random", ratio="0.25")
    execute(lower(Model(file, layout), plan, tmp_path / "out.gguf"))
    tokens = np.random.default_rng(0).integers(0, tiny_native.N_VOCAB, (2, 64)).astype(np.int32)
    keep = {block.index: plan.keep[block.index] for block in layout.trunk}
    settings = replace(SETTINGS, exact=True)
    with (
        LlamaSession(file.path, layout.nodes, settings) as original,
        open_engine(open_gguf(tmp_path / "out.gguf"), settings) as pruned,
    ):
        candidates = [of_engine(original, keep), of_engine(pruned)]
        masked, written = compare_with(of_engine(original), candidates, {"ids": Corpus(tokens, "ids")})
    close(masked.mean, written.mean)
    assert masked.mean.kld > 1e-6, "the plan must matter, or nothing was shown"


def test_the_command_line_of_preview(model: Path, files: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    command = ["preview", str(model), "--methods", "random", "-f", files[0], "-f", f"digits={files[1]}", *FLAGS]
    strict = ["--fail-if", "worst_domain.kld>0", "--fail-if", "kld>9"]
    assert main([*command, "--ratios", "0.25,0.05,0.9"]) == 0
    out = capfd.readouterr().out
    assert "0.05   ratio 0.05 of 16 experts is less than one" in out
    assert re.search(r"0\.9   keeping \d of 16 experts", out)
    assert re.search(r"random 0\.25( \*)? +12/16 ", out)
    assert main([*command, "--ratios", "0.25", *strict]) == 4
    assert "random is a control, which is never recommended" in capfd.readouterr().out
    assert main([*command, "--ratios", "0.25", "--fail-if", "kld>9", "--json"]) == 0
    assert '"recommended": null' in capfd.readouterr().out
    assert main([*command, "--ratios", "0.25", "--fail-if", "domain.fax.kld>9"]) == 1
    assert "there is no domain 'fax', only fox, digits" in capfd.readouterr().err


def candidate(method: str, ratio: str, nbytes: int, kld: float, limit: float = 0.2) -> Candidate:
    from ggufreap.evaluation import Comparison, parse_gate
    from ggufreap.judging.exam import check_gates
    from ggufreap.planning import PruningPlan

    plan = PruningPlan(ModelIdentity("", "", ""), method, ratio, 16, 8, "mirror", {})
    comparison = Comparison({"code": Meters(9, kld, *[0.0] * 4, 1.0, 1.0, *[0.0] * 4)})
    gates = check_gates([parse_gate(f"worst_domain.kld>{limit}")], comparison)
    return Candidate(plan, nbytes, comparison, gates)


def test_recommended_is_what_lies_below_the_first_failure() -> None:
    reap = [
        candidate("reap", *row) for row in (("0.1", 90, 0.05), ("0.2", 80, 0.1), ("0.3", 70, 0.3), ("0.4", 60, 0.1))
    ]
    ean = [candidate("ean_sum", *row) for row in (("0.1", 90, 0.01), ("0.2", 80, 0.09), ("0.3", 70, 0.21))]
    best, reason = recommend([*reap, *ean])
    assert best is ean[1]
    assert "EAN-SUM-0.2: worst_domain.kld>0.2 passes with 0.09 (domain.code)" in reason
    assert "EAN-SUM-0.3: worst_domain.kld>0.2 fails with 0.21" in reason
    assert recommend(reap[:2])[0] is reap[1]
    assert "no tested ratio reaches a limit" in recommend(reap[:2])[1]
    none, why = recommend(reap[2:])
    assert none is None
    assert "already of REAP-0.3 worst_domain.kld>0.2 fails" in why


def test_a_control_is_shown_and_never_recommended() -> None:
    """Though its header is shorter, and chance may favour it."""
    chance = [candidate("random", "0.1", 89, 0.01), candidate("random", "0.2", 79, 0.01)]
    own = [candidate("reap", "0.1", 90, 0.02), candidate("reap", "0.2", 80, 0.15)]
    assert recommend([*own, *chance])[0] is own[1]
    none, why = recommend(chance)
    assert none is None
    assert "random is a control, which is never recommended" in why


def test_the_ratio_is_searched(model: Path, files: list[str]) -> None:
    arguments = {"files": files[:1], "chunks": 1, "settings": SETTINGS}

    def search(max_kld: float) -> ggufreap.verbs.Preview:
        return asked.choose_ratio(model, max_kld=max_kld, method="random", **arguments)

    keeps = list(range(15, 3, -1))
    ratios = [str(1 - keep / 16) for keep in keeps]
    every = asked.preview(model, ratios=ratios, methods=["random"], **arguments).candidates
    costs = {found.plan.n_keep: found.comparison.worst.kld for found in every}
    limit = (costs[9] + costs[8]) / 2 if costs[8] > costs[9] else costs[9]
    found = search(limit)
    assert found.recommended is not None
    n_keep = found.recommended.plan.n_keep
    assert costs[n_keep] <= limit
    assert n_keep == 4 or costs[n_keep - 1] > limit, "one step more costs too much"
    assert f"keeps {n_keep}" in found.reason
    assert len(found.candidates) < len(keeps)
    everything = search(math.inf).recommended
    assert everything is not None
    assert everything.plan.n_keep == 4
    with pytest.raises(InfeasiblePlan, match=r"removes 1 of 16, keeps 15: already with that .*; raise --max-kld"):
        search(costs[15] / 2)
    with pytest.raises(InputError, match="--max-kld 0"):
        search(0)


# The trained model: what harms it is seen.


@pytest.fixture(scope="module")
def trained(shared: Path) -> Path:
    return shared / "models" / "six-domain-moe-f16.gguf"


@pytest.fixture
def held_out(shared: Path) -> list[str]:
    return [f"{name}={shared / 'text' / name}.eval.txt" for name in ("code", "fr")]


TRAINED = EngineSettings(n_ctx=256, n_ubatch=256, n_threads=1, n_gpu_layers=0)
GATE = "worst_domain.kld>0.2"


def shuffle_router(path: Path, seed: int) -> None:
    """Send every token to other experts: the rows of every router in another order, and nothing else."""
    for record in open_gguf(path).tensors:
        if record.name.endswith("ffn_gate_inp.weight"):
            rows = np.memmap(path, np.uint8, "r+", record.offset, (record.shape[0], record.nbytes // record.shape[0]))
            rows[:] = rows[np.random.default_rng(seed).permutation(len(rows))]
            rows.flush()


def test_a_router_in_disorder_fails_the_gate(trained: Path, held_out: list[str], tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    shutil.copyfile(trained, broken)
    shuffle_router(broken, 0)
    arguments = {"files": held_out, "chunks": 1, "fail_if": [GATE], "settings": TRAINED}
    found = asked.evaluate(broken, reference=trained, **arguments)
    assert not found.ok
    assert found.comparison is not None
    assert found.comparison.worst.kld > 1
    assert asked.evaluate(trained, reference=trained, **arguments).ok


def test_random_keep_sets_fail_the_gate_and_look_the_same_written(
    trained: Path, held_out: list[str], tmp_path: Path
) -> None:
    arguments = {"files": held_out, "chunks": 1, "fail_if": [GATE], "settings": TRAINED}
    found = asked.preview(trained, ratios=["0.25"], methods=["random"], **arguments)
    (only,) = found.candidates
    assert not found.ok
    assert only.comparison.worst.kld > 0.2
    verbs.apply(trained, only.plan, tmp_path / "out.gguf")
    written = asked.evaluate(tmp_path / "out.gguf", reference=trained, **arguments)
    assert not written.ok
    assert written.comparison is not None
    # The weights are F16, so llama.cpp rounds activations to 11 bits, and how the softmax over fewer experts rounds its
    # last bit depends on the CPU: a mean may move by one such rounding.
    close(only.comparison.mean, written.comparison.mean, 2.0**-11, MEANS)
