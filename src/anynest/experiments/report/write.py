"""The report's files: made in memory, all of them, before the first is written."""

from pathlib import Path

from ...store import RunError, write_whole
from ...store.files import explain
from .build import Report
from .render import html, markdown
from .render.document import pictures_of
from .render.drawing import standalone

PAGE, TEXT = "report.html", "report.md"


def write_report(report: Report, out: Path) -> list[Path]:
    """Write the page, the Markdown file, and its pictures in a folder beside it; the two files'
    places. Each file is there whole or not at all, the pictures before what links to them.

    Errors: RunError, one line, where a file cannot be written.
    """
    document = report.document()
    folder = out / markdown.FOLDER
    files = {
        folder / f"{picture.name}.svg": standalone(picture.svg)
        for picture in pictures_of(document.blocks)
    }
    pages = {out / TEXT: markdown.render(document), out / PAGE: html.render(document)}
    try:
        (folder if files else out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(explain(error, out, started=False)) from error
    for path, text in {**files, **pages}.items():
        write_whole(path, text.encode())
    return list(pages)
