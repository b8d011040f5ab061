"""The results of single stages."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ggufreap.blending import scored
from ggufreap.console.draw import Drawers, Plain, say, styled, table
from ggufreap.container import OutputFile, type_name
from ggufreap.coverage import Coverage
from ggufreap.inspection import Inspection
from ggufreap.observation import DomainStatistics, ExpertStatistics
from ggufreap.planning import PruningPlan
from ggufreap.quantization import Quantized
from ggufreap.rewriting import RewriteScript
from ggufreap.selection.methods import JOINT
from ggufreap.showing import shown
from ggufreap.units import size
from ggufreap.verbs import Variants
from ggufreap.verification import Check, Verification


@dataclass(frozen=True)
class DryRun:
    """A script that was not executed: every tensor is listed, instead of the files alone; and variants not made."""

    script: RewriteScript
    quantized: tuple[Quantized, ...] = ()


def draw_model(inspection: Inspection) -> None:
    """A model at a glance."""
    shards = f" in {inspection.n_shards} shards" if inspection.n_shards > 1 else ""
    groups = (
        f", in {inspection.n_group} groups of which {inspection.n_group_used} are used"
        if inspection.n_group > 1
        else ""
    )
    mtp = f", and {inspection.n_mtp_block} MTP" if inspection.n_mtp_block else ""
    before = _of_before(inspection.n_expert, inspection.n_expert_before)
    rest = inspection.nbytes - inspection.expert_nbytes
    say(styled(shown(inspection.name), "bold"), f" {inspection.architecture}, {size(inspection.nbytes)}{shards}")
    if not inspection.proven:
        say(styled("no table knows this architecture, so pruning it is unproven: ggufreap doctor tries it", "yellow"))
    say(f"blocks   {inspection.n_block}, {inspection.n_moe_block} with routed experts{mtp}")
    used = f"{inspection.n_used} used per token, {inspection.n_shared} shared"
    say(f"experts  {inspection.n_expert}, {used}{groups}{before}")
    if inspection.widths:
        say(f"neurons  {_neurons(inspection)}")
    say(f"bytes    {size(inspection.expert_nbytes)} in experts and routers, {size(rest)} in the rest")
    say(f"types    experts: {_types(inspection.expert_types)}\n         rest: {_types(inspection.other_types)}")


def _neurons(inspection: Inspection) -> str:
    least, most = inspection.widths[0], inspection.widths[-1]
    if least < most:
        return f"{least:,} to {most:,} in each expert, depending on the block"
    told = f"{most:,} in each expert"
    return told + _of_before(most, inspection.width_before)


def _of_before(count: int, before: int) -> str:
    """What was left of `before`, in a file that ggufreap made; empty where nothing went."""
    return f"; {count / before:.1%} of the {before:,} before" if before > count else ""


def _inspection(inspection: Inspection) -> None:
    draw_model(inspection)
    say()
    rows = [
        (
            row.ratio,
            f"{inspection.n_expert - row.n_keep} of {inspection.n_expert}",
            str(row.n_keep),
            size(row.nbytes),
            f"{row.nbytes / inspection.nbytes:.0%}",
        )
        for row in inspection.outlook
        if not row.refused
    ]
    table("What pruning would leave", ("ratio", "removes", "keeps", "file", "of now"), rows)
    draw_refused(inspection)


def draw_refused(inspection: Inspection) -> None:
    """Which ratios cannot be had, and why."""
    for row in inspection.outlook:
        if row.refused:
            say(f"{row.ratio}   {row.refused}")


def _types(types: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size(nbytes)}" for name, nbytes in types.items())


def _statistics(by_domain: DomainStatistics) -> None:
    statistics = by_domain.total
    counts = statistics.values["count"]
    idle, median = int((counts == 0).sum()), int(sorted(counts.ravel())[counts.size // 2])
    say(f"tokens   {statistics.n_tokens:,} in {statistics.n_chunks} chunks")
    say(f"experts  {statistics.n_expert} in each of {len(statistics.blocks)} MoE blocks, {idle} never routed to")
    say(f"routed   {median:,} tokens per expert (median), {int(counts.min()):,} at least")
    if len(by_domain.domains) > 1:
        table("Text", ("domain", "tokens"), [(name, f"{by_domain.of(name).n_tokens:,}") for name in by_domain.domains])


@dataclass(frozen=True)
class Choice:
    """A plan, and what it leaves of each domain, where statistics tell."""

    plan: PruningPlan
    coverage: Coverage | None


def _choice(choice: Choice) -> None:
    _plan(choice.plan)
    if choice.coverage:
        draw_coverage(choice.coverage)


def draw_coverage(coverage: Coverage) -> None:
    """What stays of each domain, with a warning where it is little, and whether there was enough text."""
    rows = [
        (
            row.domain,
            f"{row.n_tokens:,}",
            f"{row.retained:.1%}",
            f"{row.lowest:.1%} ({row.lowest_block})",
            f"{row.stability.removed:.0%}" if row.stability else "-",
            f"{row.routed.least:,} / {row.routed.median:,}",
        )
        for row in coverage.domains
    ]
    columns = ("domain", "tokens", "retained", "lowest (block)", "halves agree", "tokens per expert, least / median")
    table("What stays of each domain, against experts chosen for it alone", columns, rows)
    for warning in coverage.warnings():
        say(styled("WARNING", "yellow"), f" {shown(warning)}")
    say(coverage.advice)


def _plan(plan: PruningPlan) -> None:
    say(f"{plan.summary} ({plan.method}, ratio {plan.ratio})")
    joint = JOINT.get(plan.scored_by)
    if what := joint.formula if joint else scored(plan.scored_by, plan.blend):
        say(f"scored by {what}")
    draw_note(plan)
    rows = [(str(block), f"{why['retained']:.1%}") for block, why in plan.why.items() if "retained" in why]
    table("Share of the score that stays", ("block", "retained"), rows)


def draw_note(plan: PruningPlan) -> None:
    """What is to be known of the plan's method."""
    if plan.note:
        say(styled(f"note: {plan.note}", "yellow"))


