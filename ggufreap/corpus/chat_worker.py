"""Chat templates in a process of their own: they are programs, and a GGUF comes from strangers.

Run by its path, so that nothing of ggufreap is imported and it answers after 0.1 s. Every line of JSON on standard
input is answered by one: first `{"templates": {name: source}, "tokens": {name: text}, "marks": [start, end],
"seconds", "nbytes"}`, then `{"template": name, "messages": [...], "tools": [...], "views": [...]}`. A view
`[n, generation_prompt, marked]` is the first n messages rendered, marked around what `{% generation %}` holds.
It dies when a line takes longer than `seconds` or more address space than `nbytes`.
Same environment as transformers' apply_chat_template (utils/chat_template_utils.py), but for the clock.
"""

import datetime
import faulthandler
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

OUT_OF_MEMORY = 3  # exit code
TODAY = datetime.datetime(2025, 1, 1, 12)  # what strftime_now says: the same model and text give the same tokens


class Environment(ImmutableSandboxedEnvironment):
    """A sandbox with what chat templates use; `marked` puts `marks` around what `{% generation %}` holds."""

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.marks, self.marked = ("", ""), False
        self.filters["tojson"] = _tojson
        # Chance has no place in it: the same model and text give the same tokens.
        self.filters["random"] = jinja2.filters.FILTERS["first"]
        self.globals["lipsum"] = _lipsum
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": TODAY.strftime,
            "dict": lambda *items, **named: dict(*items, **named),  # not the class itself
            "namespace": _Namespace,
        }


class _Generation(Extension):
    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> str:
        environment: Environment = self.environment  # type: ignore[assignment]  # no other has this extension
        start, end = environment.marks if environment.marked else ("", "")
        return f"{start}{caller()}{end}"


class _Namespace(Namespace):
    """Holds no `__html__` and the like, which Python calls past the sandbox."""

    def __init__(*args: Any, **named: Any) -> None:  # `self` is a name that templates may use
        values = dict(*args[1:], **named)
        for name in values:
            _refuse_underscore(name)
        Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


def _refuse_underscore(name: str) -> None:
    if name.startswith("_"):
        raise jinja2.TemplateError(f"a namespace holds no {name}")


def _lipsum(*_: Any, **__: Any) -> None:
    raise jinja2.TemplateError("lipsum writes by chance")


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: Any = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def render(environment: Environment, template: jinja2.Template, job: dict[str, Any]) -> list[str | None]:
    """Every view's text; of all but the first, None where the template refuses.

    Raises what jinja2 and the template raise.
    """
    texts: list[str | None] = []
    for n_messages, generation_prompt, marked in job["views"]:
        environment.marked = marked
        try:
            text = template.render(
                messages=job["messages"][:n_messages],
                tools=job["tools"] or None,
                documents=None,
                add_generation_prompt=generation_prompt,
            )
        except MemoryError:
            raise
        except Exception:
            if not texts:
                raise
            text = None
        texts.append(text)
    return texts


# --- the process itself -----------------------------------------------------------------------------------------------


def _main() -> None:
    environment, templates = Environment(), dict[str, jinja2.Template]()
    seconds, nbytes = 0.0, 0
    for line in sys.stdin:
        job = json.loads(line)
        if not templates:
            seconds, nbytes = job["seconds"], job["nbytes"]
            _limit_memory(nbytes)
        # A thread of C code: it ends the process even while Python is busy inside one operation.
        faulthandler.dump_traceback_later(seconds, exit=True)
        try:
            if templates:
                answer: dict[str, Any] = {"texts": render(environment, templates[job["template"]], job)}
            else:
                environment.marks = job["marks"]
                environment.globals |= job["tokens"]
                templates = {name: environment.from_string(source) for name, source in job["templates"].items()}
                answer = {}
            said = json.dumps(answer)
            if len(said) > nbytes // 8:  # the one who asked has to hold it too
                raise MemoryError
        except MemoryError:
            os._exit(OUT_OF_MEMORY)
        except Exception as error:
            said = json.dumps({"refused": str(error)[:1000] or type(error).__name__})
        sys.stdout.write(said + "\n")
        sys.stdout.flush()
        faulthandler.cancel_dump_traceback_later()


def _limit_memory(nbytes: int) -> None:
    with suppress(ImportError, ValueError, OSError):  # Windows has no such limits, macOS does not always take them
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (nbytes, nbytes))


if __name__ == "__main__":
    _main()
