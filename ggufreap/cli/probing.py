"""What the verbs that watch a model work do with their flags."""

import argparse

from ggufreap.cli.common import Result, Verbs, progress
from ggufreap.cli.engine import engine_of_fixed_length, engine_that_answers, engine_that_writes, settings
from ggufreap.cli.flags import argument, at_least, model


def _run_probe(options: argparse.Namespace) -> Result:
    from ggufreap import verbs
    from ggufreap.evaluation.probes import TEMPERATURES

    probes = verbs.probe(
        options.model,
        reference=options.reference,
        plan=options.plan,
        prompts=options.prompts,
        n_predict=options.n_predict,
        temperatures=options.temp or TEMPERATURES,
        seed=options.seed,
        chat_template=not options.no_chat_template,
        settings=settings(options),
        progress=progress(),
    )
    return probes, 0


def _run_tasks(options: argparse.Namespace) -> Result:
    from ggufreap import verbs

    files = {name: getattr(options, name) for name in ("hellaswag", "winogrande", "multiple_choice", "jsonl")}
    report = verbs.tasks(
        options.model,
        **files,
        n=options.n,
        reference=options.reference,
        plan=options.plan,
        settings=settings(options),
        progress=progress(),
    )
    return report, 0


def _run_bench(options: argparse.Namespace) -> Result:
    from ggufreap import verbs

    report = verbs.bench(
        options.model,
        reference=options.reference,
        n_prompt=options.n_prompt,
        n_gen=options.n_gen,
        parallel=options.parallel,
        repetitions=options.repetitions,
        settings=settings(options),
        progress=progress(),
    )
    return report, 0


_REFERENCE = argument("--reference", metavar="BASE", help="the unpruned GGUF file, as control")


def _control(command: argparse.ArgumentParser) -> None:
    """What the model is compared with."""
    group = command.add_argument_group("control").add_mutually_exclusive_group()
    group.add_argument("--reference", metavar="BASE", help="the unpruned GGUF file")
    group.add_argument("--plan", metavar="P.json", help="judge MODEL as this plan would prune it, against MODEL itself")


def _questions(command: argparse.ArgumentParser) -> None:
    """The file of questions."""
    group = command.add_argument_group("questions, one of")  # an exclusive group makes a usage line too long
    group.add_argument("--hellaswag", metavar="FILE", help="text, six lines per question, as llama-perplexity reads it")
    group.add_argument("--winogrande", metavar="FILE", help="CSV, as llama-perplexity reads it")
    group.add_argument("--multiple-choice", metavar="FILE", help="binary, as llama-perplexity reads it")
    group.add_argument("--jsonl", metavar="FILE", help="an object per line: context or question, choices, answer")


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a temperature from 0 to 100")
    return value


_COUNTS = at_least(1)


def _counts(text: str) -> list[int]:
    return [_COUNTS(part) for part in text.split(",")]


VERBS: Verbs = {
    "probe": (
        _run_probe,
        "let a pruned model write, and count loops, endless answers and changed languages",
        (
            model,
            _control,
            argument("--prompts", metavar="FILE", help="a prompt per line, or .jsonl (24 that come with ggufreap)"),
            argument("--no-chat-template", action="store_true", help="give the prompts as plain text"),
            argument("-n", "--n-predict", type=at_least(1), default=256, metavar="N", help="tokens per answer (256)"),
            argument("--temp", type=_temperature, action="append", metavar="T", help="repeatable (0 and 0.2)"),
            argument("-s", "--seed", type=at_least(0), metavar="N", help="of the sampling (0)"),
            engine_that_writes,
        ),
    ),
    "tasks": (
        _run_tasks,
        "answer multiple-choice questions by log-likelihood",
        (
            model,
            _control,
            _questions,
            argument("--n", "-n", type=at_least(1), metavar="N", help="this many questions at random (all)"),
            engine_that_answers,
        ),
    ),
    "bench": (
        _run_bench,
        "measure tokens per second, as llama-bench does",
        (
            model,
            _REFERENCE,
            argument("-p", "--n-prompt", type=at_least(0), default=512, metavar="N", help="tokens to read (512)"),
            argument("-n", "--n-gen", type=at_least(0), default=128, metavar="N", help="tokens to write (128)"),
            argument("-np", "--parallel", type=_counts, metavar="N,N", help="texts written at once (1,2,4)"),
            argument("-r", "--repetitions", type=at_least(1), default=5, metavar="N", help="of every test (5)"),
            engine_of_fixed_length,
        ),
    ),
}
