"""The verbs with the fields of their options as parameters, since a test names one or two of many."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from ggufreap import verbs
from ggufreap.options.judgement import HeldOut, Judgement
from ggufreap.options.output import Output
from ggufreap.options.quantisation import Quantisation
from ggufreap.options.target import Target
from ggufreap.reporting.facts import Reproduction
from ggufreap.verbs.report import Measures

# Where two options have a field of the same name, as the flags tell them apart.
NAMES = {
    "eval_file": "files",
    "eval_split": "split",
    "eval_chunks": "chunks",
    "eval_ctx_size": "ctx_size",
    "report_out": "report",
    "verification": "verify",
}


def taken(kind: Any, asked: dict[str, Any]) -> Any:
    """The options of this kind, made of what is asked for, which is taken out."""
    known = {field.name for field in fields(kind)}
    names = [name for name in asked if NAMES.get(name, name) in known]
    values = {NAMES.get(name, name): asked.pop(name) for name in names}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def prune(model: Any, data: Any = None, **asked: Any) -> verbs.Pruned:
    output, target = taken(Output, asked), taken(Target, asked)
    options = {"quantisation": taken(Quantisation, asked), "judgement": taken(Judgement, asked)}
    return verbs.prune(model, data, target=target, output=output, **options, **asked)


def plan(model: Any, **asked: Any) -> Any:
    target = taken(Target, asked)
    return verbs.plan(model, target, **asked)


def preview(model: Any, **asked: Any) -> verbs.Preview:
    held_out, target = taken(HeldOut, asked), taken(Target, asked)
    return verbs.preview(model, held_out, target=target, **asked)


def choose_ratio(model: Any, **asked: Any) -> verbs.Preview:
    held_out, target = taken(HeldOut, asked), taken(Target, asked)
    return verbs.choose_ratio(model, target, held_out, **asked)


def evaluate(model: Any, **asked: Any) -> verbs.Evaluation:
    held_out = taken(HeldOut, asked)
    return verbs.eval(model, held_out, **asked)


def report(model: Any, pruned: Any, plan: Any, out: str | Path | None = None, **asked: Any) -> verbs.Account:
    judgement = taken(Judgement, asked | {"report": out})
    asked = {name: value for name, value in asked.items() if NAMES.get(name, name) not in vars(judgement)}
    measured = {"with_probes": "probes", "with_speed": "speed", "questions": "questions"}
    measures = Measures(**{measured[name]: asked.pop(name) for name in list(asked) if name in measured})
    if "command" in asked:
        asked["reproduction"] = Reproduction(asked.pop("command"))
    return verbs.report(model, pruned, plan, judgement, measures=measures, **asked)
