"""The CIFAR augmentation of a whole batch: reflect-pad, random crop, random mirror.

Crop, padding and mirror together only permute pixels, so no padded copy is made: the rows of every
crop are gathered as whole rows of bytes, then the columns within them.
Shapes: N images, B batch, C channels, H x W pixels.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from . import randomness


def crop_padding(image_size: int) -> int:
    """Pixels of padding: 4 for 32 pixels, in proportion for other sizes (8: 1, 28: 4, 64: 8)."""
    return max(1, min(round(image_size / 8), image_size - 1))


def draw_crops(
    stream: int, index: npt.NDArray[np.int64], padding: int, mirror: bool
) -> npt.NDArray[np.int64]:
    """(row offset, column offset, mirrored) for each image index, int64 ``[N, 3]``.

    Offsets are uniform in -padding..padding; mirrored is 0 or 1, always 0 without `mirror`.
    """
    draws = randomness.units(stream, index, 3)
    offsets = np.floor(draws * (2 * padding + 1)).astype(np.int64) - padding
    offsets[:, 2] = (draws[:, 2] < 0.5) & mirror
    return offsets


def _reflect(position: Tensor, size: int) -> Tensor:
    last = size - 1
    return last - (last - position.abs()).abs()


def crop_and_mirror(images: Tensor, index: Tensor, crops: Tensor) -> Tensor:
    """Crops of images[index] after reflect padding.

    Args:
        images: uint8 ``[N, C, H, W]``, contiguous.
        index: int64 ``[B]``.
        crops: int64 ``[B, 3]`` from `draw_crops`.

    Returns:
        uint8 ``[B, C, H, W]``.
    """
    n, channels, height, width = images.shape
    rows = torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    shift_y, shift_x, mirrored = crops.unsqueeze(-1).unbind(1)
    rows_BH = _reflect(rows + shift_y, height)
    columns_BW = columns + mirrored * (width - 1 - 2 * columns)  # mirror after cropping
    columns_BW = _reflect(columns_BW + shift_x, width)
    planes_BC = index.unsqueeze(1) * channels + torch.arange(channels, device=images.device)
    lines_BCH = planes_BC.unsqueeze(2) * height + rows_BH.unsqueeze(1)
    picked = images.view(n * channels * height, width).index_select(0, lines_BCH.view(-1))
    picked = picked.view(len(index), channels, height, width)
    return picked.gather(3, columns_BW[:, None, None, :].expand(picked.shape))


class Normalize:
    """uint8 ``[B, C, H, W]`` -> float32, (x / 255 - mean) / std per channel, on `device`."""

    def __init__(
        self,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device,
        channels_last: bool,
    ) -> None:
        self.device = device
        shape = (1, len(mean), 1, 1)
        scale = [1 / (255 * s) for s in std]
        shift = [-m / s for m, s in zip(mean, std, strict=True)]
        self._scale = torch.tensor(scale, device=device).view(shape)
        self._shift = torch.tensor(shift, device=device).view(shape)
        self._format = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, images: Tensor) -> Tensor:
        floats = images.to(torch.float32, memory_format=self._format)
        return floats.mul_(self._scale).add_(self._shift)
