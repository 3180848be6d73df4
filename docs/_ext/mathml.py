"""Formulas as MathML, made by docutils at build time: readers load no script and no font."""

from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)


def to_mathml(tex: str, node: nodes.Element, display: bool) -> str:
    """The ``<math>`` element of a formula; a warning and the source where TeX is not understood."""
    if r"\\" in tex or "&" in tex:
        tex = rf"\begin{{aligned}}{tex}\end{{aligned}}"
    try:
        return latex2mathml.tex2mathml(tex, as_block=display)
    except Exception as error:  # docutils raises several kinds
        logger.warning("formula %r is not understood: %s", tex, error, location=node)
        return f"<code>{tex}</code>"


def visit_inline(self: Any, node: nodes.math) -> None:
    self.body.append(to_mathml(node.astext(), node, display=False))
    raise nodes.SkipNode


def visit_display(self: Any, node: nodes.math_block) -> None:
    self.body.append(f'<div class="formula">{to_mathml(node.astext(), node, display=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
