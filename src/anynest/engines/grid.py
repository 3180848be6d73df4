"""Where a layer's pixels lie in memory: every channel one row, padding shared between neighbours.

A channel of B images is one row of numbers. Each line of an image is followed by ``pad`` zeros and each image
by ``pad`` lines of zeros, which are the right padding of one line (or the bottom of one image) and the left
(top) of the next. A shift of an image by (dy, dx) is then a shift of the row by ``dy * pitch + dx`` numbers,
and the channels of the earlier nodes are the first rows of a matrix: a view, for any batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

ALIGNED = 16  # numbers in a cache line: rows and first pixels start at one (8 % on products of 32 channels)


def aligned(count: int) -> int:
    """The least multiple of a cache line's numbers that is no less than ``count``."""
    return -(-count // ALIGNED) * ALIGNED


@dataclass(frozen=True)
class Grid:
    """The layout of a row: ``batch`` images of ``height`` x ``width`` pixels."""

    batch: int
    height: int
    width: int
    pad: int = 1

    @cached_property
    def pitch(self) -> int:
        """From one line to the next."""
        return self.width + self.pad

    @cached_property
    def image(self) -> int:
        """From one image to the next."""
        return (self.height + self.pad) * self.pitch

    @cached_property
    def lead(self) -> int:
        """The first pixel's place; zeros before it are the padding above and to the left of it."""
        return aligned(self.pad * self.pitch + self.pad)

    @cached_property
    def length(self) -> int:
        """Of the whole row."""
        return aligned(self.end(self.batch))

    def end(self, images: int) -> int:
        """Where the first ``images`` end, their padding included."""
        return self.lead + images * self.image + self.pad

    def pixels(self, rows: Tensor, images: int) -> Tensor:
        """The pixels of the first images, ``[images, C, H, W]``: a view of rows ``[C, length]``."""
        return rows.as_strided(
            (images, rows.shape[0], self.height, self.width),
            (self.image, rows.stride(0), self.pitch, 1),
            rows.storage_offset() + self.lead,
        )

    def images(self, rows: Tensor, images: int) -> Tensor:
        """The first images, each with the padding behind it, ``[C, images, image]``: a view."""
        return rows.as_strided(
            (rows.shape[0], images, self.image),
            (rows.stride(0), self.image, 1),
            rows.storage_offset() + self.lead,
        )


@dataclass(frozen=True)
class Tile:
    """The columns that one product computes: whole images, or some lines of one image.

    Attributes:
        grid: whose.
        image: the first image.
        images: how many images.
        line: the first line.
        lines: how many lines of each image.
    """

    grid: Grid
    image: int
    images: int
    line: int
    lines: int

    @property
    def start(self) -> int:
        """The first pixel's place, counted from ``grid.lead``."""
        return self.image * self.grid.image + self.line * self.grid.pitch

    @property
    def columns(self) -> int:
        """From the first pixel to the last, padding in between included."""
        last = self.lines * self.grid.pitch - self.grid.pad
        return (self.images - 1) * self.grid.image + last

    def of(self, rows: Tensor) -> Tensor:
        """The tile's columns of rows ``[C, length]``: a view."""
        start = self.grid.lead + self.start
        return rows[:, start : start + self.columns]

    def gaps(self, rows: Tensor) -> Tensor | None:
        """The padding between the tile's images, ``[C, images - 1, ...]``: a view; None for one image."""
        if self.images == 1:
            return None
        first = self.lines * self.grid.pitch - self.grid.pad
        return rows.as_strided(
            (rows.shape[0], self.images - 1, self.grid.image - first),
            (rows.stride(0), self.grid.image, 1),
            rows.storage_offset() + self.grid.lead + self.start + first,
        )


@dataclass(frozen=True)
class Cut:
    """How a grid is cut into tiles: ``images`` whole ones each, or ``lines`` of one."""

    grid: Grid
    images: int
    lines: int

    @property
    def columns(self) -> int:
        """Of the largest tile."""
        return Tile(self.grid, 0, self.images, 0, self.lines).columns

    def tiles(self, images: int) -> list[Tile]:
        """The tiles that cover the first ``images``."""
        return [
            Tile(
                self.grid,
                image,
                min(self.images, images - image),
                line,
                min(self.lines, self.grid.height - line),
            )
            for image in range(0, images, self.images)
            for line in range(0, self.grid.height, self.lines)
        ]


def cut(grid: Grid, columns: int) -> Cut:
    """Tiles of about ``columns`` columns: as many whole images as fit, or even shares of one image."""
    images = min(max(1, columns // grid.image), grid.batch)
    if grid.image <= 2 * columns:
        return Cut(grid, images, grid.height)
    shares = -(-grid.image // columns)
    return Cut(grid, 1, -(-grid.height // shares))
