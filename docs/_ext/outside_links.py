"""Links that are written for a checkout, made for the site.

A link to a file outside ``docs/`` of which the site has a page leads to the page; MyST offers any
other file as a download. A link whose text is a file's name gets the title of the page as its text.
In a docstring, ``docs/predict.md`` becomes a link to the page.
"""

import re

from sphinx.application import Sphinx

PAGES = {
    "../CHANGELOG.md": "changelog.md",
    "../CONTRIBUTING.md": "contributing.md",
    "../README.md": "index.md",
    "../examples/README.md": "examples.md",
    "../results/README.md": "results_files.md",
    "../results/report.md": "report.md",
}
LINK = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)")
NAMED = re.compile(r"\[(?:docs/)?[a-z_]+\.md\](?=\([^)]+\.md[^)]*\))")


def rewrite(text: str, depth: int = 0) -> str:
    """The text of a page as the site shows it. ``depth``: its folders below ``docs/``."""
    up = "../" * depth

    def target(match: re.Match[str]) -> str:
        page = PAGES.get(match[1].removeprefix(up))
        return f"]({up}{page}" if page else match[0]

    return NAMED.sub("[]", LINK.sub(target, text))


def on_source_read(app: Sphinx, name: str, content: list[str]) -> None:
    content[0] = rewrite(content[0], name.count("/"))


def on_docstring(
    app: Sphinx, kind: str, name: str, value: object, options: object, lines: list[str]
) -> None:
    lines[:] = [re.sub(r"(?<![/`])docs/([a-z_]+)\.md", r":doc:`/\1`", line) for line in lines]


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", on_source_read)
    app.connect("autodoc-process-docstring", on_docstring)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
