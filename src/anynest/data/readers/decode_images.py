"""Decodes many encoded images at once.

Pillow releases Python's lock while it decodes, so threads help with images of some size. For tiny
ones as in CIFAR nearly all time is Python's own, and threads would cost a third more.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..dataset import check_memory
from ..errors import DataError
from .encoding import encoding_of
from .image_reader import decode, is_grey, open_image

_CHUNK = 500
_TINY = 64 * 64  # pixels


class ColourFound(Exception):
    """An image has colours and the others so far are grey."""


class _WrongSize(DataError):
    """A sound image that does not fit the data set; never skipped."""


def name_skipping(error: DataError) -> DataError:
    """The error of an image with the option that leaves out such images."""
    return DataError(f'{error} (on_corrupt="skip", --on-corrupt skip, leaves out such images)')


@dataclass
class DecodedImages:
    """Decoded images.

    Attributes:
        images: uint8 ``[N, C, H, W]``.
        kept: int64 ``[N]``, their indices among the encoded images.
        encodings: number of images of each encoding, e.g. {"PNG": 10} or {"JPEG-75": 10}.
        sizes: the (H, W) that they came in, before any resizing.
    """

    images: Tensor
    kept: Tensor
    encodings: Counter[str] = field(default_factory=Counter)
    sizes: frozenset[tuple[int, int]] = frozenset()


def decode_all(
    encoded: Sequence[bytes | None],
    where: Callable[[int], str],
    on_corrupt: str,
    image_size: int | None,
    channels: int,
) -> DecodedImages:
    """Decode every image to grey (1 channel) or RGB (3 channels).

    Args:
        encoded: content of the image files.
        where: names the i-th image in messages.
        on_corrupt: "raise" or "skip" for one that cannot be decoded.
        image_size: side to resize to; None requires all images to have the size of the first.
        channels: 1 or 3.

    Raises:
        ColourFound: channels is 1 and an image has colours.
        DataError: an image that cannot be decoded (unless skipped) or has another size.
    """

    def read(i: int) -> tuple[Image.Image, str]:
        data, name = encoded[i], where(i)
        if not data:
            raise DataError(f"a Parquet set must embed its images, found no image bytes in {name}")
        with open_image(data, name) as image:
            if channels == 1 and not is_grey(image):
                raise ColourFound
            encoding = encoding_of(image)  # before decoding, which may drop it
            return decode(image, channels, name), encoding

    def first_size() -> tuple[int, int]:
        for i in range(len(encoded)):
            try:
                return read(i)[0].size
            except DataError as error:
                if on_corrupt != "skip":
                    raise name_skipping(error) from None
        raise DataError(f"none of the {len(encoded)} images can be decoded, found {where(0)} first")

    size = (image_size, image_size) if image_size else first_size()
    shape = (len(encoded), size[1], size[0], channels)
    check_memory(shape, f"{len(encoded)} images of {size[0]}x{size[1]} pixels")
    pixels = np.empty(shape, np.uint8)
    good = np.ones(len(encoded), bool)
    sizes: set[tuple[int, int]] = set()

    def decode_chunk(start: int) -> Counter[str]:
        found: Counter[str] = Counter()
        for i in range(start, min(start + _CHUNK, len(encoded))):
            try:
                image, encoding = read(i)
                sizes.add((image.height, image.width))
                if image.size != size and image_size is None:
                    raise _WrongSize(
                        f"images must all have {size[0]}x{size[1]} pixels, found {image.width}x"
                        f"{image.height}: {where(i)}; give image_size to resize them"
                    )
                if image.size != size:
                    image = image.resize(size, Image.Resampling.BILINEAR)
            except _WrongSize:
                raise
            except DataError as error:
                if on_corrupt != "skip":
                    raise name_skipping(error) from None
                good[i] = False
                continue
            pixels[i] = np.asarray(image).reshape(shape[1:])
            found[encoding] += 1
        return found

    encodings: Counter[str] = Counter()
    threads = 1 if size[0] * size[1] <= _TINY else min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        for found in pool.map(decode_chunk, range(0, len(encoded), _CHUNK)):
            encodings += found
    if not good.any():
        raise DataError(f"none of the {len(encoded)} images can be decoded, found {where(0)} first")
    images = torch.from_numpy(pixels if good.all() else pixels[good])
    images = images.permute(0, 3, 1, 2).contiguous()
    return DecodedImages(images, torch.from_numpy(good.nonzero()[0]), encodings, frozenset(sizes))
