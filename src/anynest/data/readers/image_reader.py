"""Single pictures from files, made what a network knows: exactly as an evaluation makes them."""

import os
import stat
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..augment import Normalize
from ..errors import DataError
from ..transforms import transform
from . import decode

_GREY = ("L", "1", "LA", "I", "I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True)
class PictureReader:
    """Reads picture files as a network's images.

    Attributes:
        size: side of the network's images in pixels.
        mean, std: one number a channel, for pixels from 0 to 1; 1 channel is grey, 3 are RGB.
        fit: what is done with a picture of another size: ``crop`` (the shorter side resized, the
            centre cut out, as evaluations of image folders do) or ``whole`` (resized as a whole).
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: str = "crop"

    def __post_init__(self) -> None:
        if len(self.mean) not in (1, 3):
            raise DataError(
                f"picture files have 1 channel (grey) or 3 (RGB), found a network of "
                f"{len(self.mean)}: give it tensors from Python"
            )

    def __call__(self, path: str) -> Tensor:
        """The picture, float32 [1, C, size, size], normalised.

        Raises:
            DataError: one line that names the file: none there, empty, undecodable, more than
                Pillow's limit of about 89 million pixels, or colours that the network has no
                channels for.
        """
        normalize = Normalize(self.mean, self.std, torch.device("cpu"), False)
        return normalize(self.pixels(path).unsqueeze(0))

    def pixels(self, path: str) -> Tensor:
        """The picture, uint8 [C, size, size]."""
        _require_file(path)
        try:
            with decode.opened(path) as file:
                return self.of_image(decode.pixels(file, path), path)
        except decode.Undecodable as error:
            raise DataError(error.reason) from None
        except MemoryError:
            raise DataError(f"cannot decode {path}: there is no memory for it") from None

    def of_image(self, image: Image.Image, where: str) -> Tensor:
        """An opened picture's pixels, uint8 [C, size, size]. DataError, naming ``where``."""
        if 0 in image.size:
            raise DataError(
                f"pictures must have pixels, found {image.size[0]}x{image.size[1]}: {where}"
            )
        image = self._fitted(self._channels(image, where), where)
        array = np.array(image).reshape(self.size, self.size, len(self.mean))
        return torch.from_numpy(array).permute(2, 0, 1)

    def _channels(self, image: Image.Image, path: str) -> Image.Image:
        grey = len(self.mean) == 1
        wrong = image.mode not in _GREY if grey else image.mode == "F"
        if not wrong:
            try:
                rgb = decode.rgb(image)  # the luminance of a grey picture's RGB is itself
                return rgb.convert("L") if grey else rgb
            except ValueError:  # a mode that Pillow cannot convert
                pass
        wanted = "grey (L)" if grey else "convertible to RGB"
        raise DataError(f"the network's pictures must be {wanted}, found {image.mode}: {path}")

    def _fitted(self, image: Image.Image, path: str) -> Image.Image:
        if self.fit == "whole":
            side = (self.size, self.size)
            return image if image.size == side else image.resize(side, Image.Resampling.BILINEAR)
        long, short = max(image.size), min(image.size)
        limit = Image.MAX_IMAGE_PIXELS or 2**28
        if long / short * (2 * self.size) ** 2 > limit:
            raise DataError(
                f"pictures must not be so elongated, found {image.size[0]}x{image.size[1]} pixels "
                f"in {path}: cut out a part of it"
            )
        return transform(image, self.size, "none", None, False)


def _require_file(path: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # ValueError: a null character
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(f"cannot read {path!r}: {reason}") from None
    if not stat.S_ISREG(mode):
        raise DataError(f"cannot read {path}: it is no file")
    if not os.access(path, os.R_OK):
        raise DataError(f"cannot read {path}: no permission")