def draw_script(script: RewriteScript) -> None:
    """The files and what they save."""
    for file in script.files:
        say(f"{shown(file.path)}  {file.nbytes:,} bytes")
    say(f"{size(script.source_nbytes)} -> {size(script.nbytes)} ({script.nbytes / script.source_nbytes:.0%})")


def _dry_run(run: DryRun) -> None:
    for file in run.script.files:
        rows = [
            (tensor.name, "x".join(map(str, reversed(tensor.shape))), type_name(tensor.type), f"{tensor.nbytes:,}")
            for tensor in file.tensors
        ]
        table(shown(file.path), ("tensor", "shape", "type", "bytes"), rows)
        say(f"header {len(file.header):,} bytes\n")
    draw_script(run.script)
    for made in run.quantized:
        draw_variant(made)


def draw_verification(verification: Verification) -> None:
    """What holds and what does not."""
    for check in verification.checks:
        draw_check(check)


def draw_check(check: Check) -> None:
    """Whether it holds."""
    mark = styled("holds", "green") if check.ok else styled("FAILS", "red")
    say(mark, f" {check.name}: {shown(check.detail)}")


def _quantized(made: Quantized) -> None:
    _draw_notes(made)
    rows = [(kind, size(nbytes)) for kind, nbytes in made.type_nbytes.items()]
    table("Tensor data by type", ("type", "bytes"), rows)
    for path in made.paths:
        say(shown(path))
    say(f"{made.nbytes:,} bytes")


def _draw_notes(made: Quantized) -> None:
    for warning in made.warnings:
        say(f"note: {shown(warning)}")
    if made.fallbacks:
        first = made.fallbacks[0]
        say(
            f"note: tensors whose rows do not fit their type: {len(made.fallbacks)}, first {first.name} with rows of "
            f"{first.width}: {first.given} for {first.wanted}"
        )


def draw_variant(made: Quantized) -> None:
    """One of several quantised files, in two lines, and what deserves a note."""
    _draw_notes(made)
    say(f"{', '.join(map(shown, made.paths))}  {made.nbytes:,} bytes")
    say(f"  {_types(made.type_nbytes)}")


def _variants(variants: Variants) -> None:
    for made in variants.quantized:
        draw_variant(made)


def _plain_domains(statistics: DomainStatistics) -> dict[str, Any]:
    domains = {domain: _plain_statistics(statistics.of(domain)) for domain in statistics.domains}
    return {**_plain_statistics(statistics.total), "domains": domains}


def _plain_statistics(statistics: ExpertStatistics) -> dict[str, Any]:
    return {
        "n_tokens": statistics.n_tokens,
        "n_chunks": statistics.n_chunks,
        "blocks": {
            block: {name: values[row].tolist() for name, values in statistics.values.items()}
            for row, block in enumerate(statistics.blocks)
        },
    }


def _plain_choice(choice: Choice) -> dict[str, Any]:
    plan: dict[str, Any] = json.loads(choice.plan.to_json())
    return {**plan, "coverage": plain_coverage(choice.coverage) if choice.coverage else None}


def plain_coverage(coverage: Coverage) -> dict[str, Any]:
    """All of it, with what follows from it."""
    return {**asdict(coverage), "warnings": coverage.warnings(), "factor": coverage.factor, "advice": coverage.advice}


def _plain_script(script: RewriteScript) -> dict[str, Any]:
    return {
        "nbytes": script.nbytes,
        "source_nbytes": script.source_nbytes,
        "n_parameters": script.n_parameters,
        "files": [_plain_file(file) for file in script.files],
    }


def plain_verification(verification: Verification) -> dict[str, Any]:
    """The proof as JSON has it."""
    return {"ok": verification.ok, "checks": [asdict(check) for check in verification.checks]}


def _plain_file(file: OutputFile) -> dict[str, Any]:
    offset, tensors = len(file.header), []
    for tensor in file.tensors:
        record = {"name": tensor.name, "shape": tensor.shape, "type": type_name(tensor.type)}
        tensors.append(record | {"offset": offset, "nbytes": tensor.nbytes})
        offset += tensor.padded(file.alignment)
    return {"path": str(file.path), "nbytes": file.nbytes, "header_nbytes": len(file.header), "tensors": tensors}


DRAWERS: Drawers = {
    Inspection: _inspection,
    DomainStatistics: _statistics,
    PruningPlan: _plan,
    Choice: _choice,
    Coverage: draw_coverage,
    RewriteScript: draw_script,
    DryRun: _dry_run,
    Verification: draw_verification,
    Quantized: _quantized,
    Variants: _variants,
}
PLAIN: Plain = {
    DomainStatistics: _plain_domains,
    PruningPlan: lambda plan: json.loads(plan.to_json()),
    Choice: _plain_choice,
    Coverage: plain_coverage,
    RewriteScript: _plain_script,
    DryRun: lambda run: _plain_script(run.script) | {"quantized": [asdict(made) for made in run.quantized]},
    Verification: plain_verification,
}
