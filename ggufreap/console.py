"""The only room that draws: rich for tables, tqdm for progress, JSON for machines. Results go to standard output,
everything else to standard error.
"""

import io
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

from ggufreap.container import OutputFile, type_name
from ggufreap.demonstration import Demonstration
from ggufreap.inspection import Inspection
from ggufreap.planning import PruningPlan
from ggufreap.progress import Bar
from ggufreap.quantization import Quantized
from ggufreap.rewriting import RewriteScript
from ggufreap.statistics import ExpertStatistics
from ggufreap.verbs import Pruned
from ggufreap.verification import Verification


@dataclass(frozen=True)
class DryRun:
    """A script that was not executed: every tensor is listed, instead of the files alone."""

    script: RewriteScript


def progress(stage: str, total: int, unit: str, done: int = 0) -> AbstractContextManager[Bar]:
    """A tqdm bar with rate and time left; silent where standard error is not a terminal."""
    from tqdm import tqdm

    bar: AbstractContextManager[Bar] = tqdm(
        desc=stage, total=total, initial=done, unit=unit, unit_scale=True, dynamic_ncols=True, disable=None
    )
    return bar


def listen(verbosity: int) -> None:
    """Show the library's notes on standard error; with `-v` also what llama.cpp says."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Notes())
    logger = logging.getLogger("ggufreap")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.DEBUG if verbosity else logging.INFO)


class _Notes(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        mark = "WARNING: " if record.levelno >= logging.WARNING else ""
        return mark + record.getMessage()


def show(result: Any, as_json: bool) -> None:
    """Draw a verb's result as tables, or as one JSON object."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names need not be text, nor terminals know every letter
        sys.stdout.reconfigure(errors="backslashreplace")
    if as_json:
        sys.stdout.write(json.dumps(_plain(result), indent=2, ensure_ascii=False, default=str) + "\n")
    else:
        _DRAWERS[type(result)](result)
    sys.stdout.flush()


