"""A document as one page that needs nothing else: no script, no address, no font from outside."""

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
    Tile,
    Tiles,
)
from .drawing import inline
from .style import CSS

# whatever a results file says, the page loads and runs nothing
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def render(document: Document) -> str:
    """The page."""
    title = escape(document.title)
    body = "\n".join(map(block_html, document.blocks))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{CSS}</style>\n</head>\n<body>\n"
        f"<header><h1>{title}</h1></header>\n{contents(document)}\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def contents(document: Document) -> str:
    """Links to the headings, those of a section folded below it."""
    parts: list[tuple[Heading, list[Heading]]] = []
    for block in document.blocks:
        if isinstance(block, Heading):
            if block.level == 2:
                parts.append((block, []))
            else:
                parts[-1][1].append(block)
    items = []
    for heading, below in parts:
        inner = "".join(f"<li>{link(one)}</li>" for one in below)
        items.append(f"<li>{link(heading)}{f'<ul>{inner}</ul>' if inner else ''}</li>")
    return f'<nav aria-label="Contents"><ul>{"".join(items)}</ul></nav>'


def link(heading: Heading) -> str:
    """To a heading of this page."""
    return f'<a href="#{escape(heading.anchor)}">{escape(heading.text)}</a>'


def block_html(block: Block) -> str:
    """One block; every text of it escaped."""
    match block:
        case Heading():
            tag = f"h{block.level}"
            return f'<{tag} id="{escape(block.anchor)}">{escape(block.text)}</{tag}>'
        case Text():
            return f"<p{classes(['quiet'] * block.quiet)}>{escape(block.text)}</p>"
        case Items():
            return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in block.texts)}</ul>"
        case Code():
            return f"<pre><code>{escape(block.text)}</code></pre>"
        case Tiles():
            return f'<div class="tiles">{"".join(map(tile_html, block.tiles))}</div>'
        case Table():
            return table_html(block)
        case Pictures():
            return pictures_html(block)
        case Fold():
            return fold_html(block)


def tile_html(tile: Tile) -> str:
    """A number and what it counts."""
    tone = f" {escape(tile.tone)}" if tile.tone else ""
    return (
        f'<div class="tile{tone}"><strong>{escape(tile.value)}</strong> {escape(tile.label)}</div>'
    )


def table_html(table: Table) -> str:
    """In a box that scrolls sideways where the window is narrow."""
    head = "".join(
        f"<th{classes(column_classes(table, index))} scope=col>{escape(text)}</th>"
        for index, text in enumerate(table.head)
    )
    shown = f"<thead><tr>{head}</tr></thead>" if any(table.head) else ""
    bodies = []
    for group in table.groups:
        rows = []
        if group.title:
            note = f" <small>{escape(group.note)}</small>" if group.note else ""
            rows.append(
                f"<tr><th class=group colspan={len(table.head)} scope=rowgroup>"
                f"<span>{escape(group.title)}{note}</span></th></tr>"
            )
        for cells in group.rows:
            found = [cell_html(cell, table, index) for index, cell in enumerate(cells)]
            rows.append(f"<tr>{''.join(found)}</tr>")
        bodies.append("<tbody>" + "\n".join(rows) + "</tbody>")
    body = "\n".join(bodies)
    return (
        f"<figure><figcaption>{escape(table.caption)}</figcaption>\n"
        f'<div class="scroll"><table>{shown}\n{body}</table></div></figure>'
    )


def cell_html(cell: Cell, table: Table, index: int) -> str:
    """A number with its notes below; the first of a row is its heading."""
    found = column_classes(table, index)
    found += [name for name in ("strong", "below", "far") if getattr(cell, name)]
    tag, scope = ("th", " scope=row") if index == 0 else ("td", "")
    text = f"<span>{escape(cell.text)}</span>" if cell.below else escape(cell.text)
    text = f"<b>{text}</b>" if cell.strong else text
    below = "".join(f"<small>{escape(note)}</small>" for note in cell.notes)
    return f"<{tag}{classes(found)}{scope}>{text}{below}</{tag}>"


def column_classes(table: Table, index: int) -> list[str]:
    """Of every cell of a column."""
    found = ["word"] if index < table.words else []
    return [*found, "apart"] if table.apart is not None and index == table.apart else found


def classes(names: list[str]) -> str:
    """
    >>> classes(["a", "b"]), classes([])
    (' class="a b"', '')
    """
    return f' class="{" ".join(names)}"' if names else ""


def pictures_html(block: Pictures) -> str:
    """Panels that stand side by side where there is room."""
    panels = []
    for panel in block.panels:
        title = escape(panel.title)
        svg = inline(panel.svg, panel.name, title)
        shown = f"<h4>{title}</h4>" if len(block.panels) > 1 else ""
        panels.append(f'<div class="panel">{shown}{svg}</div>')
    count = "one" if len(panels) == 1 else "many"
    return (
        f'<figure><div class="panels {count}">{"".join(panels)}</div>'
        f"<figcaption>{escape(block.caption)}</figcaption></figure>"
    )


def fold_html(block: Fold) -> str:
    """Closed until it is clicked on."""
    badge = f'<span class="badge {escape(block.tone)}">{escape(block.tone)}</span> '
    note = f"<small>{escape(block.note)}</small>" if block.note else ""
    body = "\n".join(map(block_html, block.blocks))
    return (
        f"<details><summary>{badge if block.tone else ''}<span>{escape(block.title)}{note}</span>"
        f'</summary>\n<div class="inside">{body}</div></details>'
    )
