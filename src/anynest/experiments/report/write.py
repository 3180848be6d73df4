"""Writes the report's files: all are made in memory before the first is written."""

from pathlib import Path

from ...store import RunError, write_whole
from ...store.files import explain
from .build import Report
from .render.document import pictures_of
from .render.drawing import standalone
from .render.pages import FOLDER, render_html, render_markdown

PAGE, TEXT = "report.html", "report.md"


def write_report(report: Report, out: Path) -> list[Path]:
    """Writes the page, the Markdown file and its pictures, each atomically, pictures first.

    Returns:
        The paths of the page and the Markdown file.

    Raises:
        RunError: If a file cannot be written.
    """
    document = report.document()
    folder = out / FOLDER
    files = {
        folder / f"{picture.name}.svg": standalone(picture.svg)
        for picture in pictures_of(document.blocks)
    }
    pages = {out / TEXT: render_markdown(document), out / PAGE: render_html(document)}
    try:
        (folder if files else out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(explain(error, out, started=False)) from error
    for path, text in {**files, **pages}.items():
        write_whole(path, text.encode())
    return list(pages)
