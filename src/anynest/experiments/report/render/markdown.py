"""A document as GitHub's Markdown, its pictures in files beside it."""

import re
from html import escape

from .document import (
    Block,
    Cell,
    Code,
    Document,
    Fold,
    Heading,
    Items,
    Pictures,
    Table,
    Text,
    Tiles,
)

FOLDER = "report-figures"  # beside the page


def render(document: Document) -> str:
    """The file's text."""
    blocks = [f"# {plain(document.title)}", *map(block_markdown, document.blocks)]
    return "\n\n".join(blocks) + "\n"


def plain(text: str) -> str:
    r"""Text that says what it says, whatever it says.

    >>> plain("a_b *c* <b> [x](y) | `d`")
    'a_b \\*c\\* &lt;b&gt; \\[x\\](y) \\| \\`d\\`'
    >>> plain("# a"), plain("1. a"), plain("1 a")
    ('\\# a', '1\\. a', '1 a')
    """
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"([\\`*\[\]|~$])", r"\\\1", text)
    text = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)
    text = re.sub(r"^(#+|[+-]|\d+(?=[.)]))([.)]?\s)", start, text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def start(found: re.Match[str]) -> str:
    """What would begin a heading or a list."""
    mark, rest = found.groups()
    return f"{mark}\\{rest}" if mark.isdigit() else f"\\{mark}{rest}"


def block_markdown(block: Block) -> str:
    """One block."""
    match block:
        case Heading():
            return f"{'#' * block.level} {plain(block.text)}"
        case Text():
            return plain(block.text)
        case Items():
            return "\n".join(f"- {plain(text)}" for text in block.texts)
        case Code():
            return "\n".join(f"    {line}" for line in block.text.splitlines())
        case Tiles():
            return ", ".join(f"**{plain(t.value)}** {plain(t.label)}" for t in block.tiles)
        case Table():
            return table_markdown(block)
        case Pictures():
            links = [f"![{plain(p.title)}]({FOLDER}/{p.name}.svg)" for p in block.panels]
            return "\n".join([*links, "", plain(block.caption)])
        case Fold():
            return fold_markdown(block)


def table_markdown(table: Table) -> str:
    """A group's title is a row of its own, for Markdown's tables have no groups."""
    width = len(table.head)
    lines = [plain(table.caption), "", line_of([plain(text) for text in table.head])]
    lines.append(line_of(["---" if i < table.words else "---:" for i in range(width)]))
    for group in table.groups:
        if group.title:
            note = f"<br>{plain(group.note)}" if group.note else ""
            lines.append(line_of([f"**{plain(group.title)}**{note}", *[""] * (width - 1)]))
        lines += [line_of([cell_markdown(cell) for cell in row]) for row in group.rows]
    return "\n".join(lines)


def line_of(texts: list[str]) -> str:
    """
    >>> line_of(["a", "b"])
    '| a | b |'
    """
    return f"| {' | '.join(texts)} |"


def cell_markdown(cell: Cell) -> str:
    """A number with its notes below."""
    text = plain(cell.text)
    text = f"**{text}**" if cell.strong else f"<ins>{text}</ins>" if cell.below else text
    return "<br>".join([text, *map(plain, cell.notes)])


def fold_markdown(block: Fold) -> str:
    """Within ``<summary>`` there is HTML alone."""
    badge = f"<b>{escape(block.tone)}</b>: " if block.tone else ""
    title, note = (re.sub(r"\s+", " ", escape(text)) for text in (block.title, block.note))
    summary = f"{badge}{title}{f' ({note})' if note else ''}"
    inner = "\n\n".join(map(block_markdown, block.blocks))
    return f"<details><summary>{summary}</summary>\n\n{inner}\n\n</details>"
