"""The model card: a README.md as the Hugging Face Hub reads it, YAML in front and Markdown after."""

import math
import re
import shlex
from collections.abc import Iterator, Mapping

from ggufreap.reporting.document import Document
from ggufreap.reporting.pages import Node, render
from ggufreap.reporting.plots import Picture
from ggufreap.showing import shown

MARKER = "<!-- made by ggufreap report; it is written anew each time -->"
HUB = "https://huggingface.co/"
KEPT = "\n\t"  # in code
PICTURES = ("losses", "curve", "speeds", "saliency")
_UNQUANTISED = {"F32", "F16", "BF16"}
_LINK = re.compile(r"https?://[^\s<>\"'`\\]+|[\w.-]+")  # a page, or a file beside the card: no javascript:
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def to_card(document: Document, pictures: Mapping[str, Picture]) -> str:
    """The card of a report; `pictures` are those that lie beside it as NAME.png."""
    import yaml

    model, plan = document["model"], document["plan"]
    # One line per value: a line of dashes within a text would end the front matter for those who split by lines.
    front = {key: _one_line(value) for key, value in _front_matter(document)}
    ggufs = [file["name"] for file in document["files"] if file["name"].endswith(".gguf")]
    urls = [base["repo_url"] for base in model["base_models"] if base["repo_url"].startswith("https://")]
    page = render(
        "card.md.j2",
        document,
        lambda path, shape, text: _escaped(text),
        html=False,
        filters={"verbatim": lambda node: shown(re.sub(r"[`\s]+", " ", node.raw)), "fenced": _fenced},
        front_matter=yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=math.inf),
        marker=MARKER,
        title=_escaped(f"{model['name']} {plan['method'].upper().replace('_', '-')}-{plan['ratio']}"),
        base_url=re.sub(r"[\s()<>]", "", urls[0]) if urls else "",
        gguf=shlex.quote(shown(ggufs[0])) if ggufs else "",
        pictures={name: (picture.title, picture.caption) for name, picture in pictures.items()},
        shown=PICTURES,
    )
    return re.sub(r"\n{3,}", "\n\n", page)


def _front_matter(document: Document) -> Iterator[tuple[str, str | list[str]]]:
    """What the Hub files a model under (hub documentation, Model Cards)."""
    model, plan = document["model"], document["plan"]
    bases = [base["repo_url"].removeprefix(HUB).strip("/") for base in model["base_models"]]
    if bases := [base for base in bases if _REPOSITORY.fullmatch(base)]:
        yield "base_model", bases
        if relation := _relation(document):
            yield "base_model_relation", relation
    if model["license"]:
        yield "license", model["license"]
    if model["license_name"]:
        yield "license_name", model["license_name"]
    if _LINK.fullmatch(model["license_link"]):
        yield "license_link", model["license_link"]
    yield "library_name", "gguf"
    if document["publisher"]:
        yield "quantized_by", document["publisher"]
    yield "tags", ["gguf", "llama.cpp", "moe", "pruned", "expert-pruning", plan["method"]]
    sources = document["calibration"]["sources"] if document["calibration"] else []
    # A path of a text file looks like a repository; only data sets have a revision, subset or split.
    named = [source["name"] for source in sources if source["revision"] or source["subset"] or source["split"]]
    if datasets := [name for name in dict.fromkeys(named) if _REPOSITORY.fullmatch(name)]:
        yield "datasets", datasets


def _one_line(value: str | list[str]) -> str | list[str]:
    if isinstance(value, list):
        return [shown(" ".join(each.split())) for each in value]
    return shown(" ".join(value.split()))


def _relation(document: Document) -> str:
    """`quantized` or `finetune`: the Hub knows these, adapter and merge, and no word for pruned.

    Fewer bits go with the quantisations; at full precision a pruned model is listed as published REAP checkpoints are.
    """
    types = {file["type"] for file in document["files"] if file["name"].endswith(".gguf")}
    types |= {variant["itself"]["type"] for variant in document["variants"]}
    types.discard("")
    return ("finetune" if types <= _UNQUANTISED else "quantized") if types else ""


def _escaped(text: str) -> str:
    """Text that Markdown takes for text, also in a table's cell."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", shown(re.sub(r"\s+", " ", text)))


def _fenced(node: Node) -> str:
    """A block of code whose fence is longer than any in it."""
    ticks = max((len(run) for run in re.findall("`+", node.raw)), default=0)
    fence = "`" * max(3, ticks + 1)
    return f"{fence}\n{shown(node.raw.rstrip(), allowed=KEPT)}\n{fence}"
