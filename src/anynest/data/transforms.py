"""Crops and augments one decoded image of an image folder, in a worker process.

ImageNet's usual training crop (Szegedy et al., 2015): area 8 to 100 %, aspect 3/4 to 4/3, both
uniform (the aspect in its logarithm), resized bilinearly; after ten tries the centre. Evaluation
resizes the shorter side to 256/224 of the size and crops the centre. Small images (up to 64 pixels)
are not enlarged this way, and have the CIFAR augmentation.
"""

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from .augment import crop_padding

SMALL = 64
_TRIES = 10
DRAWS = 2 * _TRIES + 3  # (area, aspect) per try, two positions, the mirror
_BILINEAR = Image.Resampling.BILINEAR

Draws = npt.NDArray[np.float64]


def transform(
    image: Image.Image, size: int, augment: str, draws: Draws | None, mirror: bool
) -> Image.Image:
    """The image at size x size pixels; draws: DRAWS numbers in [0, 1), or None for evaluation."""
    if draws is not None and augment == "imagenet":
        image = random_resized_crop(image, size, draws)
    else:
        image = centre(image, size, size if size <= SMALL else round(size * 256 / 224))
        if draws is not None and augment == "cifar":
            image = shifted(image, draws)
    if draws is not None and augment != "none" and mirror and draws[-1] < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image


def centre(image: Image.Image, size: int, shorter: int) -> Image.Image:
    """Resize the shorter side to `shorter` pixels, then crop size x size from the centre."""
    width, height = image.size
    scale = shorter / min(width, height)
    wide, high = max(shorter, round(width * scale)), max(shorter, round(height * scale))
    if (wide, high) != image.size:
        image = image.resize((wide, high), _BILINEAR)
    left, top = (wide - size) // 2, (high - size) // 2
    return image.crop((left, top, left + size, top + size))


def crop_box(width: int, height: int, draws: Draws) -> tuple[int, int, int, int]:
    """(left, top, wide, high) of the random resized crop of a width x height image."""
    for area, aspect in draws[: 2 * _TRIES].reshape(_TRIES, 2):
        pixels = width * height * (0.08 + 0.92 * area)
        ratio = math.exp(math.log(3 / 4) + aspect * (math.log(4 / 3) - math.log(3 / 4)))
        wide, high = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left = int(draws[2 * _TRIES] * (width - wide + 1))
            top = int(draws[2 * _TRIES + 1] * (height - high + 1))
            return left, top, wide, high
    wide = min(width, round(height * 4 / 3))
    high = min(height, round(width * 4 / 3))
    return (width - wide) // 2, (height - high) // 2, wide, high


def random_resized_crop(image: Image.Image, size: int, draws: Draws) -> Image.Image:
    """A random part of the image, resized to size x size."""
    left, top, wide, high = crop_box(*image.size, draws)
    part = image.crop((left, top, left + wide, top + high))
    return part.resize((size, size), _BILINEAR)


def shifted(image: Image.Image, draws: Draws) -> Image.Image:
    """Reflect-pad and crop at random, as `augment.crop_and_mirror` does for images in memory."""
    padding = crop_padding(image.size[0])
    pixels = np.pad(np.asarray(image), ((padding,) * 2, (padding,) * 2, (0, 0)), mode="reflect")
    top, left = (int(draw * (2 * padding + 1)) for draw in draws[:2])
    width, height = image.size
    return Image.fromarray(pixels[top : top + height, left : left + width])
