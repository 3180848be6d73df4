"""Reads one image that comes from outside: opens, checks, decodes, converts and resizes it.

Image folders, Parquet sets and prediction all read images through `open_image` and `decode`, so the
same checks hold everywhere and every failure is one DataError.
"""

import io
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..augment import Normalize
from ..errors import DataError
from ..transforms import Draws, transform

# Pillow knows more, some of which are programs (EPS runs Ghostscript) or load others.
FORMATS = (
    *("JPEG", "PNG", "BMP", "GIF", "WEBP", "AVIF", "PPM", "TIFF", "MPO"),
    *("ICO", "PCX", "SGI", "TGA"),  # TGA, which has no mark of its own, last
)
_GREY = frozenset(("1", "L", "LA", "I", "I;16", "I;16L", "I;16B", "I;16N"))
_SIXTEEN_BITS = _GREY - {"1", "L", "LA"}
_DEPTHS = (8, 12, 16)  # bits of a grey value in a 16-bit image, as cameras and scanners use them


def is_grey(image: Image.Image) -> bool:
    """Whether an image has one channel, apart from transparency."""
    return image.mode in _GREY


@contextmanager
def open_image(source: str | bytes, where: str = "") -> Iterator[Image.Image]:
    """Open an image file, or the bytes of one; only its header is read.

    Args:
        source: path or content.
        where: name of the image in messages; the path by default.

    Raises:
        DataError: not a readable file, empty, of no known format, or of more pixels than Pillow's
            limit (about 89 million).
    """
    if isinstance(source, str):
        where = where or source
        stream = _open_file(source)
    else:
        stream = io.BytesIO(source)
    with stream:
        try:
            image = _identify(stream)
        except Exception as error:  # decoders raise anything on hostile bytes
            raise _undecodable(where, error) from None
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and image.width * image.height > limit:
            raise DataError(
                f"images must have at most {limit} pixels, found more in {where}: "
                "make it smaller or remove it"
            )
        yield image


def _open_file(path: str) -> BinaryIO:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # opening a named pipe would block
            raise DataError(f"cannot read {path}: it is not a regular file")
        if status.st_size == 0:
            raise DataError(f"cannot decode {path}: the file is empty")
        return open(path, "rb")
    except DataError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null character
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"cannot read {path!r}: {reason}") from None


def _identify(stream: BinaryIO) -> Image.Image:
    """`Image.open` of `FORMATS` alone, without its warning of too many pixels.

    Turning the warning into an error would change the warning filters of the whole process, which
    other threads use at the same time.
    """
    prefix = stream.read(16)
    missing = ""
    for load_decoders in (Image.preinit, Image.init):  # the common formats, then all
        load_decoders()
        for name in (name for name in FORMATS if name in Image.OPEN):
            factory, accept = Image.OPEN[name]
            with suppress(SyntaxError, IndexError, TypeError, struct.error):  # another format
                accepted = accept is None or accept(prefix)
                if isinstance(accepted, str):  # a format that this Pillow was built without
                    missing = accepted
                elif accepted:
                    stream.seek(0)
                    return factory(stream, "")
    raise UnidentifiedImageError(missing or "no known image format")


def decode(image: Image.Image, channels: int, where: str) -> Image.Image:
    """Decode an opened image and convert it to 8-bit grey (1 channel) or RGB (3 channels).

    Transparency is dropped, and of several frames the first is taken. 16-bit grey images keep the
    upper 8 bits of the depth that their values use: 8, 12 or 16 bits.

    Raises:
        DataError: damaged bytes, no pixels, colours where grey is needed, floating-point pixels,
            values of more than 16 bits, or too little memory.
    """
    if 0 in image.size:
        raise DataError(f"images must have pixels, found {image.width}x{image.height}: {where}")
    try:
        image.load()
    except Exception as error:  # decoders raise anything on hostile bytes
        raise _undecodable(where, error) from None
    if image.mode in _SIXTEEN_BITS:
        image = _eight_bits(image, where)
    if channels == 3 or is_grey(image):
        try:
            if image.mode == "RGB":
                return image
            if image.mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")
            if image.mode != "F":
                return image.convert("L" if channels == 1 else "RGB")
        except MemoryError as error:
            raise _undecodable(where, error) from None
        except ValueError:  # Pillow has no such conversion
            pass
    wanted = "grey (L)" if channels == 1 else "convertible to RGB"
    raise DataError(f"images must be {wanted}, found {image.mode}: {where}")


def _eight_bits(image: Image.Image, where: str) -> Image.Image:
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= 1 << 16:
        raise DataError(f"grey values must lie in 0..65535, found {low}..{high}: {where}")
    depth = next(bits for bits in _DEPTHS if high < 1 << bits)
    return Image.fromarray((values >> (depth - 8)).astype(np.uint8))


def _undecodable(where: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:120].replace("<_io.BytesIO object at ", "<")
    if isinstance(error, MemoryError):
        reason = "too little memory"
    return DataError(f"cannot decode {where}: {reason or type(error).__name__}")


def fitted_pixels(
    image: Image.Image,
    where: str,
    size: int,
    channels: int,
    fit: str = "crop",
    augment: str = "none",
    draws: Draws | None = None,
    mirror: bool = False,
) -> Tensor:
    """Decode an opened image and fit it to a network's size: uint8 ``[channels, size, size]``.

    Args:
        image, where: see `open_image`.
        fit: treatment of another size: "crop" (resize the shorter side, crop the centre, as in the
            evaluation of an image folder) or "whole" (resize without keeping the aspect).
        augment, draws, mirror: of training, with "crop"; see `transforms.transform`.

    Raises:
        DataError: as `decode`, and for an image too elongated to be cropped.
    """
    image = decode(image, channels, where)
    if fit == "whole":
        if image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BILINEAR)
    else:
        limit = Image.MAX_IMAGE_PIXELS or 2**28  # of the longer side, once the shorter is resized
        if max(image.size) / min(image.size) * (2 * size) ** 2 > limit:
            raise DataError(
                f"images must not be so elongated, found {image.width}x{image.height} pixels in "
                f"{where}: cut out a part of it"
            )
        image = transform(image, size, augment, draws, mirror)
    array = np.array(image).reshape(size, size, channels)
    return torch.from_numpy(array).permute(2, 0, 1)


@dataclass(frozen=True)
class ImageFileReader:
    """Reads image files as the images of a network.

    Attributes:
        size: side of the network's images in pixels.
        mean, std: per channel, for pixels scaled to [0, 1]; 1 channel is grey, 3 are RGB.
        fit: "crop" or "whole", see `fitted_pixels`.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: str = "crop"

    def __post_init__(self) -> None:
        if len(self.mean) not in (1, 3):
            raise DataError(
                f"image files have 1 channel (grey) or 3 (RGB), found a network of "
                f"{len(self.mean)}: give it tensors from Python"
            )

    def __call__(self, path: str) -> Tensor:
        """The image, float32 ``[1, C, size, size]``, normalized. Raises as `pixels`."""
        normalize = Normalize(self.mean, self.std, torch.device("cpu"), False)
        return normalize(self.pixels(path).unsqueeze(0))

    def pixels(self, path: str) -> Tensor:
        """The image, uint8 ``[C, size, size]``.

        Raises:
            DataError: one line that names the file; see `open_image` and `fitted_pixels`.
        """
        with open_image(path) as image:
            return self.of_image(image, path)

    def of_image(self, image: Image.Image, where: str) -> Tensor:
        """The same for an opened image, which `where` names in messages."""
        return fitted_pixels(image, where, self.size, len(self.mean), self.fit)
