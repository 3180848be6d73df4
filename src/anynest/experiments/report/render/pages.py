"""Renders a document as one self-contained HTML page and as GitHub's Markdown.

The templates are in ``templates/``. The page loads nothing: no script, no font, no address. The
Markdown file links to its pictures in ``FOLDER``.
"""

import html
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from .document import Block, Document, Picture
from .drawing import inline

FOLDER = "report-figures"  # beside the Markdown file
# whatever a results file contains, the page loads and runs nothing
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def render_html(document: Document) -> str:
    """The page."""
    return render("report.html.jinja", document, autoescape=True)


def render_markdown(document: Document) -> str:
    """The Markdown file."""
    return render("report.md.jinja", document, autoescape=False)


def render(template: str, document: Document, autoescape: bool) -> str:
    """The template's text, with one newline at the end."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=autoescape,
        finalize=escape_html if autoescape else None,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        kind=block_kind, md=escape_markdown, one_line=one_line, svg=inline_svg
    )
    values = {"document": document, "policy": POLICY, "folder": FOLDER}
    return environment.get_template(template).render(values).strip() + "\n"


def escape_html(value: Any) -> Any:
    """Escapes a value that is no markup, quotes as ``html.escape`` does.

    >>> print(escape_html("<b> 'x'"), escape_html(Markup("<b>")))
    &lt;b&gt; &#x27;x&#x27; <b>
    """
    return value if hasattr(value, "__html__") else Markup(html.escape(str(value)))


def escape_markdown(text: str) -> str:
    r"""Escapes Markdown and HTML.

    >>> escape_markdown("a_b *c* <b> [x](y) | `d`")
    'a_b \\*c\\* &lt;b&gt; \\[x\\](y) \\| \\`d\\`'
    >>> escape_markdown("# a"), escape_markdown("1. a"), escape_markdown("1 a")
    ('\\# a', '1\\. a', '1 a')
    """

    def list_or_heading(found: re.Match[str]) -> str:
        mark, rest = found.groups()
        return f"{mark}\\{rest}" if mark.isdigit() else f"\\{mark}{rest}"

    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"([\\`*\[\]|~$])", r"\\\1", text)
    text = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)
    text = re.sub(r"^(#+|[+-]|\d+(?=[.)]))([.)]?\s)", list_or_heading, text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def one_line(text: str) -> str:
    """Escaped for HTML inside Markdown, which a line break would end."""
    return re.sub(r"\s+", " ", html.escape(text))


def block_kind(block: Block) -> str:
    """The name of a block's class, by which the templates choose."""
    return type(block).__name__


def inline_svg(picture: Picture) -> Markup:
    """A picture's SVG element for the page."""
    return Markup(inline(picture.svg, picture.name, html.escape(picture.title)))
