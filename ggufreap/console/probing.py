"""How a model's work is drawn: probes, tasks, speed."""

from dataclasses import asdict
from typing import Any

from ggufreap.console.draw import Drawers, Plain, say, table
from ggufreap.evaluation.probes import SIGNS, Probe, Probes
from ggufreap.evaluation.proportions import Share
from ggufreap.evaluation.speed import Speed, SpeedReport
from ggufreap.evaluation.tasks import TaskReport
from ggufreap.evaluation.tasks.scoring import Accuracy
from ggufreap.showing import shown
from ggufreap.units import size

PROMPT_CHARS = 50


def _share(share: Share | None) -> str:
    if share is None:
        return ""
    low, high = share.interval
    return f"{share.count} of {share.n}, {share.value:.0%} [{low:.0%}, {high:.0%}]"


def _probes(probes: Probes) -> None:
    say(shown(probes.model) + (f" against {shown(probes.control)}" if probes.control else ", without a control"))
    columns = ("", "answers", *(("control", "new") if probes.control else ()))
    for temperature in probes.temperatures:
        rows = []
        for sign in SIGNS if probes.control else SIGNS[:-1]:
            row = [sign, _share(probes.share(sign, temperature))]
            if probes.control:
                row += [_share(probes.control_share(sign, temperature)), str(probes.new(sign, temperature).count)]
            rows.append(row)
        table(f"Temperature {temperature:g}, at most {probes.n_predict} tokens, 95 % intervals", columns, rows)
    new = [(probe, signs) for probe in probes.probes if probes.control is not None and (signs := _new_signs(probe))]
    if new:
        say("What the control does not show:", style="italic")
    for probe, signs in new:
        say(f"{probe.temperature:g}  {_title(probe)}  {shown(signs)}")


def _new_signs(probe: Probe) -> str:
    known = probe.control_signs or {}
    return "; ".join(f"{sign}: {shown}" for sign, shown in probe.signs.items() if sign not in known)


def _title(probe: Probe) -> str:
    line = " ".join(probe.prompt.text.split())
    cut = line if len(line) <= PROMPT_CHARS else f"{line[:PROMPT_CHARS]}…"
    return f"{shown(probe.prompt.domain)}: {cut}" if probe.prompt.domain else cut


def _plain_probes(probes: Probes) -> dict[str, Any]:
    shares = {
        f"{temperature:g}": {
            sign: {
                "answers": _plain_share(probes.share(sign, temperature)),
                "control": _plain_share(probes.control_share(sign, temperature)),
                "new": probes.new(sign, temperature).count,
            }
            for sign in SIGNS
        }
        for temperature in probes.temperatures
    }
    return {"shares": shares, **asdict(probes)}


def _plain_share(share: Share | None) -> dict[str, Any] | None:
    if share is None:
        return None
    return {"count": share.count, "n": share.n, "share": share.value, "interval": share.interval}


def _tasks(report: TaskReport) -> None:
    say(f"{report.task}, {report.accuracy.share.n} questions")
    say(shown(report.model) + (f" against {shown(report.reference)}" if report.reference else ""))
    columns = ("", "accuracy", *(("reference", "lost", "won", "p (McNemar)") if report.reference else ()))
    rows = (("sum", report.accuracy), ("by length (acc_norm)", report.normalised))
    table("Log-likelihood of the right choice, 95 % intervals", columns, [(name, *_cells(each)) for name, each in rows])


def _cells(accuracy: Accuracy) -> list[str]:
    cells = [_share(accuracy.share)]
    if accuracy.p_value is not None:
        lost, won = str(accuracy.lost), str(accuracy.won)
        cells += [_share(accuracy.reference), lost, won, f"{accuracy.p_value:.3g}"]
    return cells


def _plain_tasks(report: TaskReport) -> dict[str, Any]:
    def plain(accuracy: Accuracy) -> dict[str, Any]:
        shares = {"share": _plain_share(accuracy.share), "reference": _plain_share(accuracy.reference)}
        return asdict(accuracy) | shares

    return asdict(report) | {"accuracy": plain(report.accuracy), "normalised": plain(report.normalised)}


def _speeds(report: SpeedReport) -> None:
    say(shown(report.model) + (f" against {shown(report.reference)}" if report.reference else ""))
    columns = ("test", "tokens/s", *(("reference", "of it") if report.reference else ()))
    pairs = zip(report.speeds, report.reference_speeds or [None] * len(report.speeds), strict=True)
    rows = []
    for speed, base in pairs:
        compared = [_rate(base), f"{speed.mean / base.mean:.0%}"] if base else []
        rows.append([speed.test, _rate(speed), *compared])
    table(f"Mean ± standard deviation of {len(report.speeds[0].samples)} runs", columns, rows)
    if report.memory is not None:
        before = f", {size(report.reference_memory)} of the reference" if report.reference_memory is not None else ""
        say(f"memory  {size(report.memory)}{before}, weights included")
    if report.reference:
        say("As many experts per token as before: what is computed per token stays, memory and its traffic shrink.")


def _rate(speed: Speed) -> str:
    return f"{speed.mean:.2f} ± {speed.deviation:.2f}"


def _plain_speeds(report: SpeedReport) -> dict[str, Any]:
    def plain(speeds: tuple[Speed, ...]) -> list[dict[str, Any]]:
        return [asdict(speed) | {"mean": speed.mean, "deviation": speed.deviation} for speed in speeds]

    return asdict(report) | {"speeds": plain(report.speeds), "reference_speeds": plain(report.reference_speeds)}


DRAWERS: Drawers = {Probes: _probes, TaskReport: _tasks, SpeedReport: _speeds}
PLAIN: Plain = {Probes: _plain_probes, TaskReport: _plain_tasks, SpeedReport: _plain_speeds}
