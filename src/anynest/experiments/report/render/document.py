"""A report as data, independent of HTML and Markdown, which are both rendered from it.

All texts are plain; the templates escape them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True)
class TableCell:
    """A cell of a table.

    Args:
        text: Its text.
        notes: Small lines below the text.
        strong: Whether it is the best of its row.
        below: Whether it is a control better than the best of its row.
        far: Whether the notes deserve attention.
    """

    text: str
    notes: tuple[str, ...] = ()
    strong: bool = False
    below: bool = False
    far: bool = False


@dataclass(frozen=True)
class RowGroup:
    """Rows of a table with an optional heading."""

    rows: tuple[tuple[TableCell, ...], ...]
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        caption: Its caption.
        head: Column headings.
        groups: Its rows.
        words: Number of leading columns with text, not numbers.
        apart: Index of the first column that is set apart from those before it.
    """

    caption: str
    head: tuple[str, ...]
    groups: tuple[RowGroup, ...]
    words: int = 1
    apart: int | None = None

    def classes(self, index: int, cell: TableCell | None = None) -> list[str]:
        """CSS classes of a column's heading or of one of its cells."""
        names = ["word"] if index < self.words else []
        names += ["apart"] if index == self.apart else []
        return names + [name for name in ("strong", "below", "far") if getattr(cell, name, False)]


@dataclass(frozen=True)
class Heading:
    """A heading of level 2 or 3. anchor: target of links to it."""

    level: int
    text: str
    anchor: str


@dataclass(frozen=True)
class Text:
    """A paragraph. quiet: in small print."""

    text: str
    quiet: bool = False


@dataclass(frozen=True)
class Items:
    """A list."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class Code:
    """Preformatted lines."""

    text: str


@dataclass(frozen=True)
class Tile:
    """A highlighted number. tone: ``holds``, ``fails``, ``undecided`` or empty."""

    value: str
    label: str
    tone: str = ""


@dataclass(frozen=True)
class Tiles:
    """Tiles side by side."""

    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Picture:
    """A figure. name: of its file, without extension; svg: as ``drawing.draw`` returns it."""

    name: str
    title: str
    svg: str = field(repr=False)


@dataclass(frozen=True)
class Pictures:
    """Panels side by side under one caption."""

    caption: str
    panels: tuple[Picture, ...]


@dataclass(frozen=True)
class Fold:
    """Blocks shown when the title is clicked. tone: as a tile's, shown before the title."""

    title: str
    blocks: "tuple[Block, ...]"
    note: str = ""
    tone: str = ""


Block: TypeAlias = Heading | Text | Items | Code | Tiles | Table | Pictures | Fold


@dataclass(frozen=True)
class Document:
    """A report."""

    title: str
    blocks: tuple[Block, ...]

    def contents(self) -> list[tuple[Heading, list[Heading]]]:
        """Each heading of level 2 with the headings below it."""
        parts: list[tuple[Heading, list[Heading]]] = []
        for block in self.blocks:
            if isinstance(block, Heading):
                if block.level == 2:
                    parts.append((block, []))
                else:
                    parts[-1][1].append(block)
        return parts


def pictures_of(blocks: Iterable[Block]) -> Iterator[Picture]:
    """All pictures, including those in folds."""
    for block in blocks:
        if isinstance(block, Pictures):
            yield from block.panels
        elif isinstance(block, Fold):
            yield from pictures_of(block.blocks)


def text_row(*texts: str) -> tuple[TableCell, ...]:
    """A row of plain cells."""
    return tuple(TableCell(text) for text in texts)
