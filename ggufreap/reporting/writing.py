"""The report as files: all of them or none."""

from contextlib import ExitStack
from pathlib import Path

from ggufreap.errors import OutputError
from ggufreap.files import make_folder, replacing
from ggufreap.reporting.canvas import style
from ggufreap.reporting.card import MARKER, to_card
from ggufreap.reporting.document import SCHEMA, document_of, to_json
from ggufreap.reporting.facts import Report
from ggufreap.reporting.html import to_html
from ggufreap.reporting.plots import PLOTS, draw

# By what a file of an earlier report is known; any other file of that name is somebody's work.
_OURS = {
    ".json": SCHEMA.encode(),
    ".html": b'<meta name="generator" content="ggufreap">',
    ".md": MARKER.encode(),
    ".png": b"Software\0ggufreap",
}


def check_report(folder: Path) -> None:
    """Raise what `write_report` would raise for want of a library or of room of its own: asked before long work."""
    with style():
        names = ("report.json", "report.html", "README.md", *(f"{name}.png" for name in PLOTS))
    for path in (folder / name for name in names):
        if path.exists() and not _is_ours(path):
            raise OutputError(
                f"{path} was not made by ggufreap report and is not overwritten; move it away or choose another folder"
            )


def write_report(report: Report, folder: Path) -> tuple[Path, ...]:
    """Write report.json, report.html, README.md and the pictures into `folder`, which is made where it is missing.

    Raises OutputError where a file of such a name is not one of ours, or cannot be written; then nothing is changed.
    """
    document, pictures = document_of(report), draw(report)
    contents = {
        "report.json": to_json(report).encode(),
        "report.html": to_html(document, pictures).encode(),
        "README.md": to_card(document, pictures).encode(),
        **{f"{name}.png": picture.png for name, picture in pictures.items()},
    }
    paths = tuple(folder / name for name in contents)
    stale = [path for name in PLOTS.keys() - pictures if (path := folder / f"{name}.png").exists() and _is_ours(path)]
    check_report(folder)
    make_folder(folder, parents=True)
    with ExitStack() as stack:
        for path, content in zip(paths, contents.values(), strict=True):
            file = stack.enter_context(replacing(path))
            file.write(content)
            file.flush()  # a full disk shows before the first file is renamed
    for path in stale:  # a picture of what this report no longer says
        path.unlink()
    return paths


def _is_ours(path: Path) -> bool:
    try:
        return _OURS[path.suffix] in path.read_bytes()
    except OSError:
        return False
