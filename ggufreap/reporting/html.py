"""One HTML file that opens from disk: style, pictures and all, and nothing that is fetched."""

from collections.abc import Mapping
from pathlib import Path

from ggufreap.reporting.document import Document
from ggufreap.reporting.pages import render
from ggufreap.reporting.plots import Picture
from ggufreap.showing import shown


def to_html(document: Document, pictures: Mapping[str, Picture]) -> str:
    """The page; every value carries its path in `report.json` as `data-json` and its format as `data-format`."""
    from markupsafe import Markup, escape

    def mark(path: str, shape: str, text: str) -> str:
        return Markup('<span data-json="{}" data-format="{}">{}</span>').format(path, shape, escape(text))

    svgs = {name: (Markup(picture.svg), picture.title, picture.caption) for name, picture in pictures.items()}
    css = Markup(Path(__file__).with_name("report.css").read_text(encoding="utf-8"))
    page = render("report.html.j2", document, mark, html=True, pictures=svgs, css=css)
    return shown(page, allowed="\n\t")  # names also stand in the title and in pictures
