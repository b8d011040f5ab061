"""Pictures of what is lost and gained: coverage, KLD, size, speed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ggufreap.reporting.canvas import COLOURS, INK, MARKERS, MUTED, canvas
from ggufreap.reporting.facts import Candidate, Report
from ggufreap.reporting.formats import written
from ggufreap.reporting.summary import mean_kld

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def coverage(report: Report) -> "Figure":
    """The share of each domain's score that stays: the mean of the blocks and the worst block."""
    rows = sorted(report.coverage, key=lambda row: row.mean)
    figure, axes = _rows([row.domain for row in rows])
    for place, row in enumerate(rows):
        axes.hlines(place, 100 * row.worst, 100 * row.mean, color=MUTED, linewidth=2)
    places = range(len(rows))
    axes.plot([100 * row.mean for row in rows], places, "o", color=COLOURS[0], markersize=8, label="mean of the blocks")
    axes.plot([100 * row.worst for row in rows], places, "D", color=COLOURS[4], markersize=6, label="worst block")
    axes.set_xlabel("share of the domain's score that stays, %")
    _legend(figure, 2)
    return figure


def curve(report: Report) -> "Figure":
    """KLD over the ratio: the chosen method by domain, others by their mean."""
    figure, axes = canvas(height=3.8)
    chosen = [candidate for candidate in report.curve if candidate.method == report.plan.method]
    domains = dict.fromkeys(meters.domain for candidate in chosen for meters in candidate.domains)
    for index, domain in enumerate(domains):
        points = [
            (candidate.ratio, meters.kld.value)
            for candidate in chosen
            for meters in candidate.domains
            if meters.domain == domain
        ]
        _line(axes, points, COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)], domain, 1.3)
    _line(axes, _means(chosen), INK, "", "mean", 2.6)
    others = sorted({candidate.method for candidate in report.curve} - {report.plan.method})
    for index, method in enumerate(others):
        means = _means([candidate for candidate in report.curve if candidate.method == method])
        _line(axes, means, MUTED, MARKERS[index % len(MARKERS)], f"{method}, mean", 1.3, "--")
    axes.axvline(
        100 * (1 - report.model.n_expert_after / report.model.n_expert_before),
        color=MUTED,
        linewidth=6,
        alpha=0.4,
        label="chosen",
    )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: "")
    axes.set_xlabel("experts removed, %")
    axes.set_ylabel("mean KLD, nats")
    axes.grid(axis="y")
    _legend(figure, 4)
    return figure


def _means(candidates: Sequence[Candidate]) -> list[tuple[float, float]]:
    means = [(candidate.ratio, mean_kld(candidate.overall, candidate.domains)) for candidate in candidates]
    return [(ratio, kld) for ratio, kld in means if kld is not None]


def _line(
    axes: "Axes",
    points: Sequence[tuple[float, float]],
    colour: str,
    marker: str,
    label: str,
    width: float,
    line: str = "-",
) -> None:
    shown = sorted(
        (100 * ratio, kld) for ratio, kld in points if kld > 0
    )  # nothing removed costs nothing: no logarithm
    if shown:
        axes.plot(*zip(*shown, strict=True), line, color=colour, marker=marker, label=label, linewidth=width)


def losses(report: Report) -> "Figure":
    """Mean KLD of every variant by domain, with two standard errors."""
    measured = [variant for variant in report.variants if variant.domains]
    domains = list(dict.fromkeys(meters.domain for variant in measured for meters in variant.domains))[::-1]
    figure, axes = _rows(domains)
    for index, variant in enumerate(measured):
        shift = 0.5 * ((len(measured) - 1) / 2 - index) / len(measured)
        axes.errorbar(
            [meters.kld.value for meters in variant.domains],
            [domains.index(meters.domain) + shift for meters in variant.domains],
            xerr=[2 * (meters.kld.stderr or 0.0) for meters in variant.domains],
            fmt=MARKERS[index % len(MARKERS)],
            color=COLOURS[index % len(COLOURS)],
            label=variant.name,
        )
    axes.set_xlim(left=0)
    axes.set_xlabel("mean KLD to the unpruned model, nats")
    _legend(figure, 1 if len(measured) < 3 else 2)
    return figure


def sizes(report: Report) -> "Figure":
    """The bytes of the unpruned model and of every file made from it."""
    before = report.original.nbytes if report.original else report.model.nbytes_before
    bars = [("original", before, MUTED)]
    bars += [(variant.name, variant.itself.nbytes, COLOURS[0]) for variant in report.variants]
    bars += [(f"unpruned {rival.type}", rival.nbytes, COLOURS[1]) for rival in report.equal_size]
    if not report.variants:
        bars.append(("pruned", report.model.nbytes_after, COLOURS[0]))
    bars.reverse()
    figure, axes = _rows([name for name, _, _ in bars])
    axes.barh(range(len(bars)), [nbytes for _, nbytes, _ in bars], 0.6, color=[colour for *_, colour in bars])
    for place, (_, nbytes, _) in enumerate(bars):
        axes.annotate(written(nbytes, "size"), (nbytes, place), xytext=(4, 0), textcoords="offset points", va="center")
    axes.set_xlim(right=1.25 * max(nbytes for _, nbytes, _ in bars))
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    return figure


def speeds(report: Report) -> "Figure":
    """Tokens per second by batch size, prompt above and generation below."""
    from matplotlib.ticker import ScalarFormatter

    assert report.original is not None  # `plots` asks for this picture only then
    figure, first = canvas(height=4.6)
    figure.delaxes(first)
    named = [("original", report.original), *((variant.name, variant.itself) for variant in report.variants)]
    for axes, field, title in zip(
        figure.subplots(2, 1, sharex=True), ("pp", "tg"), ("prompt", "generation"), strict=True
    ):
        for index, (name, subject) in enumerate(named):
            points = [(speed.batch, getattr(speed, field)) for speed in subject.speed if getattr(speed, field)]
            if points:
                batches, measured = zip(*points, strict=True)
                axes.errorbar(
                    batches,
                    [each.value for each in measured],
                    yerr=[2 * (each.stderr or 0.0) for each in measured],
                    marker=MARKERS[index % len(MARKERS)],
                    color=MUTED if index == 0 else COLOURS[(index - 1) % len(COLOURS)],
                    label=name,
                )
        axes.set_ylim(bottom=0)
        axes.set_ylabel(f"{title}, tokens/s")
        axes.grid(axis="y")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({speed.batch for _, subject in named for speed in subject.speed}))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set_xlabel("sequences at once")
    _legend(figure, 1 if len(named) < 3 else 2)
    return figure


def _rows(names: Sequence[str]) -> tuple["Figure", "Axes"]:
    """A plot with a row per name, the last one on top."""
    figure, axes = canvas(height=1.2 + 0.3 * len(names))
    axes.set_yticks(range(len(names)), labels=[_short(name) for name in names])
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    return figure, axes


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:13]}…{name[-14:]}"


def _legend(figure: "Figure", columns: int) -> None:
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        handles |= dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), [_short(name) for name in handles], loc="outside upper center", ncols=columns)
