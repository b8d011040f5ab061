"""Templates over `report.json`: no value gets onto a page but by its path in the document and a format.

A `Node` is a place in the document. It cannot be printed; a filter named like a format (formats.py) turns it into
text, so that a number without a path cannot be written by mistake.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ggufreap.reporting.document import Document
from ggufreap.reporting.formats import FORMATS, written

if TYPE_CHECKING:
    from jinja2 import Environment

Mark = Callable[[str, str, str], str]  # path, format, text -> what stands on the page


class Node:
    """A value of the document and where it stands: `model.name`, `files.0.sha256`."""

    def __init__(self, value: Any, path: str = "") -> None:
        self.raw, self.path = value, path

    def __getitem__(self, key: str | int) -> "Node":
        return Node(self.raw[key], f"{self.path}.{key}".lstrip("."))

    def __iter__(self) -> Iterator["Node"]:
        return (self[index] for index in range(len(self.raw)))

    def __len__(self) -> int:
        return len(self.raw)

    def __bool__(self) -> bool:
        return bool(self.raw)

    def __str__(self) -> str:
        raise TypeError(f"{self.path} is printed without a format")

    __html__ = __str__


def render(
    template: str,
    document: Document,
    mark: Mark,
    *,
    html: bool,
    filters: Mapping[str, Callable[[Node], str]] = MappingProxyType({}),
    **more: Any,
) -> str:
    """The page that `template` (a file of this folder) makes of the document."""
    environment = _environment(mark, html)
    environment.filters |= filters
    return environment.get_template(template).render(report=Node(document), **more)


def _environment(mark: Mark, html: bool) -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )

    def filter_of(name: str) -> Callable[[Node], str]:
        return lambda node: mark(node.path, name, written(node.raw, name))

    environment.filters |= {name: filter_of(name) for name in FORMATS}
    environment.filters["shaped"] = lambda node, shape: filter_of(shape.raw)(node)
    return environment
