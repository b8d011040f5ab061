"""What the verbs that judge do with their flags."""

import argparse
from dataclasses import replace

from ggufreap.cli.asked import (
    DRAWN,
    FIT_SIZE,
    FITTED_ON,
    FORCE,
    HELD_OUT,
    JUDGED,
    MEASURED_ON,
    MEMORY,
    METHOD,
    NARROWER,
    WEIGHING,
    check_unused_fit,
)
from ggufreap.cli.common import Result, Verbs, command, progress
from ggufreap.cli.engine import engine_of_text, engine_that_masks, settings
from ggufreap.cli.flags import argument, at_least, model, out
from ggufreap.cli.generated import value
from ggufreap.options import fit
from ggufreap.options.data import Request
from ggufreap.options.fit import Fit
from ggufreap.options.judgement import HeldOut, Judgement
from ggufreap.options.output import Output
from ggufreap.options.target import DEFAULT_METHOD, Target

FAILED = 4


def _run_eval(options: argparse.Namespace) -> Result:
    from ggufreap import verbs

    evaluation = verbs.eval(
        options.model,
        value(options, HeldOut),
        reference=options.reference,
        kl_divergence_base=options.kl_divergence_base,
        kl_divergence=options.kl_divergence,
        force=value(options, Output).force,
        settings=settings(options),
        progress=progress(),
    )
    return evaluation, 0 if evaluation.ok else FAILED


def _run_preview(options: argparse.Namespace) -> Result:
    from ggufreap import verbs

    held_out = value(options, HeldOut)
    preview = verbs.preview(
        options.model,
        held_out,
        target=value(options, Target),
        stats=options.stats,
        ratios=options.ratios,
        data=value(options, Request),
        methods=options.methods,
        settings=settings(options),
        progress=progress(),
    )
    return preview, FAILED if held_out.fail_if and not preview.ok else 0


def _run_frontier(options: argparse.Namespace) -> Result:
    from ggufreap import verbs

    if value(options, Target).fit is None:
        check_unused_fit(options, fit.MEMORY)
    found = verbs.frontier(
        options.model,
        value(options, HeldOut),
        target=value(options, Target),
        fit=value(options, Fit),
        stats=options.stats,
        steps=options.steps,
        allow_requantize=options.allow_requantize,
        settings=settings(options),
        progress=progress(),
    )
    return found, 0


def _run_report(options: argparse.Namespace) -> Result:
    from ggufreap import verbs
    from ggufreap.reporting.facts import Reproduction
    from ggufreap.verbs.report import Measures

    questions = [(name, file) for name in TASKS for file in getattr(options, name)]
    account = verbs.report(
        options.model,
        options.pruned,
        options.plan,
        replace(value(options, Judgement), report=options.output),
        measures=Measures(options.probe, options.bench, tuple(questions)),
        stats=options.stats,
        imatrix=options.imatrix,
        reproduction=Reproduction(command()),
        force=value(options, Output).force,
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
    group.add_argument("--imatrix", metavar="FILE", help="importance matrix of the whole model, for --compare")


def _listed(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


VERBS: Verbs = {
    "eval": (
        _run_eval,
        "perplexity of a model, and what it lost against the original",
        (
            model,
            argument("--reference", metavar="BASE", help="the original, to compare with"),
            HELD_OUT,
            argument(
                "--kl-divergence-base",
                metavar="FNAME",
                help="write the log-probabilities there, as llama-perplexity does; with --kl-divergence read them",
            ),
            argument(
                "--kl-divergence", action="store_true", help="compare with --kl-divergence-base, which holds the text"
            ),
            FORCE,
            engine_of_text,
        ),
    ),
    "report": (
        _run_report,
        "measure pruned files, and write report.json, a page and a model card",
        (
            model,
            argument("pruned", nargs="+", metavar="PRUNED", help="pruned files; the first is compared with its rival"),
            argument("--plan", required=True, metavar="P.json", help="the plan they were made with"),
            argument(
                "--stats", metavar="S.npz", help="what calibrate saved: scores, coverage and the curve over ratios"
            ),
            out("folder"),
            FORCE,
            JUDGED,
            _tasks,
            engine_of_text,
        ),
    ),
    "frontier": (
        _run_frontier,
        "show the best unpruned and pruned file of every size, without making any",
        (
            model,
            argument("--stats", metavar="S.npz", help="what calibrate saved; with -f what pruning loses is measured"),
            argument("--steps", type=at_least(2), default=12, metavar="N", help="sizes to show (12)"),
            argument(
                "--allow-requantize", action="store_true", help="also types that weights would lose a second time in"
            ),
            METHOD,
            WEIGHING,
            FIT_SIZE,
            MEMORY,
            MEASURED_ON,
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
                default=(),
                metavar="R,R,...",
                help="fractions of the experts to remove (0.1,0.2,0.3,0.4,0.5)",
            ),
            argument(
                "--methods",
                type=_listed,
                default=[DEFAULT_METHOD],
                metavar="NAME,...",
                help=f"methods ({DEFAULT_METHOD})",
            ),
            WEIGHING,
            DRAWN,
            NARROWER,
            FITTED_ON,
            HELD_OUT,
            engine_that_masks,
        ),
    ),
}
