"""What a product multiplies: copies of an image's rows, shifted by where a kernel's weights lie.

Both sides of the copy are views of one shape; the copy itself is one operation.

Legend: k kernel side, i inputs, W width.
"""

from __future__ import annotations

from torch import Tensor

from ..nets.nested.plan import Unit
from .grid import Grid, Tile
from .matrices import CONSTANTS


def shifts(
    unit: Unit, x: Tensor, grid: Grid, shifted: Tensor, tile: Tile, whole: bool
) -> tuple[Tensor, Tensor]:
    """What to copy for one tile of a unit's result, and where to.

    Args:
        unit: the convolution.
        x: rows ``[i, length]`` that it reads.
        grid: their layout.
        shifted: the memory for the copies, ``[2 + taps i, columns]``.
        tile: of the unit's result.
        whole: whether all k x k shifts are wanted, or the k of one line.

    Returns:
        Two views of equal shape.
    """
    middle, row = unit.kernel // 2, shifted.stride(0)
    first = x.storage_offset() + grid.lead - middle * grid.pitch - middle
    place = shifted.storage_offset() + CONSTANTS * row
    taps = (unit.kernel if whole else 1, unit.kernel, unit.inputs)
    taken = (grid.pitch, 1, x.stride(0))
    copies = (unit.kernel * unit.inputs * row, unit.inputs * row, row)
    if unit.stride == 1:  # long runs, padding and all
        columns = tile.columns if whole else tile.columns + 2 * middle * grid.pitch
        return (
            x.as_strided((*taps, columns), (*taken, 1), first + tile.start),
            shifted.as_strided((*taps, columns), (*copies, 1), place),
        )
    first += tile.image * grid.image + unit.stride * tile.line * grid.pitch
    pixels = (tile.images, tile.lines, tile.grid.width)
    steps = (grid.image, unit.stride * grid.pitch, unit.stride)
    return (
        x.as_strided((*taps, *pixels), (*taken, *steps), first),
        shifted.as_strided((*taps, *pixels), (*copies, tile.grid.image, tile.grid.pitch, 1), place),
    )
