"""No page may load anything from another host: scripts, styles, fonts, images, frames.

Links that a reader may follow are no loads. A foreign load ends the build.
"""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import SphinxError

FOREIGN = re.compile(r"\s*(https?:)?//", re.IGNORECASE)
IN_CSS = re.compile(r"(?:url\(|@import)\s*['\"]?\s*((?:https?:)?//[^'\")\s;]+)", re.IGNORECASE)
LOADS = {
    "script": ("src",),
    "img": ("src", "srcset"),
    "source": ("src", "srcset"),
    "iframe": ("src",),
    "embed": ("src",),
    "object": ("data",),
    "video": ("src", "poster"),
    "audio": ("src",),
    "track": ("src",),
    "image": ("href", "xlink:href"),
    "use": ("href", "xlink:href"),
}
LINKS_THAT_LOAD = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "modulepreload"}


class _Loads(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.foreign: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        loads = LOADS.get(tag, ())
        if tag == "link" and LINKS_THAT_LOAD & set(values.get("rel", "").lower().split()):
            loads = ("href",)
        self.foreign += [values[name] for name in loads if FOREIGN.match(values.get(name, ""))]
        self.foreign += IN_CSS.findall(values.get("style", ""))

    def handle_data(self, data: str) -> None:
        if self.lasttag == "style":
            self.foreign += IN_CSS.findall(data)


def foreign_urls(text: str, suffix: str) -> list[str]:
    """The addresses of other hosts that a page (``.html``) or a style sheet (``.css``) loads."""
    if suffix == ".css":
        return IN_CSS.findall(text)
    parser = _Loads()
    parser.feed(text)
    return parser.foreign


def in_site(folder: Path) -> Iterator[str]:
    """``FILE loads URL`` for each foreign load in a built site."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".html", ".css"):
            for url in foreign_urls(path.read_text(), path.suffix):
                yield f"{path.relative_to(folder)} loads {url}"


def on_finished(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        found = list(in_site(Path(app.outdir)))
        if found:
            raise SphinxError(
                "the site must load nothing from elsewhere, found: " + "; ".join(found)
            )


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("build-finished", on_finished)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
