"""Pictures of what every expert is worth, and of the cut."""

from typing import TYPE_CHECKING

import numpy as np

from ggufreap.observation import Floats
from ggufreap.reporting.canvas import COLOURS, MAP, MUTED, canvas
from ggufreap.reporting.facts import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OCTAVES = 3  # at most an eighth to eight times the block's median has a colour of its own
_MULTIPLES = ("⅛", "¼", "½", "1", "2", "4", "8")
CROSSES = 2000  # above so many cells a cross per removed expert would be dust


def scores_of(report: Report) -> Floats:
    """Scores `[n_scored_blocks, n_expert]`; NaN for an expert that was never routed."""
    rows = [block.scores for block in report.plan.blocks if block.scores]
    return np.array([[np.nan if score is None else score for score in row] for row in rows])


def removed_of(report: Report) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """Whether an expert goes, `[n_scored_blocks, n_expert]`."""
    rows = [block for block in report.plan.blocks if block.scores]
    gone = np.ones((len(rows), report.model.n_expert_before), bool)
    for row, block in enumerate(rows):
        gone[row, list(block.keep)] = False
    return gone


def sorted_map(report: Report) -> "Figure":
    """Each block's experts by falling score, kept ones first, with the cut between."""
    scores, removed = scores_of(report), removed_of(report)
    order = np.lexsort((-np.nan_to_num(scores, nan=-np.inf), removed), axis=-1)
    figure = _heat_map(report, np.take_along_axis(_octaves(scores), order, axis=1), "expert, by score in its block")
    axes = figure.axes[0]
    cut = report.model.n_expert_after - 0.5
    axes.axvline(cut, color=COLOURS[4], linewidth=2.4)
    axes.annotate(
        "cut", (cut, 1), xycoords=("data", "axes fraction"), xytext=(0, 3), textcoords="offset points", ha="center"
    )
    return figure


def placed_map(report: Report) -> "Figure":
    """Every expert at its own number; removed ones are left blank."""
    scores, removed = scores_of(report), removed_of(report)
    figure = _heat_map(report, np.where(removed, np.nan, _octaves(scores)), "expert, by its number")
    if scores.size <= CROSSES:
        rows, columns = np.nonzero(removed)
        figure.axes[0].plot(columns, rows, "x", color=COLOURS[4], markersize=5, markeredgewidth=1.5)
    return figure


def _octaves(scores: Floats) -> Floats:
    """log2 of the score over its block's median; NaN where there is no score."""
    with np.errstate(divide="ignore", invalid="ignore"):
        reached = np.where(np.isnan(scores), np.nan, np.maximum(scores, 0))
        middle = np.array([[np.median(row[row > 0]) if (row > 0).any() else 1.0] for row in reached])
        octaves: Floats = np.clip(np.log2(reached / middle), -OCTAVES, OCTAVES)
    return octaves


def _heat_map(report: Report, values: Floats, label: str) -> "Figure":
    n_rows = len(values)
    figure, axes = canvas(height=min(4.6, 1.7 + 0.22 * n_rows))
    everything = np.abs(_octaves(scores_of(report)))  # both maps have the same colours
    spread = np.nanpercentile(everything, 98) if not np.isnan(everything).all() else OCTAVES
    reach = int(np.clip(np.ceil(spread), 1, OCTAVES))
    image = axes.imshow(values, MAP, aspect="auto", interpolation="none", vmin=-reach, vmax=reach)
    bar = figure.colorbar(image, ax=axes, location="bottom", aspect=40, fraction=0.06, pad=0.03)
    bar.set_ticks(range(-reach, reach + 1), labels=_MULTIPLES[OCTAVES - reach : OCTAVES + reach + 1])
    bar.set_label("score, as a multiple of the block's median")
    bar.outline.set_visible(False)
    axes.set_xlabel(label)
    _name_blocks(axes, [block.block for block in report.plan.blocks if block.scores])
    return figure


def _name_blocks(axes: "Axes", blocks: list[int]) -> None:
    step = max(1, -(-len(blocks) // 12))
    axes.set_yticks(range(0, len(blocks), step), labels=[str(block) for block in blocks[::step]])
    axes.set_ylabel("block")


def distributions(report: Report) -> "Figure":
    """Per block: range, middle half and median of the scores, and the best score that goes."""
    from matplotlib.ticker import MaxNLocator

    scores, removed = scores_of(report), removed_of(report)
    scores = np.where(scores > 0, scores, np.nan)  # a logarithmic axis has no place for others
    figure, axes = canvas()
    blocks = [block.block for block in report.plan.blocks if block.scores]
    width = min(9.0, 220 / len(blocks))
    for block, row, gone in zip(blocks, scores, removed, strict=True):
        if not (reached := row[~np.isnan(row)]).size:
            continue
        low, first, middle, third, high = np.percentile(reached, (0, 25, 50, 75, 100))
        axes.vlines(block, low, high, color=MUTED, linewidth=1)
        axes.vlines(block, first, third, color=COLOURS[0], linewidth=width)
        axes.plot(block, middle, "_", color="white", markersize=width, markeredgewidth=1.5)
        if not np.isnan(row[gone]).all():
            axes.plot(block, np.nanmax(row[gone]), "_", color=COLOURS[4], markersize=width + 4, markeredgewidth=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: "")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.05)
    axes.set_xlabel("block")
    axes.set_ylabel("score")
    axes.grid(axis="y")
    for colour, size, name in (
        (MUTED, 1, "all"),
        (COLOURS[0], 5, "middle half and median"),
        (COLOURS[4], 2, "best removed"),
    ):
        axes.plot([], [], color=colour, linewidth=size, label=name)
    figure.legend(loc="outside upper center", ncols=3)
    return figure
