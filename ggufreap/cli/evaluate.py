"""What the verbs that judge do with their flags."""

import argparse

from ggufreap.cli.common import Result, Verbs, command, progress
from ggufreap.cli.engine import engine_of_text, settings
from ggufreap.cli.flags import argument, at_least, model, out

FAILED = 4


def _run_eval(options: argparse.Namespace) -> Result:
    from ggufreap import verbs

    found = verbs.eval(
        options.model,
        files=options.file,
        reference=options.reference,
        kl_divergence_base=options.kl_divergence_base,
        kl_divergence=options.kl_divergence,
        chunks=options.chunks,
        fail_if=options.fail_if,
        settings=settings(options),
        progress=progress(),
    )
    return found, 0 if found.ok else FAILED


def _run_preview(options: argparse.Namespace) -> Result:
    from ggufreap import verbs

    found = verbs.preview(
        options.model,
        files=options.file,
        stats=options.stats,
        ratios=options.ratios,
        methods=options.methods,
        blend=options.blend,
        mtp=options.mtp,
        seed=options.seed,
        chunks=options.chunks,
        fail_if=options.fail_if,
        settings=settings(options),
        progress=progress(),
    )
    return found, FAILED if options.fail_if and not found.ok else 0


def _run_report(options: argparse.Namespace) -> Result:
    from ggufreap import verbs

    questions = [(name, file) for name in TASKS for file in getattr(options, name)]
    account = verbs.report(
        options.model,
        options.pruned,
        options.plan,
        options.output,
        files=options.file,
        chunks=options.chunks,
        stats=options.stats,
        compare=options.compare,
        imatrix=options.imatrix,
        with_probes=options.probe,
        with_speed=options.bench,
        questions=questions,
        fail_if=options.fail_if,
        command=command(),
        settings=settings(options),
        progress=progress(),
    )
    return account, 0 if account.ok else FAILED


TASKS = ("hellaswag", "winogrande", "multiple_choice", "jsonl")


def _tasks(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("what else is measured")
    for name in TASKS:
        flag = f"--{name.replace('_', '-')}"
        group.add_argument(
            flag, action="append", default=[], metavar="FILE", help="questions, as for tasks; repeatable"
        )
    group.add_argument("--probe", action="store_true", help="let the models write, and count loops")
    group.add_argument("--bench", action="store_true", help="tokens per second")
    group.add_argument("--compare", action="store_true", help="the unpruned model, quantised to the same size")
    group.add_argument("--imatrix", metavar="FILE", help="importance matrix of the whole model, for --compare")


def _listed(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def held_out(command: argparse.ArgumentParser) -> None:
    """The text that judges, and when it says no."""
    add = command.add_argument_group("held-out text").add_argument
    add(
        "-f",
        "--file",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="UTF-8 text that calibration has not seen, a domain each; repeatable, - is standard input",
    )
    add("--chunks", type=at_least(1), metavar="N", help="run at most this many chunks of each")
    add(
        "--fail-if",
        action="append",
        default=[],
        metavar="GATE",
        help="exit with 4 if so: worst_domain.kld>0.2, top1<0.9, domain.NAME.ppl_ratio>1.05; repeatable",
    )


VERBS: Verbs = {
    "eval": (
        _run_eval,
        "perplexity of a model, and what it lost against the original",
        (
            model,
            argument("--reference", metavar="BASE", help="the original, to compare with"),
            held_out,
            argument(
                "--kl-divergence-base",
                metavar="FNAME",
                help="write the log-probabilities there, as llama-perplexity does; with --kl-divergence read them",
            ),
            argument(
                "--kl-divergence", action="store_true", help="compare with --kl-divergence-base, which holds the text"
            ),
            engine_of_text,
        ),
    ),
    "report": (
        _run_report,
        "measure pruned files, and write report.json, a page and a model card",
        (
            model,
            argument("pruned", nargs="+", metavar="PRUNED", help="pruned files; the first is the one that is judged"),
            argument("--plan", required=True, metavar="P.json", help="the plan they were made with"),
            argument(
                "--stats", metavar="S.npz", help="what calibrate saved: scores, coverage and the curve over ratios"
            ),
            out("folder"),
            held_out,
            _tasks,
            engine_of_text,
        ),
    ),
    "preview": (
        _run_preview,
        "show what every ratio and method would cost, without writing a file",
        (
            model,
            argument("--stats", metavar="S.npz", help="what calibrate saved"),
            argument(
                "--ratios",
                type=_listed,
                default=["0.1", "0.2", "0.3", "0.4", "0.5"],
                metavar="R,R,...",
                help="fractions of the experts to remove (0.1,0.2,0.3,0.4,0.5)",
            ),
            argument("--methods", type=_listed, default=["reap"], metavar="NAME,...", help="saliency methods (reap)"),
            argument("--blend", metavar="HOW", help="how the domains of the statistics are weighed, as for plan"),
            argument("--mtp", choices=("mirror", "drop"), default="mirror", help="MTP blocks, for the size (mirror)"),
            argument("--seed", type=at_least(0), default=0, metavar="N", help="for the method random (0)"),
            held_out,
            engine_of_text,
        ),
    ),
}
