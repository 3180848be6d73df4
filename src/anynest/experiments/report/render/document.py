"""A report's parts, as data that knows nothing of HTML or Markdown: both are made from the same.

Every text is plain; what renders it escapes it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True)
class Cell:
    """text; notes: small lines below it; strong: the best of its row; below: a control that is
    better than the best of its row; far: what the notes say deserves a look."""

    text: str
    notes: tuple[str, ...] = ()
    strong: bool = False
    below: bool = False
    far: bool = False


@dataclass(frozen=True)
class Group:
    """Rows under a heading of their own, which may be empty."""

    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Table:
    """words: how many columns on the left hold words, not numbers; apart: the first column that
    stands apart from those before it."""

    caption: str
    head: tuple[str, ...]
    groups: tuple[Group, ...]
    words: int = 1
    apart: int | None = None


@dataclass(frozen=True)
class Heading:
    """level 2 or 3; anchor: what a link to it names."""

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
    """Lines as they are typed."""

    text: str


@dataclass(frozen=True)
class Tile:
    """A number that stands out. tone: ``holds``, ``fails``, ``undecided`` or nothing."""

    value: str
    label: str
    tone: str = ""


@dataclass(frozen=True)
class Tiles:
    """Side by side."""

    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Picture:
    """svg: as ``drawing.svg_of`` gives it; name: of its file, without an ending."""

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
    """What is shown when its title is clicked on. tone: as a tile's, shown before the title."""

    title: str
    blocks: "tuple[Block, ...]"
    note: str = ""
    tone: str = ""


Block: TypeAlias = Heading | Text | Items | Code | Tiles | Table | Pictures | Fold


@dataclass(frozen=True)
class Document:
    """All of it."""

    title: str
    blocks: tuple[Block, ...]


def pictures_of(blocks: Iterable[Block]) -> Iterator[Picture]:
    """Every picture, those in folds too."""
    for block in blocks:
        if isinstance(block, Pictures):
            yield from block.panels
        elif isinstance(block, Fold):
            yield from pictures_of(block.blocks)


def row(*texts: str) -> tuple[Cell, ...]:
    """A row of plain cells."""
    return tuple(Cell(text) for text in texts)
