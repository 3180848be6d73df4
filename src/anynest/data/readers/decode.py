"""Opening image files whose content comes from outside, and reading how lossy they are."""

import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import DataError


class Undecodable(DataError):
    """Bytes that are no whole image; ``reason`` says why, without a remedy."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


# Table K.1 of the JPEG standard (ITU-T T.81), row by row: the luminance table that the usual
# encoders scale by their "quality".
_LUMINANCE = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)


def _scaled(quality: int) -> tuple[int, ...]:
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return tuple(min(255, max(1, (value * percent + 50) // 100)) for value in _LUMINANCE)


_QUALITIES = {tuple(sorted(_scaled(quality))): quality for quality in range(100, 0, -1)}


def jpeg_quality(image: Image.Image) -> int | None:
    """The quality (1 to 100) an opened JPEG was written with; None for a table of another kind.

    Tables are compared as sorted values, which differ from quality to quality and do not depend on
    the order in which a version of Pillow gives them.
    """
    tables: dict[int, list[int]] = getattr(image, "quantization", {})
    return _QUALITIES.get(tuple(sorted(tables.get(0, ()))))


def open_image(source: BinaryIO, where: str) -> Image.Image:
    """Open an image; only the header is read.

    Raises:
        DataError: no known image format, or more pixels than Pillow's limit (about 89 million).
    """
    limit = Image.MAX_IMAGE_PIXELS
    try:
        image = _identified(source)
        too_large = limit is not None and image.width * image.height > limit
    except Image.DecompressionBombError:
        too_large = True
    except Exception as error:  # decoders raise what they like on hostile bytes
        raise _undecodable(where, error) from None
    if too_large:
        raise DataError(
            f"images must have at most {limit} pixels, found more in {where}: "
            "make it smaller or remove it"
        )
    return image


def _identified(source: BinaryIO) -> Image.Image:
    """`Image.open` without its warning of too many pixels: who turns that into an error changes the
    filters of the whole process, under the feet of its other threads."""
    prefix = source.read(16)
    for load_decoders in (Image.preinit, Image.init):  # the usual ones, then all
        load_decoders()
        for name in tuple(Image.ID):
            factory, accept = Image.OPEN[name]
            with suppress(SyntaxError, IndexError, TypeError, struct.error):  # another format's
                accepted = accept is None or accept(prefix)
                if accepted and not isinstance(accepted, str):  # a text says what is not installed
                    source.seek(0)
                    return factory(source, "")
    raise UnidentifiedImageError


@contextmanager
def opened(path: str) -> Iterator[Image.Image]:
    """An image file, opened and checked as by `open_image`, closed at the end come what may."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "rb"))
        except OSError as error:
            raise DataError(
                f"cannot read {path}, found when its folder was read: {error.strerror}"
            ) from None
        yield open_image(file, path)


def pixels(image: Image.Image, where: str) -> Image.Image:
    """Decode an opened image. Raises DataError, naming `where`, when its bytes are damaged."""
    try:
        image.load()
    except Exception as error:  # decoders raise what they like on hostile bytes
        raise _undecodable(where, error) from None
    return image


def rgb(image: Image.Image) -> Image.Image:
    """Any decoded image as RGB; transparency is dropped."""
    if image.mode == "RGB":
        return image
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode.startswith("I;16") or image.mode == "I":  # 16-bit grey: keep the high byte
        high = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255)
        image = Image.fromarray(high.astype(np.uint8))
    return image.convert("RGB")


def _undecodable(where: str, error: Exception) -> Undecodable:
    reason = " ".join(str(error).split())[:120].replace("<_io.BytesIO object at ", "<")
    if isinstance(error, UnidentifiedImageError):
        reason = "no known image format"
    if os.path.isfile(where) and os.path.getsize(where) == 0:
        reason = "the file is empty"
    reason = f"cannot decode {where}: {reason or type(error).__name__}"
    return Undecodable(
        f'{reason}; replace it, or leave such images out with on_corrupt="skip" '
        "(--on-corrupt skip)",
        reason,
    )
