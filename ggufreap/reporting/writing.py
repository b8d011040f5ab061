"""The report as files: all of them or none."""

import json
import os
from pathlib import Path

from ggufreap.errors import OutputError
from ggufreap.files import (
    check_folder,
    check_free,
    claim,
    create,
    forced,
    make_folder,
    private_folder,
    publish,
    written_by,
)
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


@written_by
def check_report(folder: Path, model: str, plan: str = "") -> None:
    """Raise what `write_report` would raise for want of a library or of room of its own: asked before long work.

    `model` and `plan`: fingerprint and SHA-256, the latter where it is known yet. An earlier report may be replaced if
    it is of the same.
    """
    with style():
        paths = [
            folder / name for name in ("report.json", "report.html", "README.md", *(f"{name}.png" for name in PLOTS))
        ]
    check_folder(folder)
    if folder.is_dir():
        claim(*paths)
    for path in paths:
        if os.path.lexists(path) and not _is_ours(path) and not forced():
            raise OutputError(
                f"{path} was not made by ggufreap report and is not overwritten; move it away, choose another folder, "
                "or replace it with --force"
            )
    same = _is_of(folder / "report.json", model, plan)
    for path in paths:
        check_free(path, same)


@written_by
def write_report(report: Report, folder: Path) -> tuple[Path, ...]:
    """Write report.json, report.html, README.md and the pictures into `folder`, which is made where it is missing.

    Raises OutputError where a file of such a name is not one of ours, is a report on something else, or cannot be
    written; then nothing is changed.
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
    check_report(folder, report.model.fingerprint, report.plan.sha256)
    make_folder(folder, parents=True)
    claim(*paths)
    with private_folder(folder) as hidden:
        try:
            for name, content in contents.items():
                with create(hidden / name) as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"cannot write {folder / name}: {error.strerror}; free some space there") from None
        publish({hidden / path.name: path for path in paths}, lambda _: True)  # what is there was checked
    for path in stale:  # a picture of what this report no longer says
        path.unlink()
    return paths


def _is_of(path: Path, model: str, plan: str) -> bool:
    """Whether a report.json is about this model and plan."""
    try:
        report = json.loads(path.read_bytes())
        return report["model"]["fingerprint"] == model and plan in ("", report["plan"]["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _is_ours(path: Path) -> bool:
    try:
        return _OURS[path.suffix] in path.read_bytes()
    except OSError:
        return False
