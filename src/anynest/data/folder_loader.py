"""The loader of image folders: worker processes decode and augment, the device normalizes.

A worker's result is a function of (seed, epoch, image), so batches are the same for every number of
workers.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from . import randomness
from .augment import Normalize
from .batch_sampler import BatchSampler
from .dataset import FolderSplit
from .errors import DataError
from .readers.decode_images import name_skipping
from .readers.image_reader import fitted_pixels, open_image
from .transforms import DRAWS

_log = logging.getLogger("anynest.data")
_TRIES = 100


@dataclass
class _Item:
    """A worker's result: pixels (None if the image is left out), or the line of an error."""

    pixels: Tensor | None
    label: int
    bad: tuple[int, ...] = ()
    error: str | None = None


class _Files(TorchDataset[_Item]):
    """Decodes images as one epoch needs them; errors are returned, as text, instead of raised."""

    def __init__(self, split: FolderSplit, augment: str, key: int | None) -> None:
        """key: of the epoch's augmentation; None for evaluation."""
        self._split, self._augment, self._key = split, augment, key

    def __getitem__(self, i: int) -> _Item:
        split = self._split
        bad: list[int] = []
        for _ in range(_TRIES):
            try:
                return _Item(self._read(i), int(split.labels[i]), tuple(bad))
            except DataError as error:
                if split.on_corrupt != "skip":
                    return _Item(None, 0, error=str(name_skipping(error)))
                bad.append(i)
                if self._key is None:
                    return _Item(None, 0, tuple(bad))
                i = (i + 1) % len(split)  # the next file replaces it, so batches keep their size
        last = split.paths[i - 1]
        return _Item(None, 0, error=f"{_TRIES} files in a row cannot be decoded, found {last} last")

    def _read(self, i: int) -> Tensor:
        split, path, draws = self._split, self._split.paths[i], None
        if self._key is not None:
            draws = randomness.units(self._key, np.array([i]), DRAWS)[0]
        with open_image(path) as image:
            return fitted_pixels(
                image, path, split.image_size, 3, "crop", self._augment, draws, split.mirror
            )


def _collate(items: list[_Item]) -> tuple[Tensor | None, Tensor, list[int], str | None]:
    good = [(item.pixels, item.label) for item in items if item.pixels is not None]
    images = torch.stack([pixels for pixels, _ in good]) if good else None
    labels = torch.tensor([label for _, label in good], dtype=torch.int64)
    error = next((item.error for item in items if item.error), None)
    return images, labels, [i for item in items for i in item.bad], error


class FolderLoader:
    """Batches of a `FolderSplit`; see `loader.make_loader`."""

    def __init__(
        self,
        split: FolderSplit,
        sampler: BatchSampler,
        augment: str,
        normalize: Normalize,
        workers: int,
    ) -> None:
        self._split, self._sampler, self._augment = split, sampler, augment
        self._normalize, self._workers = normalize, workers
        self._bad: set[int] = set()

    @property
    def num_images(self) -> int:
        return self._sampler.num_images

    @property
    def skipped_images(self) -> frozenset[int]:
        return frozenset(self._bad)

    def __len__(self) -> int:
        return self._sampler.num_batches

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        sampler, split, known = self._sampler, self._split, len(self._bad)
        device = self._normalize.device
        order = sampler.order(epoch)
        key = sampler.augment_key(epoch) if sampler.train else None
        source = DataLoader(
            _Files(split, self._augment, key),
            batch_sampler=[order[sampler.part(step)].tolist() for step in sampler.steps(start)],
            num_workers=self._workers,
            collate_fn=_collate,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # else it would draw from the global one
        )
        for images, labels, bad, error in source:
            if error is not None:
                raise DataError(error)
            self._bad.update(bad)
            if images is None:
                images = torch.empty(0, 3, split.image_size, split.image_size, dtype=torch.uint8)
            images, labels = (x.to(device, non_blocking=True) for x in (images, labels))
            yield self._normalize(images), labels
        if len(self._bad) > known:
            _log.warning(
                "%d undecodable images left out of the %s split, the first is %s",
                len(self._bad),
                split.name,
                split.paths[min(self._bad)],
            )
