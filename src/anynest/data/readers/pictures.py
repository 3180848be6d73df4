"""Decoding many encoded images at once.

Pillow lets go of Python's lock while it decodes, so threads help with pictures of some size; with
the tiny ones of CIFAR nearly all the time is Python's own, and threads would cost a third more.
"""

import io
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import DataError
from . import decode

_CHUNK = 500
_TINY = 64 * 64  # pixels
_CHANNELS = {"L": 1, "RGB": 3}


class WrongKind(DataError):
    """A sound image that does not fit the set; never skipped."""


@dataclass
class Pictures:
    """What was decoded.

    images: uint8 [N, C, H, W]; kept: which of the given images these are, int64 [N];
    encodings: how many of each, e.g. {"PNG": 10} or {"JPEG-75": 10}; skipped: how many were left
    out; sizes: the (H, W) that they came in, before any resizing.
    """

    images: Tensor
    kept: Tensor
    encodings: Counter[str] = field(default_factory=Counter)
    skipped: int = 0
    sizes: frozenset[tuple[int, int]] = frozenset()

    @property
    def resized(self) -> bool:
        """Whether any of them came in another size."""
        return self.sizes != {tuple(self.images.shape[2:])}


@dataclass(frozen=True)
class _Shape:
    mode: str
    size: tuple[int, int]
    resize: bool


def _encoding(image: Image.Image) -> str:
    kind = image.format or "unknown"
    if kind != "JPEG":
        return kind
    quality = decode.jpeg_quality(image)
    return "JPEG" if quality is None else f"JPEG-{quality}"


def _decode(
    data: bytes | None, where: str, shape: _Shape | None
) -> tuple[Image.Image, str, tuple[int, int]]:
    """The image, how it was encoded, and the (H, W) that it came in."""
    if not data:
        raise DataError(f"{where} holds no image bytes: give the Parquet files that embed them")
    image = decode.open_image(io.BytesIO(data), where)
    if image.mode not in _CHANNELS or (shape and image.mode != shape.mode):
        wanted = shape.mode if shape else "L or RGB"
        raise WrongKind(
            f"images must all be {wanted}, found wrong channels ({image.mode}): {where}"
        )
    if shape and image.size != shape.size and not shape.resize:
        raise WrongKind(
            f"images must all have {shape.size[0]}x{shape.size[1]} pixels, found "
            f"{image.size[0]}x{image.size[1]}: {where}; give image_size to resize them"
        )
    encoding = _encoding(image)
    image = decode.pixels(image, where)
    came_in = (image.height, image.width)
    if shape and image.size != shape.size:
        image = image.resize(shape.size, Image.Resampling.BILINEAR)
    return image, encoding, came_in


def decode_all(
    encoded: Sequence[bytes | None],
    where: Callable[[int], str],
    on_corrupt: str,
    image_size: int | None,
) -> Pictures:
    """Decode every image; all must have one size and be all grey or all RGB.

    where: names the i-th in messages; image_size: resize to this side where sizes differ.

    Raises:
        DataError: an undecodable image (unless on_corrupt is "skip"), or one that does not fit.
    """
    first = _first(encoded, where, on_corrupt)
    side = None if image_size is None else (image_size, image_size)
    shape = _Shape(first.mode, side or first.size, side is not None)
    width, height = shape.size
    out = np.empty((len(encoded), height, width, _CHANNELS[shape.mode]), np.uint8)
    good = np.ones(len(encoded), bool)
    sizes: set[tuple[int, int]] = set()

    def work(start: int) -> Counter[str]:
        found: Counter[str] = Counter()
        for i in range(start, min(start + _CHUNK, len(encoded))):
            try:
                image, encoding, came_in = _decode(encoded[i], where(i), shape)
            except DataError as error:
                if on_corrupt != "skip" or isinstance(error, WrongKind):
                    raise
                good[i] = False
                continue
            out[i] = np.asarray(image).reshape(out.shape[1:])
            found[encoding] += 1
            sizes.add(came_in)
        return found

    encodings: Counter[str] = Counter()
    threads = 1 if width * height <= _TINY else min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        for found in pool.map(work, range(0, len(encoded), _CHUNK)):
            encodings += found
    kept = torch.from_numpy(good.nonzero()[0])
    images = torch.from_numpy(out if good.all() else out[good])
    images = images.permute(0, 3, 1, 2).contiguous()
    return Pictures(images, kept, encodings, int((~good).sum()), frozenset(sizes))


def _first(
    encoded: Sequence[bytes | None], where: Callable[[int], str], on_corrupt: str
) -> Image.Image:
    """The first image that can be decoded; it sets the size and the channels."""
    for i, data in enumerate(encoded):
        try:
            image, _, _ = _decode(data, where(i), None)
        except WrongKind:
            raise
        except DataError:
            if on_corrupt != "skip":
                raise
            continue
        return image
    raise DataError(f"none of the {len(encoded)} images can be decoded, the first is {where(0)}")
