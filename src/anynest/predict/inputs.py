"""The inputs that a predictor accepts, converted to float32 batches ``[B, C, H, W]``.

    floating point [C, H, W] or [B, C, H, W]   normalised images (torch or NumPy), used unchanged
    uint8 torch    [C, H, W] or [B, C, H, W]   raw pixels, as data sets in memory hold them
    uint8 NumPy    [H, W] or [H, W, C]         one raw image, as Pillow and OpenCV (RGB) hold it
    PIL.Image, a path                          one raw image
    a list of these                            a batch
    a dict of the one input's name to these    the same

Raw images get the preprocessing of the run's evaluation: resized, cropped to the run's image
size, normalised by its mean and std. Without these, raw images are refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data import DataError
from ..data.augment import Normalize
from ..data.readers.image_reader import ImageFileReader
from ..store import WeightsInfo
from .tensor_inputs import from_numpy

FORMS = "a tensor [C, H, W] or [B, C, H, W], a uint8 array [H, W, C], a PIL image, a path or a list"


def needs_decoding(x: Any) -> bool:
    """Whether ``x`` takes time to convert: files and images rather than tensors."""
    values = x.values() if isinstance(x, Mapping) else [x]
    return not all(isinstance(value, Tensor | np.ndarray) for value in values)


class ImageReader:
    """Converts inputs to batches for one network.

    Args:
        in_channels: C of the network.
        info: size, mean and std of its training images; None where unknown.
        name: of the network's input.
    """

    def __init__(self, in_channels: int, info: WeightsInfo | None, name: str = "x") -> None:
        self.in_channels, self.name = in_channels, name
        self.size = info.image_size if info else None
        self._normalize: Normalize | None = None
        self._pictures: ImageFileReader | None = None
        if info is not None:
            self._normalize = Normalize(info.mean, info.std, torch.device("cpu"), False)
            if in_channels in (1, 3):
                Image.preinit()  # load the decoders now, not under the first deadline
                self._pictures = ImageFileReader(info.image_size, info.mean, info.std, info.fit)

    def __call__(self, x: Any) -> tuple[Tensor, bool]:
        """Convert one input.

        Returns:
            A new float32 tensor ``[B, C, H, W]``, and whether ``x`` was a single image.

        Raises:
            ValueError: a shape, type or value that does not fit the network, or a file that
                cannot be read, in one line.
            TypeError: another type of input.
        """
        if isinstance(x, Mapping):
            if list(x) != [self.name]:
                raise ValueError(
                    f"the one input must be {self.name}, found {', '.join(map(str, x)) or 'none'}"
                )
            x = x[self.name]
        if isinstance(x, np.ndarray) and x.dtype != np.uint8:
            x = from_numpy(x, "images")
        if isinstance(x, Tensor):
            batch, single = self._from_tensor(x)
        elif isinstance(x, Sequence) and not isinstance(x, str | bytes):
            batch, single = self._from_list(x), False
        else:
            batch, single = self._raw(self._picture(x).unsqueeze(0)), True
        if not bool(torch.isfinite(batch).all()):
            raise ValueError("images must be finite, found NaN or infinite values: check the input")
        return batch, single

    def _from_tensor(self, x: Tensor) -> tuple[Tensor, bool]:
        if x.dim() not in (3, 4) or x.shape[-3] != self.in_channels or 0 in x.shape:
            raise ValueError(
                f"images must be [{self.in_channels}, H, W] or [B, {self.in_channels}, H, W] and "
                f"not empty, found {list(x.shape)}"
            )
        if x.is_meta or x.layout != torch.strided:
            raise ValueError(
                "images must be dense tensors with values, found layout "
                f"{x.layout} on device {x.device}"
            )
        single = x.dim() == 3
        x = x.detach()
        x = x.unsqueeze(0) if single else x
        if x.dtype == torch.uint8:
            return self._raw(self._to_size(x)), single
        if not x.is_floating_point():
            raise ValueError(
                f"images must be floating point (normalised) or uint8 (raw pixels), found {x.dtype}"
            )
        return x.to(torch.float32, copy=True, memory_format=torch.contiguous_format), single

    def _from_list(self, images: Sequence[Any]) -> Tensor:
        if not images:
            raise ValueError("a batch must have at least one image, found an empty list")
        parts = []
        for number, image in enumerate(images):
            batch, single = self(image)
            if not single:
                raise ValueError(f"a list must hold single images, found a batch at index {number}")
            parts.append(batch)
        if len({part.shape for part in parts}) > 1:
            sizes = sorted({f"{p.shape[2]}x{p.shape[3]}" for p in parts})
            raise ValueError(
                f"images of a batch must have one size, found {', '.join(sizes)} pixels"
            )
        return torch.cat(parts)

    def _picture(self, x: Any) -> Tensor:
        """Raw pixels ``[C, size, size]`` of one image."""
        if isinstance(x, str | os.PathLike):
            return self._reader().pixels(str(Path(x)))
        if isinstance(x, np.ndarray):
            flat = x[:, :, 0] if x.ndim == 3 and x.shape[2] == 1 else x
            if flat.ndim not in (2, 3) or 0 in flat.shape or (flat.ndim == 3 and x.shape[2] != 3):
                raise ValueError(
                    "a uint8 array must be one image [H, W], [H, W, 1] or [H, W, 3], found "
                    f"{list(x.shape)}; pass raw [C, H, W] pixels and batches as torch tensors"
                )
            x = Image.fromarray(np.ascontiguousarray(flat))
        if isinstance(x, Image.Image):
            return self._reader().of_image(x, "the given image")
        raise TypeError(f"images must be {FORMS}, found {type(x).__name__}")

    def _reader(self) -> ImageFileReader:
        if self._pictures is None:
            self._require_info()
            raise DataError(
                "image files have 1 channel (grey) or 3 (RGB), found a network of "
                f"{self.in_channels}: pass tensors"
            )
        return self._pictures

    def _require_info(self) -> Normalize:
        if self._normalize is None:
            raise ValueError(
                "raw images need the mean, std and size of the training images, which a bare "
                "network does not have: pass normalised floating-point tensors, open the run folder, or "
                "pass info="
            )
        return self._normalize

    def _raw(self, pixels: Tensor) -> Tensor:
        return self._require_info()(pixels.contiguous())

    def _to_size(self, pixels: Tensor) -> Tensor:
        """uint8 images ``[B, C, H, W]``, resized and cropped as in an evaluation."""
        self._require_info()
        if self.size is None or tuple(pixels.shape[2:]) == (self.size, self.size):
            return pixels
        arrays = pixels.permute(0, 2, 3, 1).cpu().numpy()
        return torch.stack([self._picture(array) for array in arrays])
