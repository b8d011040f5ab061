"""Which pictures a report has; each is drawn once and becomes SVG for the page and PNG beside it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggufreap.reporting import loss_plots, saliency_plots
from ggufreap.reporting.canvas import png_of, style, svg_of
from ggufreap.reporting.facts import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Plot:
    """How a picture is drawn, and whether a report has what it takes."""

    title: str
    caption: str
    draw: Callable[[Report], "Figure"]
    applies: Callable[[Report], bool]


@dataclass(frozen=True)
class Picture:
    """A drawn plot: an `<svg>` element and the bytes of a PNG file."""

    title: str
    caption: str
    svg: str
    png: bytes


def _scored(report: Report) -> bool:
    return any(block.scores for block in report.plan.blocks)


PLOTS: Mapping[str, Plot] = {
    "losses": Plot(
        "Loss by domain",
        "How far each file's predictions moved from the unpruned model's, in each domain. Further left is better; "
        "the bars are two standard errors.",
        loss_plots.losses,
        lambda report: any(variant.domains for variant in report.variants),
    ),
    "curve": Plot(
        "Loss over the ratio",
        "What other ratios would have cost, domain by domain; the band marks the choice. The axis is logarithmic.",
        loss_plots.curve,
        lambda report: any(candidate.domains or candidate.overall for candidate in report.curve),
    ),
    "saliency": Plot(
        "What stays, by rank",
        "Each row is a block, each cell an expert, coloured by its score. Right of the line is what was removed. "
        "Blank cells were never used by the calibration text.",
        saliency_plots.sorted_map,
        _scored,
    ),
    "experts": Plot(
        "What stays, by number",
        "The same scores with every expert in its own place; removed experts are blank.",
        saliency_plots.placed_map,
        _scored,
    ),
    "distributions": Plot(
        "Scores in each block",
        "Where the best removed score lies far below the median, the cut was easy; where it comes close, it was not.",
        saliency_plots.distributions,
        _scored,
    ),
    "coverage": Plot(
        "Coverage by domain",
        "How much of what the experts do for a domain is done by experts that stay.",
        loss_plots.coverage,
        lambda report: bool(report.coverage),
    ),
    "sizes": Plot("Size", "The files on disk.", loss_plots.sizes, lambda report: True),
    "speeds": Plot(
        "Speed",
        "Tokens per second, with two standard errors; the number of active experts per token is unchanged by pruning.",
        loss_plots.speeds,
        lambda report: bool(report.original and any(variant.itself.speed for variant in report.variants)),
    ),
}


def draw(report: Report) -> dict[str, Picture]:
    """Every picture that the report has data for, in the order of PLOTS.

    Raises InputError where matplotlib is not installed.
    """
    pictures = {}
    with style():
        for name, plot in PLOTS.items():
            if plot.applies(report):
                figure = plot.draw(report)
                png = png_of(figure, f"ggufreap {report.version}")
                pictures[name] = Picture(plot.title, plot.caption, svg_of(figure), png)
    return pictures
