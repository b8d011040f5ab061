"""What a reader must know before trusting the result: sentences that follow from the facts."""

from collections.abc import Iterator

from ggufreap.limits import STABLE
from ggufreap.reporting.facts import Report

_WEAK = {
    "random": "The experts were chosen at random: a control, not a model to use.",
    "weight_norm": "The experts were chosen by their weights alone; no text was run, and nothing ties them to a use.",
    "frequency": "The experts were chosen by how often they are used alone, which costs more than REAP at one ratio.",
    "imatrix": "The experts were chosen from an importance matrix alone, which does not know what they contribute.",
}


def caveats_of(report: Report) -> Iterator[str]:
    """The automatic caveats, then the caller's notes."""
    yield from _proof(report)
    yield from (text for method, text in _WEAK.items() if report.plan.method.startswith(method))
    yield from _calibration(report)
    yield from _domains(report)
    yield from _rivals(report)
    if report.model.n_mtp_block and report.plan.mtp == "mirror":
        yield "The MTP blocks were cut like the last ordinary block: decoding never runs them, so nothing was measured."
    yield from report.notes


def _proof(report: Report) -> Iterator[str]:
    if report.verification is None:
        yield "Not verified: whether the file is what the plan says was not proved; run ggufreap verify."
    elif not report.verification.ok:
        yield "Verification failed: the file is not what the plan says; do not use it."
    if not any(variant.overall or variant.domains for variant in report.variants):
        yield "What the pruning costs was not measured against the unpruned model."


def _calibration(report: Report) -> Iterator[str]:
    calibration = report.calibration
    if calibration is None:
        return
    if calibration.built_in:
        yield "Calibrated on the text that comes with the program, which is for trying out only."
    if calibration.split_half is not None and calibration.split_half < STABLE:
        yield (
            f"Two halves of the calibration text agree on {calibration.split_half:.0%} of the removed experts, "
            f"{STABLE:.0%} are wanted: "
            "more text would change the choice."
        )
    if calibration.routed and calibration.routed.never:
        total = report.model.n_expert_before * report.model.n_moe_block
        yield (
            f"{calibration.routed.never:,} of {total:,} experts were never reached by the calibration text; "
            "nothing is known of them."
        )


def _domains(report: Report) -> Iterator[str]:
    """Domains that only one of calibration and measurement knows."""
    calibrated = {source.domain for source in report.calibration.sources if source.domain} if report.calibration else ()
    measured = {meters.domain for variant in report.variants for meters in variant.domains}
    if calibrated and (blind := sorted(measured.difference(calibrated))):
        yield f"Measured but not part of the calibration text: {', '.join(blind)}."
    if measured and (unseen := sorted(set(calibrated) - measured)):
        yield f"Part of the calibration text but not measured: {', '.join(unseen)}."
    if calibrated:
        yield f"Whatever is unlike its calibration text ({', '.join(sorted(calibrated))}) may have suffered more."


def _rivals(report: Report) -> Iterator[str]:
    for rival in report.equal_size:
        if rival.kld.value < rival.kld_pruned.value:
            yield (
                f"At about the same size, the unpruned model as {rival.type} is nearer to the original than "
                f"{rival.variant}."
            )
