"""Importance matrices."""

import re
from collections.abc import Sequence

from ggufreap.console.draw import Drawers, say, styled, table
from ggufreap.imatrix import Coverage, EntrySummary
from ggufreap.showing import shown
from ggufreap.verbs import ImatrixReport, gap_note

_BLOCK = re.compile(r"^blk\.\d+\.")


def _report(report: ImatrixReport) -> None:
    summary = report.summary
    chunks = f"{summary.chunk_count:,} chunks of {summary.chunk_size:,} tokens" if summary.chunk_count else "not told"
    say(styled(f"{len(summary.entries)} weights", "bold"), f" data in {summary.share:.1%} of their matrices")
    say(f"from     {', '.join(map(shown, summary.datasets)) or 'no data set named'}\ntext     {chunks}\n")
    kinds: dict[str, list[EntrySummary]] = {}
    for entry in summary.entries:
        kinds.setdefault(_BLOCK.sub("", entry.weight), []).append(entry)
    columns = ("weight", "blocks", "matrices", "inputs", "rows", "empty", "energy")
    table("Weights, those of all blocks together", columns, [_row(kind, entries) for kind, entries in kinds.items()])
    if report.coverage:
        _coverage(report.coverage)
    for gap in report.filled:
        say(f"note: {shown(gap_note(gap))}")
    if report.path:
        say(shown(report.path))


def _row(kind: str, entries: Sequence[EntrySummary]) -> tuple[str, ...]:
    """Sizes and rows are the most of any block, matrices without data are counted, the energy is the mean."""
    mean = sum(entry.energy for entry in entries) / len(entries)
    numbers = (
        len(entries),
        max(entry.n_mat for entry in entries),
        max(entry.n_in for entry in entries),
        max(entry.most_rows for entry in entries),
        sum(entry.n_empty for entry in entries),
    )
    return (kind.removesuffix(".weight"), *(f"{number:,}" for number in numbers), f"{mean:.4g}")


def _coverage(coverage: Coverage) -> None:
    say(f"\nfits the model: {coverage.n_matched} of its weights")
    for what, names in (
        ("weights that would be quantised without it", coverage.missing),
        ("the same in MTP blocks, which no text reaches", coverage.missing_mtp),
        ("entries for weights that the model does not have", coverage.unknown),
    ):
        if names:
            say(f"{what}: {len(names)}, first {shown(names[0])}")


DRAWERS: Drawers = {ImatrixReport: _report}
