"""Reports to look at: a real one of the embedded model, and one of a large model that has every part."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from asked import plan

from ggufreap import __version__, apply, calibrate, saliency, verify
from ggufreap import corpus as corpora
from ggufreap.architecture.layout import bind
from ggufreap.container import open_gguf
from ggufreap.corpus import Reading
from ggufreap.corpus.request import Request
from ggufreap.corpus.standard_library import _documents, calibration_text
from ggufreap.demonstration import MODEL
from ggufreap.engine.session import LlamaSession
from ggufreap.model import Model
from ggufreap.observation import load
from ggufreap.options.engine import EngineSettings
from ggufreap.planning import select
from ggufreap.reporting import facts
from ggufreap.reporting.known_facts import file_facts, model_facts, plan_facts, routing_facts

N_CTX = 128
Floats = npt.NDArray[np.float64]


# --- the embedded model, really calibrated, pruned, verified and measured ------------------------------------------


def demo_report(folder: Path, n_chunks: int = 8, n_held_out: int = 1) -> facts.Report:
    """Everything that one pass and a few contexts per domain tell of the embedded model without a quarter."""
    text, stats, out = folder / "text.txt", folder / "S.npz", folder / "demo-moe-REAP-0.25-Q8_0.gguf"
    text.write_text(calibration_text(n_chunks * N_CTX * 4), encoding="utf-8")
    settings = EngineSettings(n_ctx=N_CTX, n_ubatch=N_CTX, n_threads=1)
    statistics = calibrate(
        MODEL, stats, Request([str(text)], reading=Reading(n_chunks=n_chunks)), settings=settings
    ).total
    chosen = plan(MODEL, stats=stats, ratio="0.25")
    apply(MODEL, chosen, out)
    proof = verify(MODEL, out, chosen, settings=settings)
    model = Model.open(MODEL)
    layout = model.layout
    scores = saliency.METHODS["reap"].score(statistics)
    by_block = {block.index: row for block, row in zip(layout.trunk, scores, strict=True)}
    provenance = load(stats)[1]
    keeps = {
        ratio: dict(zip(by_block, select(scores, layout.n_expert - round(layout.n_expert * ratio), 1), strict=True))
        for ratio in (0.125, 0.25, 0.5)
    }
    measured = _measured(model.path, settings, keeps, n_held_out)
    curve = tuple(
        facts.Candidate(ratio, "reap", layout.n_expert - round(layout.n_expert * ratio), measured[ratio])
        for ratio in keeps
    )
    return facts.Report(
        version=__version__,
        date="2026-01-01",
        model=model_facts(model, chosen, open_gguf(out)),
        plan=plan_facts(chosen, by_block),
        calibration=facts.Calibration(
            N_CTX,
            statistics.n_tokens,
            provenance.corpus,
            (facts.Source("the embedded text", n_tokens=statistics.n_tokens),),
            built_in=True,
            routed=routing_facts(statistics),
        ),
        curve=curve,
        original=facts.Subject(model.file.nbytes, "Q8_0"),
        variants=(facts.Variant(out.name, facts.Subject(out.stat().st_size, "Q8_0"), domains=measured[0.25]),),
        files=(file_facts(out, "Q8_0"),),
        reproduction=facts.Reproduction("ggufreap prune demo-moe-Q8_0.gguf --ratio 0.25 -c 128"),
        verification=facts.Verification(proof.ok, tuple(f"{check.name}: {check.detail}" for check in proof.checks)),
    )


def _measured(
    model: Path, settings: EngineSettings, keeps: Mapping[float, Mapping[int, Sequence[int]]], n_chunks: int
) -> dict[float, tuple[facts.Meters, ...]]:
    found: dict[float, list[facts.Meters]] = {ratio: [] for ratio in keeps}
    with LlamaSession(model, bind(open_gguf(model)).nodes, settings) as engine:
        for domain, documents in _documents(held_out=True).items():
            text = "\n".join(text for _, text in documents)[: n_chunks * N_CTX * 8]
            corpus = corpora.from_text(engine, text, N_CTX, domain).head(n_chunks)
            base = [_log_softmax(engine.logits(chunk)) for chunk in corpus.chunks]
            for ratio, keep in keeps.items():
                pruned = [_log_softmax(engine.logits(chunk, dict(keep))) for chunk in corpus.chunks]
                found[ratio].append(_meters(domain, corpus.chunks, base, pruned))
    return {ratio: tuple(rows) for ratio, rows in found.items()}


def _meters(
    domain: str, chunks: npt.NDArray[np.int32], base: Sequence[Floats], pruned: Sequence[Floats]
) -> facts.Meters:
    p, q = np.concatenate(base), np.concatenate(pruned)
    kld = (np.exp(p) * (p - q)).sum(axis=1)
    same = (p.argmax(axis=1) == q.argmax(axis=1)).astype(float)
    overlap = 1 - 0.5 * np.abs(np.exp(p) - np.exp(q)).sum(axis=1)
    losses = [
        np.concatenate([-row[np.arange(len(chunk) - 1), chunk[1:]] for row, chunk in zip(rows, chunks, strict=True)])
        for rows in (base, pruned)
    ]
    return facts.Meters(
        domain,
        _estimate(kld),
        len(kld),
        *(float(value) for value in np.percentile(kld, (50, 90, 99))),
        top1=_estimate(same),
        overlap=_estimate(overlap),
        ppl_before=_perplexity(losses[0]),
        ppl_after=_perplexity(losses[1]),
        ppl_ratio=_perplexity(losses[1] - losses[0]),
    )


def _log_softmax(logits: npt.NDArray[np.float32]) -> Floats:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _estimate(values: Floats) -> facts.Estimate:
    return facts.Estimate(float(values.mean()), float(values.std() / np.sqrt(len(values))))


def _perplexity(losses: Floats) -> facts.Estimate:
    value = float(np.exp(losses.mean()))
    return facts.Estimate(value, float(value * losses.std() / np.sqrt(len(losses))))


# --- a made-up model with every part: for the layout, for size, and for what may stand in names ---------------------

DOMAINS = ("code", "math", "en prose", "de", "fr", "zh", "ja | ko", "tool_calls")


def large_report(n_block: int = 48, n_expert: int = 512, domains: Sequence[str] = DOMAINS) -> facts.Report:
    """Numbers drawn from a seed; names with what Markdown and HTML would take for their own."""
    random = np.random.default_rng(7)
    n_keep = n_expert * 3 // 4
    scores = random.lognormal(0, 0.7, (n_block, n_expert)) * np.geomspace(1, 40, n_block)[:, None]
    never = random.random(scores.shape) < 0.002
    scores[never] = -np.inf
    kept = select(scores, n_keep, 1)
    blocks = tuple(
        facts.PlannedBlock(
            row,
            ids,
            tuple(float(f"{score:.6g}") if np.isfinite(score) else None for score in scores[row]),
            float(np.where(never[row], 0, scores[row])[list(ids)].sum() / np.where(never[row], 0, scores[row]).sum()),
        )
        for row, ids in enumerate(kept)
    )
    hardness = dict(zip(domains, np.geomspace(0.008, 0.6, len(domains)), strict=True))
    names = ("Big-Model-REAP-0.25-Q4_K_M.gguf", "Big-Model-REAP-0.25-IQ3_XXS.gguf")
    variants = tuple(
        facts.Variant(
            name,
            facts.Subject(
                nbytes, kind, None, nbytes + 2_000_000_000, _speed(1.1), facts.Probes(200, 0.035, 0.015, 0.4)
            ),
            _drawn("all", 0.1 * worse, random),
            tuple(_drawn(domain, worse * hard, random) for domain, hard in hardness.items()),
            (
                facts.Task("mmlu_pro <0-shot>", 500, 0.712, 0.664, 0.621, 0.704, 0.0123),
                facts.Task("humaneval|plus", 164, 0.811, 0.805, 0.737, 0.859, 0.81),
            ),
        )
        for name, nbytes, kind, worse in zip(
            names, (178_400_000_000, 131_900_000_000), ("Q4_K_M", "IQ3_XXS"), (1.0, 1.6), strict=True
        )
    )
    curve = tuple(
        facts.Candidate(
            ratio,
            method,
            n_expert - int(n_expert * ratio),
            tuple(
                _drawn(domain, hard * (4 * ratio) ** 2 * (1 + 0.4 * bad), random) for domain, hard in hardness.items()
            ),
            int(240e9 * (1 - 0.95 * ratio)),
        )
        for method, bad in (("reap", 0), ("frequency", 1))
        for ratio in (0.1, 0.2, 0.25, 0.3, 0.4, 0.5)
    )
    return facts.Report(
        version=__version__,
        date="2026-01-01",
        model=facts.Model(
            name="Big & <Model>_480B *MoE*",
            architecture="qwen3moe",
            file="Big-Model-BF16-00001-of-00020.gguf",
            fingerprint="f0" * 32,
            n_block=n_block,
            n_moe_block=n_block,
            n_mtp_block=0,
            n_expert_before=n_expert,
            n_expert_after=n_keep,
            n_used=10,
            n_shared=1,
            n_group=1,
            nbytes_before=960_000_000_000,
            nbytes_after=731_000_000_000,
            parameters_before=480_150_000_000,
            parameters_after=365_400_000_000,
            active_before=35_010_000_000,
            active_after=35_000_000_000,
            license="apache-2.0",
            base_models=(facts.BaseModel("Big Model", "Some Org", "https://huggingface.co/some-org/Big-Model"),),
        ),
        plan=facts.Plan("reap", "0.25", "mirror", "ab" * 32, blocks, "maximum"),
        calibration=facts.Calibration(
            2048,
            12_582_912,
            "cd" * 32,
            tuple(
                facts.Source(f"org/{index}-data", domain, "1a2b3c" * 6, "main", "train", 1500, 1_572_864, "ef" * 32)
                for index, domain in enumerate(domains[:-1])
            ),
            "samples",
            split_half=0.957,
            routed=facts.Routed(0, 245_760.0, 1_904_211, int(never.sum())),
        ),
        coverage=tuple(
            facts.Coverage(domain, 0.985 - 0.2 * hard, 0.95 - 0.55 * hard, index)
            for index, (domain, hard) in enumerate(hardness.items())
        ),
        curve=curve,
        original=facts.Subject(
            288_000_000_000, "Q4_K_M", None, 290_000_000_000, _speed(1.0), facts.Probes(200, 0.01, 0.005, 0.0)
        ),
        variants=variants,
        equal_size=(
            facts.EqualSize(
                names[0],
                "Big-Model-Q2_K_L.gguf",
                "Q2_K_L",
                179_000_000_000,
                facts.Estimate(0.131, 0.004),
                facts.Estimate(0.1, 0.003),
            ),
        ),
        files=tuple(
            facts.File(name, variant.itself.nbytes, "9c" * 32, variant.itself.type)
            for name, variant in zip(names, variants, strict=True)
        ),
        reproduction=facts.Reproduction(
            "ggufreap run mine.toml 'Big Model-BF16.gguf' -ngl 99 --out ./pruned",
            '[target]\nratio = 0.25 # ```\n\n[[quantization.variants]]\ntype = "Q4_K_M"\n',
        ),
        verification=facts.Verification(True, ("bytes: 800 tensors equal the source's",)),
        notes=("Memory was read with -c 8192.",),
        publisher="somebody",
    )


def bare_report() -> facts.Report:
    """Only the model and the plan."""
    full = large_report(2, 16, DOMAINS[:2])
    model = replace(
        full.model,
        parameters_before=None,
        parameters_after=None,
        active_before=None,
        active_after=None,
        license="",
        base_models=(),
    )
    blocks = tuple(replace(block, scores=(), retained=None) for block in full.plan.blocks)
    return facts.Report(
        __version__, "2026-01-01", model, replace(full.plan, blocks=blocks, method="weight_norm", blend="")
    )


def _speed(factor: float) -> tuple[facts.Speed, ...]:
    return tuple(
        facts.Speed(
            batch,
            facts.Estimate(410.0 * factor * batch**0.2, 6.1),
            facts.Estimate(21.5 * factor * batch**0.6, 0.4),
        )
        for batch in (1, 2, 4, 8)
    )


def _drawn(domain: str, kld: float, random: np.random.Generator) -> facts.Meters:
    kld *= float(random.uniform(0.9, 1.1))
    before = float(random.uniform(3, 9))
    ratio = 1 + 0.8 * kld
    return facts.Meters(
        domain,
        facts.Estimate(kld, kld / 20),
        8192,
        kld / 9,
        2.6 * kld,
        11 * kld,
        facts.Estimate(1 - 0.6 * kld**0.7, 0.003),
        facts.Estimate(1 - 0.5 * kld**0.7, 0.002),
        facts.Estimate(before, 0.11),
        facts.Estimate(before * ratio, 0.14),
        facts.Estimate(ratio, 0.004),
    )