def size(nbytes: float) -> str:
    """Bytes as people read them, in the decimal units that disks are sold in."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(nbytes) < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.2f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.2f} TB"


def _plain(result: Any) -> Any:
    match result:
        case ExpertStatistics():
            return {
                "n_tokens": result.n_tokens,
                "n_chunks": result.n_chunks,
                "blocks": {
                    block: {name: values[row].tolist() for name, values in result.values.items()}
                    for row, block in enumerate(result.blocks)
                },
            }
        case PruningPlan():
            return json.loads(result.to_json())
        case DryRun():
            return _plain(result.script)
        case RewriteScript():
            return {
                "nbytes": result.nbytes,
                "source_nbytes": result.source_nbytes,
                "n_parameters": result.n_parameters,
                "files": [_plain_file(file) for file in result.files],
            }
        case Verification():
            return {"ok": result.ok, "checks": [asdict(check) for check in result.checks]}
        case Pruned():
            return {
                "files": [{"path": str(file.path), "nbytes": file.nbytes} for file in result.script.files],
                "source_nbytes": result.script.source_nbytes,
                "summary": result.plan.summary,
                "plan": result.plan_path,
                "statistics": result.statistics_path,
                "verification": _plain(result.verification) if result.verification else None,
                "imatrix": result.imatrix_path,
                "quantized": [asdict(made) for made in result.quantized],
            }
        case Demonstration():
            return asdict(result) | {"pruned": _plain(result.pruned)}
    return asdict(result)


def _plain_file(file: OutputFile) -> dict[str, Any]:
    offset, tensors = len(file.header), []
    for tensor in file.tensors:
        record = {"name": tensor.name, "shape": tensor.shape, "type": type_name(tensor.type)}
        tensors.append(record | {"offset": offset, "nbytes": tensor.nbytes})
        offset += tensor.padded(file.alignment)
    return {"path": str(file.path), "nbytes": file.nbytes, "header_nbytes": len(file.header), "tensors": tensors}


def _print(*things: Any, style: str | None = None) -> None:
    """Draw; what stands in names, paths and samples is never taken for markup."""
    from rich.console import Console

    Console(highlight=False, soft_wrap=True, markup=False, emoji=False).print(*things, style=style)


def _styled(text: str, style: str) -> Any:
    from rich.text import Text

    return Text(text, style)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    _print(title, style="italic")  # not the table's own title, which would be folded to the table's width
    _print(table)


def _inspection(found: Inspection) -> None:
    shards = f" in {found.n_shards} shards" if found.n_shards > 1 else ""
    groups = f", in {found.n_group} groups of which {found.n_group_used} are used" if found.n_group > 1 else ""
    mtp = f", and {found.n_mtp_block} MTP" if found.n_mtp_block else ""
    rest = found.nbytes - found.expert_nbytes
    _print(_styled(found.name, "bold"), f" {found.architecture}, {size(found.nbytes)}{shards}")
    _print(f"blocks   {found.n_block}, {found.n_moe_block} with routed experts{mtp}")
    _print(f"experts  {found.n_expert}, {found.n_used} used per token, {found.n_shared} shared{groups}")
    _print(f"bytes    {size(found.expert_nbytes)} in experts and routers, {size(rest)} in the rest")
    _print(f"types    experts: {_types(found.expert_types)}\n         rest: {_types(found.other_types)}\n")
    rows = [
        (
            row.ratio,
            f"{found.n_expert - row.n_keep} of {found.n_expert}",
            str(row.n_keep),
            size(row.nbytes),
            f"{row.nbytes / found.nbytes:.0%}",
        )
        for row in found.outlook
        if not row.refused
    ]
    _table("What pruning would leave", ("ratio", "removes", "keeps", "file", "of now"), rows)
    for row in found.outlook:
        if row.refused:
            _print(f"{row.ratio}   {row.refused}")


def _types(types: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size(nbytes)}" for name, nbytes in types.items())


def _statistics(statistics: ExpertStatistics) -> None:
    counts = statistics.values["count"]
    idle, median = int((counts == 0).sum()), int(sorted(counts.ravel())[counts.size // 2])
    _print(f"tokens   {statistics.n_tokens:,} in {statistics.n_chunks} chunks")
    _print(f"experts  {statistics.n_expert} in each of {len(statistics.blocks)} MoE blocks, {idle} never routed to")
    _print(f"routed   {median:,} tokens per expert (median), {int(counts.min()):,} at least")


def _plan(plan: PruningPlan) -> None:
    _print(f"{plan.summary} ({plan.method}, ratio {plan.ratio})")
    rows = [(str(block), f"{why['retained']:.1%}") for block, why in plan.why.items() if "retained" in why]
    _table("Share of the score that stays", ("block", "retained"), rows)


def _script(script: RewriteScript) -> None:
    for file in script.files:
        _print(f"{file.path}  {file.nbytes:,} bytes")
    _print(f"{size(script.source_nbytes)} -> {size(script.nbytes)} ({script.nbytes / script.source_nbytes:.0%})")


def _dry_run(run: DryRun) -> None:
    for file in run.script.files:
        rows = [
            (tensor.name, "x".join(map(str, reversed(tensor.shape))), type_name(tensor.type), f"{tensor.nbytes:,}")
            for tensor in file.tensors
        ]
        _table(str(file.path), ("tensor", "shape", "type", "bytes"), rows)
        _print(f"header {len(file.header):,} bytes\n")
    _script(run.script)


def _verification(verification: Verification) -> None:
    for check in verification.checks:
        mark = _styled("holds", "green") if check.ok else _styled("FAILS", "red")
        _print(mark, f" {check.name}: {check.detail}")


def _quantized(made: Quantized) -> None:
    for warning in made.warnings:
        _print(f"note: {warning}")
    if made.fallbacks:
        first = made.fallbacks[0]
        _print(
            f"note: tensors whose rows do not fit their type: {len(made.fallbacks)}, first {first.name} with rows of "
            f"{first.width}: {first.given} for {first.wanted}"
        )
    rows = [(kind, size(nbytes)) for kind, nbytes in made.type_nbytes.items()]
    _table("Tensor data by type", ("type", "bytes"), rows)
    for path in made.paths:
        _print(str(path))
    _print(f"{made.nbytes:,} bytes")


def _pruned(pruned: Pruned) -> None:
    if pruned.verification:
        _verification(pruned.verification)
    before, after = pruned.script.source_nbytes, pruned.script.nbytes
    _print(_styled(f"{pruned.plan.summary}:", "bold"), f"{size(before)} -> {size(after)} ({after / before:.0%})")
    for file in pruned.script.files:
        gone = "  (removed once it was quantised)" if pruned.quantized and not file.path.exists() else ""
        _print(f"{file.path}{gone}")
    if pruned.verification is None:
        _print("not verified")
    for made in pruned.quantized:
        _quantized(made)


def _demonstration(demo: Demonstration) -> None:
    _pruned(demo.pruned)
    before, after = demo.before, demo.after
    rows = [
        ("size", size(demo.pruned.script.source_nbytes), size(demo.pruned.script.nbytes)),
        ("held-out perplexity", f"{before.value:.2f} ± {before.stderr:.2f}", f"{after.value:.2f} ± {after.stderr:.2f}"),
    ]
    _print()
    _table("What was lost", ("", "original", "pruned"), rows)
    _print(_styled("\nThe pruned model continues", "bold"), f"{demo.prompt!r}:")
    _print(demo.sample)


_DRAWERS: Mapping[type, Callable[[Any], None]] = {
    Inspection: _inspection,
    ExpertStatistics: _statistics,
    PruningPlan: _plan,
    RewriteScript: _script,
    DryRun: _dry_run,
    Verification: _verification,
    Quantized: _quantized,
    Pruned: _pruned,
    Demonstration: _demonstration,
}
